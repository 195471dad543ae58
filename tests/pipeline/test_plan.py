"""From an expression to a plan: every name, parameter and bound is checked before any call."""

from typing import Any

import pytest
from pydantic import Field, model_validator

import optillm_hooks.approaches  # noqa: F401 (registers `none`)
from optillm_hooks import registry
from optillm_hooks.errors import RequestRejected
from optillm_hooks.pipeline.expression import parse
from optillm_hooks.pipeline.plan import Plan, resolve
from optillm_hooks.registry import Cost, NoParams, Params, approach, rewriter


class VoteParams(Params):
    model_group_fields = ("judge", "models")

    n: int = Field(default=5, ge=1, le=64, description="Samples.")
    temperature: float = Field(default=0.7, gt=0, le=1.5, description="They must differ.")
    judge: str | None = Field(default=None, description="Model that judges.")
    models: tuple[str, ...] = Field(default=(), max_length=4, description="Models that sample.")


class SpanParams(Params):
    temperature: float = Field(default=0.5, ge=0, le=2, description="From here.")
    hottest: float = Field(default=0.8, ge=0, le=2, description="To there.")

    @model_validator(mode="after")
    def _ordered(self) -> "SpanParams":
        if self.temperature > self.hottest:
            raise ValueError("temperature must not be above hottest")
        return self


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_approaches", dict(registry._approaches))

    async def stage(*_: object) -> Any:
        raise AssertionError("a plan runs nothing")

    approach("vote", VoteParams, cost=lambda p: Cost(calls=p.n, depth=1))(stage)
    approach("span", SpanParams, cost=lambda _: Cost(calls=2, depth=2))(stage)
    rewriter("reword", NoParams, cost=lambda _: Cost(calls=0, depth=0))(stage)


def plan(text: str, **kwargs: Any) -> Plan:
    return resolve(parse(text), **kwargs)


def first(found: Plan) -> Any:
    return found.chains[0][0].params


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(
            "vote&nope(n=3)",
            r"^approach expression, column 6: unknown approach 'nope' .did you mean 'none'",
            id="unknown approach",
        ),
        pytest.param("Vote", r"column 1: unknown approach 'Vote'", id="names are case-sensitive"),
        pytest.param(
            "vote(m=3)",
            r"^vote: unknown parameter 'm' \(it accepts: n, temperature, judge, models\)$",
            id="unknown parameter",
        ),
        pytest.param(
            "reword(n=1)", r"^reword: unknown parameter 'n' \(it accepts: none\)$", id="takes none"
        ),
        pytest.param(
            "vote(n=65)", r"^vote: n: .*less than or equal to 64, got 65$", id="above its bound"
        ),
        pytest.param(
            "vote(temperature=0)", r"temperature: .*greater than 0, got 0$", id="at an open bound"
        ),
        pytest.param("vote(temperature=1e999)", r"temperature: .*finite", id="infinite"),
        pytest.param("vote(temperature=nan)", r"temperature: .*finite", id="not a number"),
        pytest.param("vote(n=2.5)", r"n: .*got 2.5$", id="no whole number"),
        pytest.param("vote(n=many)", r"n: .*got 'many'$", id="no number"),
        pytest.param("vote(n=[1])", r"^vote: n: [^\[]*whole number$", id="a list for a number"),
        pytest.param("vote(models=[a;b;c;d;e])", r"models: .*at most 4", id="a list too long"),
        pytest.param("vote(models=[1])", r"models.0: .*text, got 1$", id="within a list"),
        pytest.param(
            "vote(n=0;m=1;temperature=9)",
            r"n: .*got 0; temperature: .*got 9; unknown parameter 'm'",
            id="all problems at once",
        ),
    ],
)
def test_a_bad_name_or_value_says_what_is_allowed(text: str, message: str) -> None:
    with pytest.raises(RequestRejected, match=message) as caught:
        plan(text)
    assert caught.value.status == 400


def test_a_long_bad_value_is_not_repeated() -> None:
    with pytest.raises(RequestRejected) as caught:
        plan(f"vote(n={'x' * 500})")
    assert "xx" not in str(caught.value)


def test_parameters_of_the_request_replace_those_of_the_expression() -> None:
    found = plan("vote(n=3;judge=a)", given={"vote": {"n": 4}})
    assert (first(found).n, first(found).judge) == (4, "a")


def test_parameters_reach_every_stage_of_the_name() -> None:
    found = plan("vote(n=3)|reword&vote", given={"vote": {"n": 4}})
    assert [s.params.n for s in found.stages if isinstance(s.params, VoteParams)] == [4, 4]


def test_parameters_for_an_approach_that_is_not_there_are_refused() -> None:
    with pytest.raises(RequestRejected, match="sets 'span', which is not in the approach 'vote'"):
        plan("vote", given={"vote": {"n": 4}, "span": {}})


@pytest.mark.parametrize(
    ("text", "temperature", "expected"),
    [
        pytest.param("vote", None, 0.7, id="none given"),
        pytest.param("vote", 1.1, 1.1, id="within bounds"),
        pytest.param("vote", 1.5, 1.5, id="at its bound"),
        pytest.param("vote", 0.0, 0.7, id="0 where samples have to differ"),
        pytest.param("vote", 1.6, 0.7, id="above its bound"),
        pytest.param("vote", float("nan"), 0.7, id="not a number"),
        pytest.param("vote(temperature=0.9)", 1.1, 0.9, id="the expression is stronger"),
        pytest.param("span", 0.6, 0.6, id="fits the other parameters"),
        pytest.param("span", 0.9, 0.5, id="does not fit the other parameters"),
    ],
)
def test_the_clients_temperature_fills_an_open_one_within_its_bounds(
    text: str, temperature: float | None, expected: float
) -> None:
    assert first(plan(text, temperature=temperature)).temperature == expected


def test_optillm_params_are_stronger_than_the_clients_temperature() -> None:
    found = plan("vote", given={"vote": {"temperature": 0.2}}, temperature=1.0)
    assert first(found).temperature == 0.2


def test_an_error_does_not_blame_a_client_temperature_that_is_left_aside() -> None:
    with pytest.raises(RequestRejected) as caught:
        plan("vote(n=0)", temperature=0.0)
    assert "temperature" not in str(caught.value)


def test_a_stage_without_a_temperature_is_left_alone() -> None:
    assert plan("reword", temperature=1.0).label == "reword"


@pytest.mark.parametrize("text", ["none&vote", "vote&none", "reword&(none|vote)", "none&none"])
def test_a_plain_call_cannot_be_composed_by_an_ampersand(text: str) -> None:
    with pytest.raises(RequestRejected, match="'none' makes a plain call and cannot be composed"):
        plan(text)


def test_a_plain_call_can_be_a_branch() -> None:
    found = plan("none|vote")
    assert (found.label, found.passes_through) == ("none|vote", False)


@pytest.mark.parametrize(
    ("text", "passes"), [("none", True), ("((none))", True), ("none|none", False), ("vote", False)]
)
def test_only_a_lone_none_passes_through(text: str, passes: bool) -> None:
    assert plan(text).passes_through is passes


def test_a_plan_tells_its_label_text_models_and_calls() -> None:
    found = plan("reword & (vote(n=3, judge=j, models=[a, b]) | span)")
    assert found.label == "reword&vote|reword&span"
    assert found.text == "reword&(vote(n=3;judge=j;models=[a;b])|span)"
    assert found.model_groups == {"j", "a", "b"}
    assert found.expected_calls == 3 + 2


def test_a_plan_of_rewriters_alone_expects_the_call_that_ends_it() -> None:
    assert plan("reword&reword").expected_calls == 1


@pytest.mark.parametrize(
    ("text", "locally", "remotely"),
    [
        pytest.param("deepconf", 1, 32, id="alone"),
        pytest.param("deepconf(max_traces=100)", 1, 100, id="by its parameters"),
        pytest.param("deepconf & vote(n=3)", 3, 96, id="each sample is decoded"),
        pytest.param("reword & cot_decoding(k=4)", 1, 5, id="after a rewriter"),
        pytest.param("entropy_decoding", 1, 1, id="never remote"),
        pytest.param("vote(n=3)", 3, 3, id="no decoder"),
    ],
)
def test_a_decoder_on_a_remote_model_is_estimated_at_what_it_may_begin(
    text: str, locally: int, remotely: int
) -> None:
    found = plan(text)
    assert found.expected_calls == found.calls(decoded_remotely=False) == locally
    assert found.calls(decoded_remotely=True) == remotely


def test_an_approach_of_that_name_cannot_be_registered_twice() -> None:
    with pytest.raises(ValueError, match="registered twice"):
        rewriter("reword", NoParams, cost=lambda _: Cost(0, 0))(lambda *_: None)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["a-b", "a b", "", "1a", "a|b"])
def test_an_approach_has_a_name_that_expressions_can_say(name: str) -> None:
    with pytest.raises(ValueError, match="letters, digits and underscores"):
        rewriter(name, NoParams, cost=lambda _: Cost(0, 0))(lambda *_: None)  # type: ignore[arg-type]
