"""Which approach a request asks for, on a real router: precedence, locks, forms, limits."""

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import litellm
import pytest
from litellm import Router
from litellm.utils import custom_llm_setup

from optillm_hooks import registry
from optillm_hooks.budget import Limits
from optillm_hooks.decoding.field import FIELD
from optillm_hooks.errors import RequestRejected
from optillm_hooks.gateway import provider, selection
from optillm_hooks.gateway.admission import admit
from optillm_hooks.gateway.deployments import alias_model, deployments, is_configured
from optillm_hooks.gateway.model_facts import model_facts
from optillm_hooks.gateway.operator_settings import alias_settings, read_settings
from optillm_hooks.gateway.selection import Selection, is_served, select, unknown_prefix
from optillm_hooks.gateway.tags import read_tags
from optillm_hooks.llm import Price
from optillm_hooks.pipeline import plan
from optillm_hooks.pipeline.plan import Plan
from optillm_hooks.registry import Cost, NoParams, Result, approach
from optillm_hooks.settings import Settings

pytestmark = pytest.mark.filterwarnings("ignore:.*`ReadOnly`:UserWarning")  # LiteLLM's own types

LIMITS = {"deadline_s": 90, "max_calls": 12, "max_cost_usd": 0.05, "on_error": "plain"}


def group(name: str, model: str, **info: Any) -> dict[str, Any]:
    params = {"model": model, "api_key": "none", "api_base": "http://127.0.0.1:9"}
    return {"model_name": name, "litellm_params": params, "model_info": info}


@pytest.fixture(scope="module")
def router() -> Iterator[Router]:
    before = litellm.custom_provider_map
    litellm.custom_provider_map = [{"provider": "optillm", "custom_handler": provider}]
    custom_llm_setup()
    yield Router(
        model_list=[
            group("base", "openai/gpt-4o-mini"),
            group("gpt-4o-mini", "openai/gpt-4o-mini"),
            group("mars-7b", "openai/mars"),
            group("moa-7b", "openai/moa"),
            group("served/*", "openai/*"),
            group("careful", "optillm/moa(proposers=2)/base", optillm=LIMITS),
            group("locked", "optillm/re2/base", optillm={"locked": True, "inherit_access": True}),
            group("broken", "optillm/re2/base", optillm={"max_call": 3}),
            group("nested", "optillm/re2/careful"),
            group("baseless", "optillm/re2/nobody"),
            group("optillm/*", "optillm/*"),
        ],
        model_group_alias={"short": "base"},
    )
    litellm.custom_provider_map = before


@pytest.fixture(autouse=True)
def _runs_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_approaches", dict(registry._approaches))

    @approach("runs_code", NoParams, cost=lambda _: Cost(1, 1), needs=["code"])
    async def runs_code(*_: object) -> Result:
        raise AssertionError("nothing runs here")


def ask(model: Any, text: str = "hi", **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **fields}


def tagged(approach: str) -> str:
    return f"<optillm_approach>{approach}</optillm_approach> hi"


def selected(
    router: Router, request: dict[str, Any], settings: Settings | None = None
) -> Selection:
    model = request["model"]
    if not is_served(model, router) and (mistake := unknown_prefix(model, router)) is not None:
        raise mistake.error
    found = read_tags(request)
    request.update(found.changed)
    selection = select(request, router, settings or Settings(), tag=found.approach)
    assert selection is not None
    return selection


def admitted(
    router: Router, request: dict[str, Any], settings: Settings | None = None
) -> Selection:
    """Select and admit, without a key."""
    settings = settings or Settings()
    found = selected(router, request, settings)
    asyncio.run(admit(found, settings, router, None, n=request.get("n"), route="chat"))
    return found


def told(found: Selection) -> tuple[str, str, str]:
    return found.plan.text, found.base, found.source


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        pytest.param(ask("base", optillm_approach="moa"), ("moa", "base", "body"), id="body"),
        pytest.param(ask("base", tagged("moa")), ("moa", "base", "tag"), id="tag"),
        pytest.param(ask("moa-base"), ("moa", "base", "prefix"), id="prefix"),
        pytest.param(ask("moa-gpt-4o-mini"), ("moa", "gpt-4o-mini", "prefix"), id="prefix, dashes"),
        pytest.param(ask("optillm/moa/base"), ("moa", "base", "prefix"), id="provider's own form"),
        pytest.param(ask("moa-short"), ("moa", "short", "prefix"), id="base is a group's alias"),
        pytest.param(
            ask("moa-served/x"), ("moa", "served/x", "prefix"), id="base under a wildcard"
        ),
        pytest.param(ask("careful"), ("moa(proposers=2)", "base", "alias"), id="alias"),
        pytest.param(
            ask("careful", optillm_approach="re2"), ("re2", "base", "body"), id="body on an alias"
        ),
        pytest.param(
            ask("re2-base", optillm_approach="none"),
            ("none", "base", "body"),
            id="body before prefix",
        ),
        pytest.param(ask("moa-moa-7b"), ("moa", "moa-7b", "prefix"), id="a model called moa-7b"),
        pytest.param(
            ask("base", optillm_approach="moa(proposers=2, layers=2)"),
            ("moa(proposers=2;layers=2)", "base", "body"),
            id="commas in the body",
        ),
        pytest.param(ask("base", optillm_approach=" re2 "), ("re2", "base", "body"), id="blanks"),
    ],
)
def test_what_is_asked_for(
    router: Router, request_: dict[str, Any], expected: tuple[str, str, str]
) -> None:
    assert told(selected(router, request_)) == expected


@pytest.mark.parametrize(
    "request_",
    [
        ask("base"),
        ask("mars-7b"),
        ask("moa-7b"),
        ask("served/anything"),
        ask("short"),
        ask("nobody-knows"),
        ask("base", optillm_approach=None),
        ask(None),
        ask(5),
        {},
    ],
    ids=str,
)
def test_a_request_that_names_no_approach_is_left_alone(
    router: Router, request_: dict[str, Any]
) -> None:
    before = {k: v for k, v in request_.items() if k != "optillm_approach"}
    assert select(request_, router, Settings()) is None
    assert request_ == before


def test_the_default_approach_is_the_weakest(router: Router) -> None:
    settings = Settings(default_approach="re2")
    assert told(selected(router, ask("base"), settings)) == ("re2", "base", "default")
    assert told(selected(router, ask("moa-base"), settings)) == ("moa", "base", "prefix")
    assert told(selected(router, ask("careful"), settings))[2] == "alias"
    none = selected(router, ask("base", optillm_approach="none"), settings)
    assert none.plan.passes_through


def test_own_fields_are_taken_out_of_the_request(router: Router) -> None:
    request = ask(
        "base",
        optillm_approach="re2",
        optillm_params={"re2": {"think": True}},
        optillm_limits={"max_calls": 3},
        user="u",
    )
    selected(router, request)
    assert request == ask("base", user="u")


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        pytest.param(ask("base", optillm_approach="nope"), "unknown approach 'nope'", id="unknown"),
        pytest.param(
            ask("base", optillm_approach=5), "must be a string", id="body of another type"
        ),
        pytest.param(ask("base", optillm_approach=["moa"]), "must be a string", id="a list"),
        pytest.param(ask("base", optillm_approach=""), "column 1: expected the name", id="empty"),
        pytest.param(
            ask("mcst-base"),
            r"model 'mcst-base': unknown approach 'mcst' \(did you mean 'mcts'\?\)",
            id="typo",
        ),
        pytest.param(ask("re2-moa-base"), "write re2&moa-", id="two slugs"),
        pytest.param(ask("re2-nobody"), "no model 'nobody' is configured", id="unknown base"),
        pytest.param(ask("re2-careful"), "itself an alias.*body field", id="prefix on an alias"),
        pytest.param(ask("moa"), "lacks a base model", id="no base"),
        pytest.param(
            ask("optillm/moa"), "is not <expression>/<base model>", id="no base, our form"
        ),
        pytest.param(ask("optillm/re2/careful"), "itself an alias", id="our form on an alias"),
        pytest.param(ask("re2-optillm/moa/base"), "no model 'optillm/moa/base'", id="recursion"),
        pytest.param(ask("nested"), "itself an alias", id="an alias of an alias"),
        pytest.param(ask("baseless"), "no model 'nobody'", id="an alias of nothing"),
        pytest.param(ask("broken"), r"model_info.optillm.max_call", id="an alias set up wrongly"),
        pytest.param(ask("locked", optillm_approach="moa"), "locked to its approach", id="locked"),
        pytest.param(
            ask("locked", tagged("moa")), "only where nothing else does", id="locked, by tag"
        ),
        pytest.param(ask("base", tagged("runs_code")), "a tag may not name runs_code", id="tag"),
        pytest.param(ask("base", tagged("pvg")), "maximum is 10", id="safe tag"),
        pytest.param(ask("moa(proposers=2,layers=2)-base"), "','|comma", id="comma in a name"),
        pytest.param(
            ask("base", optillm_params={"moa": {}}),
            "need an approach to apply to",
            id="params alone",
        ),
        pytest.param(
            ask("base", optillm_limits={"max_calls": 3}),
            "need an approach to apply to",
            id="limits alone",
        ),
        pytest.param(
            ask("moa-base", optillm_params=[1]), "must be an object of objects", id="params: a list"
        ),
        pytest.param(
            ask("moa-base", optillm_params={"moa": 5}), "must be an object of objects", id="flat"
        ),
        pytest.param(
            ask("moa-base", optillm_params={"re2": {}}), "sets 're2', which is not", id="params"
        ),
        pytest.param(
            ask("moa-base", optillm_params={"moa": {"votes": 1}}),
            "unknown parameter 'votes'",
            id="param",
        ),
        pytest.param(
            ask("moa-base", optillm_limits={"max_calls": 0}), "optillm_limits.max_calls", id="limit"
        ),
        pytest.param(
            ask("moa-base", optillm_limits={"calls": 1}), "optillm_limits.calls", id="unknown limit"
        ),
        pytest.param(ask("moa-base", optillm_limits=[1]), "optillm_limits", id="limits: a list"),
    ],
)
def test_what_cannot_be_served_is_refused(
    router: Router, request_: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestRejected, match=message) as caught:
        admitted(router, request_)
    assert caught.value.status == 400


def test_what_runs_code_may_be_named_in_other_ways(router: Router) -> None:
    assert admitted(router, ask("base", optillm_approach="runs_code")).source == "body"
    assert admitted(router, ask("runs_code-base")).source == "prefix"


@pytest.mark.parametrize(
    ("forms", "request_"),
    [
        ({"body": "safe"}, ask("base", optillm_approach="runs_code")),
        ({"body": "none"}, ask("base", optillm_approach="re2")),
        ({"prefix": ("moa",)}, ask("re2-base")),
        ({"prefix": "none"}, ask("optillm/re2/base")),
        ({"tag": ("moa",)}, ask("base", tagged("re2&moa"))),
        ({"body": "none"}, ask("careful", optillm_approach="re2")),
    ],
    ids=str,
)
def test_the_operator_says_what_a_form_may_name(
    router: Router, forms: dict[str, Any], request_: dict[str, Any]
) -> None:
    with pytest.raises(RequestRejected, match="may not name"):
        admitted(router, request_, Settings.model_validate({"forms": forms}))


PARAMETERS, MODELS, PRESET = "bon(n=2)", "bon(n=2;judge=base)", "fusion(preset=own)"


@pytest.mark.parametrize(
    ("forms", "calls", "allowed"),
    [
        ({}, 8, {"moa", "re2&moa"}),
        ({"tag_parameters": "values"}, 8, {"moa", "re2&moa", PARAMETERS}),
        ({"tag_parameters": "models"}, 8, {"moa", "re2&moa", PARAMETERS, MODELS, PRESET}),
        ({"tag": "all"}, 14, {"moa", "re2&moa", "moa&moa", "plansearch", "mcts", "z3"}),
        ({"tag": ("z3",)}, 8, {"z3"}),
        ({"tag": "none"}, 256, set()),
    ],
    ids=["by default", "values", "models", "all", "one", "none"],
)
def test_the_operator_says_what_a_tag_may_do(
    router: Router, forms: dict[str, Any], calls: int, allowed: set[str]
) -> None:
    presets = {
        "presets": {"own": {"models": ["base"]}}
    }  # it names a model, though the tag does not
    settings = Settings.model_validate(
        {"forms": forms, "plan_calls": {"tag": calls}, "fusion": presets}
    )
    free = ("moa", "re2&moa", "moa&moa", "plansearch", "mcts", "z3", "moa|re2")
    found = set[str]()
    for text in (*free, PARAMETERS, MODELS, PRESET):
        with suppress(RequestRejected):
            assert admitted(router, ask("base", tagged(text)), settings).source == "tag"
            found.add(text)
    assert found == allowed


def test_forms_do_not_bind_aliases_and_the_default(router: Router) -> None:
    closed = {"body": "none", "tag": "none", "prefix": "none"}
    settings = Settings.model_validate({"forms": closed, "default_approach": "re2"})
    assert admitted(router, ask("careful"), settings).source == "alias"
    assert admitted(router, ask("base"), settings).source == "default"


def test_an_alias_has_its_own_limits_also_under_another_approach(router: Router) -> None:
    for request in (ask("careful"), ask("careful", optillm_approach="re2")):
        found = selected(router, request, Settings(max_calls=3, progress=True))
        assert found.on_alias
        assert found.limits == Limits(deadline_s=90.0, max_calls=12, max_cost_usd=0.05)
        assert (found.settings.on_error, found.settings.progress) == ("plain", False)


@pytest.mark.parametrize(
    ("request_", "limit"),
    [
        (ask("moa-base"), 64),
        (ask("base", tagged("moa")), 64),
        (ask("base", optillm_approach="moa"), 64),
        (ask("optillm/moa/base"), 64),
        (ask("careful", optillm_approach="moa"), 64),
        (ask("careful", optillm_params={"moa": {"layers": 2}}), 64),
        (ask("careful", optillm_params={"moa": {"temperature": 0.5}}), 256),
        (ask("careful"), 256),
        (ask("base"), 256),
    ],
    ids=["prefix", "tag", "body", "our form", "on an alias", "dearer", "same", "alias", "default"],
)
def test_a_plan_may_make_the_calls_allowed_to_who_spelt_it(
    router: Router, request_: dict[str, Any], limit: int
) -> None:
    found = selected(router, request_, Settings(default_approach="re2"))
    assert found.calls.max_calls == limit
    found.calls.check(found.plan, 1)
    with pytest.raises(RequestRejected, match=rf"\d+ model calls, but the maximum is {limit}"):
        found.calls.check(found.plan, limit + 1)


def test_where_nobody_limits_calls_they_end_at_what_a_plan_may_be_estimated_at(
    router: Router,
) -> None:
    settings = Settings.model_validate({"plan_calls": {"alias": 9, "client": 7}})
    assert selected(router, ask("moa-base"), settings).limits.max_calls == 7
    assert selected(router, ask("locked"), settings).limits.max_calls == 9
    assert selected(router, ask("careful"), settings).limits.max_calls == 12


@pytest.mark.parametrize("approach", registry.all_approaches(), ids=lambda found: found.name)
def test_no_approach_comes_near_the_limit_at_its_defaults(approach: registry.Approach) -> None:
    # longcepo reads a long text once for each of three questions.
    choices = 1 if approach.name == "longcepo" else 2
    assert choices * approach.cost(approach.params()).calls <= Settings().plan_calls.client


def test_other_requests_have_the_operators_limits(router: Router) -> None:
    found = selected(router, ask("moa-base"), Settings(max_calls=3, on_error="plain"))
    assert (found.limits.max_calls, found.settings.on_error) == (3, "plain")
    assert not found.on_alias


def test_a_client_can_only_lower_limits(router: Router) -> None:
    asked = {"max_calls": 99, "deadline_s": 5, "max_parallel": 2}
    limits = selected(router, ask("careful", optillm_limits=asked)).limits
    assert (limits.max_calls, limits.deadline_s, limits.max_parallel) == (12, 5.0, 2)


def test_access_to_the_base_is_lent_only_where_the_alias_says_so(router: Router) -> None:
    assert selected(router, ask("locked")).inherits_access
    assert not selected(router, ask("careful")).inherits_access
    assert not selected(router, ask("moa-base")).inherits_access


def test_params_of_the_body_replace_those_of_the_alias(router: Router) -> None:
    request = ask("careful", optillm_params={"moa": {"proposers": 5}})
    [found] = selected(router, request).plan.stages
    assert found.params.model_dump()["proposers"] == 5


def test_the_clients_temperature_reaches_the_parameter(router: Router) -> None:
    [found] = selected(router, ask("moa-base", temperature=0.3)).plan.stages
    assert found.params.model_dump()["temperature"] == 0.3
    [found] = selected(router, ask("moa-base", temperature="hot")).plan.stages
    assert found.params.model_dump()["temperature"] == 1.0


def test_optillms_body_fields_set_parameters_and_are_taken_out(router: Router) -> None:
    request = ask("cot_reflection-base", return_full_response=True)
    [found] = selected(router, request).plan.stages
    assert found.params.model_dump()["show_thinking"] is True
    assert "return_full_response" not in request


def test_optillm_params_are_stronger_than_optillms_body_fields(router: Router) -> None:
    request = ask(
        "cot_reflection-base",
        return_full_response=True,
        optillm_params={"cot_reflection": {"show_thinking": False}},
    )
    [found] = selected(router, request).plan.stages
    assert found.params.model_dump()["show_thinking"] is False


def test_a_bad_body_field_of_optillms_is_refused(router: Router) -> None:
    with pytest.raises(RequestRejected, match="show_thinking"):
        select(ask("cot_reflection-base", return_full_response="perhaps"), router, Settings())


FOREIGN: dict[str, Any] = {
    "return_full_response": True,
    "mcts_simulations": 3,
    "mcts_simulation": 3,
    "best_of_n": 3,
    "cepo_bestofn_n": 3,
    "spl_learning": True,
    "selection_temperature": 0.1,
    "deepthink_samples": 3,
}


@pytest.mark.parametrize("field", FOREIGN)
def test_a_field_of_optillm_that_no_approach_reads_is_refused_by_name(
    router: Router, field: str
) -> None:
    with pytest.raises(RequestRejected, match=f"'{field}'") as refused:
        select(ask("re2-base", **{field: FOREIGN[field]}), router, Settings())
    assert refused.value.param == field


def test_without_an_approach_or_a_value_it_is_left_to_the_provider(router: Router) -> None:
    plain = ask("base", **FOREIGN)
    assert select(plain, router, Settings()) is None
    assert FOREIGN.items() <= plain.items()
    nulls: dict[str, Any] = dict.fromkeys(FOREIGN)
    selected(router, ask("re2-base", **nulls))


@pytest.mark.parametrize("field", ["include_reasoning", "k", "reasoning_effort", "prefill", "foo"])
def test_a_field_that_providers_read_too_is_left_to_them(router: Router, field: str) -> None:
    request = ask("re2-base", **{field: "low"})
    selected(router, request)
    assert request[field] == "low"


def test_optillms_options_of_cepo_set_its_parameters(router: Router) -> None:
    request = ask("cepo-base", cepo_bestofn_n=2, cepo_planning_m=4)
    [stage] = selected(router, request).plan.stages
    assert (stage.params.bestofn_n, stage.params.planning_m) == (2, 4)  # type: ignore[attr-defined]
    assert not any(field.startswith("cepo_") for field in request)


def test_fields_in_extra_body_are_read_as_the_request_s_own(router: Router) -> None:
    """OpenAI's SDK unpacks it; other clients send it as it is."""
    nested = {"optillm_approach": "mcts", "mcts_simulations": 3, "top_k": 5}
    request = ask("base", extra_body=nested)
    [stage] = selected(router, request).plan.stages
    assert stage.params.simulations == 3  # type: ignore[attr-defined]
    assert request["extra_body"] == {"top_k": 5}
    assert nested["mcts_simulations"] == 3
    with pytest.raises(RequestRejected, match="did you mean 'optillm_approach'"):
        select(ask("base", extra_body={"optillm_aproach": "moa"}), router, Settings())
    plain = ask("base", extra_body={"mcts_simulations": 3})
    assert select(plain, router, Settings()) is None
    assert plain == ask("base", extra_body={"mcts_simulations": 3})


@pytest.mark.parametrize("name", ["self-consistency", "cot-reflection", "majority-voting"])
def test_dashes_in_an_approachs_name_are_recognised(router: Router, name: str) -> None:
    meant = f"{name.replace('-', '_')}-base"
    with pytest.raises(RequestRejected, match=f"did you mean '{meant}'"):
        selected(router, ask(f"{name}-base"))
    assert select(ask(f"served/{name}-base"), router, Settings()) is None


def test_a_misspelt_field_of_ours_never_reaches_a_provider(router: Router) -> None:
    with pytest.raises(RequestRejected, match="did you mean 'optillm_approach'"):
        select(ask("base", optillm_aproach="moa"), router, Settings())


@pytest.mark.parametrize("model", ["base", "re2-base", "careful"])
def test_auto_stands_for_the_approach_in_the_model_name(router: Router, model: str) -> None:
    request = ask(model, optillm_approach="auto")
    plain = select(ask(model), router, Settings())
    auto = select(request, router, Settings())
    assert auto == plain
    assert request == ask(model)


@pytest.mark.parametrize("text", ["proxy", "re2&proxy", "moa|proxy", "(proxy|moa)&re2"])
@pytest.mark.parametrize("form", ["body", "prefix", "our prefix"])
def test_a_plugin_of_optillm_is_refused_with_what_to_use_instead(
    router: Router, text: str, form: str
) -> None:
    request = {
        "body": ask("base", optillm_approach=text),
        "prefix": ask(f"{text}-base"),
        "our prefix": ask(f"optillm/{text}/base"),
    }[form]
    with pytest.raises(RequestRejected, match=r"'proxy' is a plugin of OptiLLM .* model_name"):
        selected(router, request)


def test_a_plugin_is_known_before_any_model_but_not_in_a_models_own_name(router: Router) -> None:
    with pytest.raises(RequestRejected, match="'proxy' is a plugin"):
        selected(router, ask("proxy-nobody"))
    assert select(ask("served/memory-7b"), router, Settings()) is None


@pytest.mark.parametrize("field", ["optillm_params", "optillm_limits"])
@pytest.mark.parametrize("empty", [{}, None])
def test_empty_parameters_and_limits_ask_for_nothing(
    router: Router, field: str, empty: Any
) -> None:
    assert select(ask("base", **{field: empty}), router, Settings()) is None
    assert selected(router, ask("re2-base", **{field: empty})).plan.label == "re2"
    assert selected(router, ask("bon-base", optillm_params={"bon": empty})).plan.label == "bon"


def test_settings_of_the_yaml_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_settings() == Settings()
    monkeypatch.setattr(litellm, "optillm_settings", {"max_choices": 3}, raising=False)
    assert read_settings().max_choices == 3
    monkeypatch.setattr(litellm, "optillm_settings", {"max_choice": 3}, raising=False)
    with pytest.raises(RequestRejected, match=r"optillm_settings.max_choice: "):
        read_settings()


def test_settings_are_validated_again_only_when_they_have_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = {"max_choices": 3}
    monkeypatch.setattr(litellm, "optillm_settings", given, raising=False)
    first = read_settings()
    monkeypatch.setattr(litellm, "optillm_settings", dict(given))
    assert read_settings() is first
    given["max_choices"] = 4
    monkeypatch.setattr(litellm, "optillm_settings", given)
    assert read_settings().max_choices == 4
    given["max_choices"] = 5
    assert read_settings().max_choices == 5


def test_an_aliass_settings_are_validated_again_only_when_they_have_changed() -> None:
    one, other = ({"model_info": {"id": name, "optillm": {"max_calls": 3}}} for name in "ab")
    first = alias_settings(one)
    assert alias_settings(other) == first
    assert alias_settings(other) is not first
    assert alias_settings({"model_info": dict(one["model_info"])}) is first
    assert alias_settings({"model_info": {"id": "a", "optillm": {"max_calls": 4}}}).max_calls == 4
    with pytest.raises(RequestRejected, match=r"model_info.optillm.max_call: "):
        alias_settings({"model_info": {"id": "a", "optillm": {"max_call": 4}}})


@pytest.mark.parametrize(
    ("request_", "resolved"),
    [
        (ask("careful"), 1),
        (ask("careful", temperature=0.5), 1),
        (ask("cot_reflection-base", return_full_response=True), 1),
        (ask("careful", optillm_params={"moa": {"layers": 2}}), 2),
    ],
    ids=["alias", "temperature", "body field", "parameters of an alias"],
)
def test_a_plan_is_resolved_once_but_to_compare_it_with_the_operators(
    router: Router, monkeypatch: pytest.MonkeyPatch, request_: dict[str, Any], resolved: int
) -> None:
    plans = []

    def resolve(*args: Any, **options: Any) -> Plan:
        plans.append(plan.resolve(*args, **options))
        return plans[-1]

    monkeypatch.setattr(selection, "resolve", resolve)
    selected(router, request_)
    assert len(plans) == resolved


def test_what_the_router_is_asked(router: Router) -> None:
    assert is_configured(router, "base")
    assert is_configured(router, "short")
    assert not is_configured(router, "served/x")
    assert [alias_model(d) for d in deployments(router, "careful")] == ["moa(proposers=2)/base"]
    assert [alias_model(d) for d in deployments(router, "served/x")] == [None]
    assert deployments(router, "nobody") == []


@pytest.mark.parametrize(
    ("model", "price", "max_n", "max_output_tokens"),
    [
        pytest.param("base", Price(1.5e-07, 6e-07), 128, 16384, id="in LiteLLM's map"),
        pytest.param("mars-7b", None, 128, None, id="unknown price"),
        pytest.param("nobody", None, 1, None, id="unknown model"),
    ],
)
def test_facts_of_a_model(
    router: Router,
    model: str,
    price: Price | None,
    max_n: int,
    max_output_tokens: int | None,
) -> None:
    facts = model_facts(router, model)
    assert (facts.price, facts.max_n) == (price, max_n)
    assert facts.max_output_tokens == max_output_tokens


def test_what_a_local_model_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """LiteLLM refuses a reasoning effort for it, unless the hook allows it, as it does."""
    handler = {"provider": "optillm-local", "custom_handler": litellm.CustomLLM()}
    monkeypatch.setattr(litellm, "custom_provider_map", [handler])
    custom_llm_setup()
    model = {"model_name": "mine", "litellm_params": {"model": "optillm-local/smollm2"}}
    facts = model_facts(litellm.Router([model]), "mine")
    assert facts.supports("n")
    assert facts.supports(FIELD)
    assert facts.supports("reasoning_effort")
    assert not facts.supports("web_search_options")


def test_a_group_costs_its_dearest_deployment_and_nothing_is_guessed() -> None:
    cheap = group("x", "openai/a", input_cost_per_token=1e-6, output_cost_per_token=5e-6)
    dear = group("x", "openai/b", input_cost_per_token=2e-6, output_cost_per_token=3e-6)
    unknown = group("x", "openai/c")
    assert model_facts(Router(model_list=[cheap, dear]), "x").price == Price(2e-6, 5e-6)
    assert model_facts(Router(model_list=[cheap, unknown]), "x").price is None


# ---------------------------------------------------------------------- OptiLLM's decoding fields


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (ask("base"), "cot_decoding"),
        (ask("none-base"), "cot_decoding"),
        (ask("bon-base"), "cot_decoding&bon"),
        (ask("re2&bon-base"), "cot_decoding&re2&bon"),
        (ask("none|bon-base"), "cot_decoding|cot_decoding&bon"),
        (ask("cot_decoding(k=3)&bon-base"), "cot_decoding(k=3)&bon"),
        (ask("careful"), "cot_decoding&moa(proposers=2)"),
        (ask("base", tagged("bon")), "cot_decoding&bon"),
    ],
    ids=["alone", "none", "prefix", "chain", "branches", "named already", "alias", "tag"],
)
def test_the_field_decoding_puts_a_decoder_before_the_approach(
    router: Router, request_: dict[str, Any], expected: str
) -> None:
    request = {**request_, "decoding": "cot_decoding"}
    assert selected(router, request).plan.text == expected
    assert "decoding" not in request


DECODING_FIELDS = [
    ("cot_decoding", "k", 3),
    ("cot_decoding", "aggregate_paths", False),
    ("thinkdeeper", "reasoning_effort", "high"),
    ("thinkdeeper", "min_thinking_tokens", 5),
    ("thinkdeeper", "max_thinking_tokens", 50),
    ("thinkdeeper", "max_thoughts", 3),
    ("thinkdeeper", "thought_switch_tokens", ["Hm,"]),
    ("thinkdeeper", "prefill", "First,"),
    ("thinkdeeper", "start_think_token", "<t>"),
    ("thinkdeeper", "end_think_token", "</t>"),
    ("autothink", "pattern_strengths", {"careful": -0.5}),
    ("deepconf", "variant", "high"),
    ("deepconf", "warmup_samples", 3),
    ("deepconf", "consensus_threshold", 0.5),
    ("deepconf", "max_traces", 7),
    ("deepconf", "window_size", 99),
    ("deepconf", "min_trace_length", 9),
    ("deepconf", "max_tokens_per_trace", 99),
    ("deepconf", "confidence_metric", "average_confidence"),
]


@pytest.mark.parametrize(
    ("decoding", "field", "value"), DECODING_FIELDS, ids=[f"{d} {f}" for d, f, _ in DECODING_FIELDS]
)
def test_each_field_of_a_decoding_method_reaches_it(
    router: Router, decoding: str, field: str, value: Any
) -> None:
    request = ask("base", decoding=decoding, **{field: value})
    [found] = selected(router, request).plan.stages
    assert found.params.model_dump(mode="json")[field] == value
    assert field not in request


@pytest.mark.parametrize(
    ("decoding", "field", "value"),
    [
        ("cot_decoding", "num_beams", 1),
        ("cot_decoding", "length_penalty", 1.0),
        ("cot_decoding", "no_repeat_ngram_size", 0),
        ("cot_decoding", "early_stopping", False),
        ("deepconf", "include_stats", True),
        ("autothink", "steering_dataset", None),
        ("autothink", "target_layer", None),
    ],
)
def test_a_field_without_effect_is_taken_from_the_request_and_changes_nothing(
    router: Router, decoding: str, field: str, value: Any
) -> None:
    request = ask("base", decoding=decoding, **{field: value})
    plain = selected(router, ask("base", decoding=decoding)).plan
    assert selected(router, request).plan == plain
    assert field not in request


@pytest.mark.parametrize(
    ("decoding", "fields", "message"),
    [
        ("beam", {}, r"unknown decoding 'beam'; known: autothink, cot_decoding, deepconf, ent"),
        (["cot_decoding"], {}, "unknown decoding"),
        ("cot_decoding", {"k": 0}, "cot_decoding: k: .* greater than or equal to 1, got 0"),
        ("cot_decoding", {"num_beams": 4}, "cot_decoding: num_beams: .* 1, got 4"),
        ("cot_decoding", {"length_penalty": 0.5}, "length_penalty: .* equal to 1, got 0.5"),
        ("cot_decoding", {"optillm_approach": "deepconf&bon"}, "one decoder, got cot_dec.* and d"),
        ("autothink", {"steering_dataset": "some/set"}, "vectors are configured by the operator"),
    ],
    ids=[
        "unknown",
        "no text",
        "bounds",
        "beams",
        "penalty",
        "two decoders",
        "a data set of the client's",
    ],
)
def test_a_wrong_decoding_is_refused(
    router: Router, decoding: Any, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestRejected, match=message):
        select(ask("base", decoding=decoding, **fields), router, Settings())


def test_a_locked_alias_takes_no_decoding_and_a_body_only_those_that_it_may_name(
    router: Router,
) -> None:
    with pytest.raises(RequestRejected, match="locked to its approach; remove the one in the body"):
        select(ask("locked", decoding="cot_decoding"), router, Settings())
    nothing = Settings.model_validate({"forms": {"body": "none"}})
    with pytest.raises(RequestRejected, match="a body may not name cot_decoding"):
        admitted(router, ask("bon-base", decoding="cot_decoding"), nothing)


def test_without_a_decoder_the_same_fields_are_the_providers(router: Router) -> None:
    fields: dict[str, Any] = {"reasoning_effort": "high", "k": 3, "variant": "low", "top_k": 5}
    assert select(plain := ask("base", **fields), router, Settings()) is None
    assert plain == ask("base", **fields)
    selected(router, composed := ask("bon-base", **fields))
    assert {name: composed[name] for name in fields} == fields


def test_a_null_decoding_is_none(router: Router) -> None:
    assert select(request := ask("base", decoding=None), router, Settings()) is None
    assert "decoding" not in request


LONG = "x" * 100_000


@pytest.mark.parametrize(
    "fields",
    [
        {"optillm_" + LONG: 1},
        {"optillm_approach": "moa", "optillm_params": {LONG: {"n": 1}}},
        {"optillm_approach": "moa", "optillm_params": {"moa": {LONG: 1}}},
        {"optillm_approach": "moa", "optillm_params": {"moa": {f"f{i}": 1 for i in range(999)}}},
        {"optillm_approach": "moa", "optillm_limits": {LONG: 1}},
        {"optillm_approach": "cepo", "cepo_" + LONG: 1},
        {"model": f"moaa{LONG}-base"},
        {"decoding": LONG},
    ],
    ids=lambda fields: "+".join(fields)[:40],
)
def test_a_refusal_does_not_give_back_all_that_was_sent(
    router: Router, fields: dict[str, Any]
) -> None:
    with pytest.raises(RequestRejected) as caught:
        selected(router, ask("base") | fields)
    assert len(str(caught.value)) < 2000
    assert len(caught.value.param or "") < 200
