"""What the operator sets: strict keys, bounds, and limits that clients can only lower."""

from dataclasses import asdict

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

import optillm_hooks.approaches  # noqa: F401 (registers `re2`)
from optillm_hooks import settings
from optillm_hooks.budget import Limits
from optillm_hooks.registry import Approach, Cost, NoParams, Params, get_approach
from optillm_hooks.settings import (
    AliasSettings,
    LimitSettings,
    NamedApproaches,
    PlanCalls,
    RunSettings,
    Settings,
    StoreSettings,
    explain,
    forbidden,
)

SETTINGS = st.builds(
    LimitSettings,
    deadline_s=st.none() | st.floats(0.1, 100),
    max_calls=st.none() | st.integers(1, 100),
    max_tokens_total=st.none() | st.integers(1, 100),
    max_cost_usd=st.none() | st.floats(0.1, 100),
    max_parallel=st.none() | st.integers(1, 100),
)


@pytest.mark.parametrize(
    ("model", "given", "words"),
    [
        (AliasSettings, {"deadline": 90}, "unknown setting (did you mean 'deadline_s'?)"),
        (LimitSettings, {"max_cost": 1}, "max_tokens_total, max_cost_usd, max_parallel)"),
        (Settings, {"forms": {"header": "all"}}, "unknown setting (known: body, tag, prefix, "),
        (get_approach("moa").params, {"models": "a+b"}, "must be a list, such as [a, b]"),
        (get_approach("verified").params, {"verifiers": []}, "must have at least 1 item"),
        (Settings, {"conversation_log": {"directory": "logs"}}, "must be an absolute path"),
        (Settings, {"max_choices": 0}, "must be greater than or equal to 1"),
    ],
)
def test_a_mistake_is_told_with_what_to_write_instead(
    model: type[BaseModel], given: dict[str, object], words: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(given)
    assert words in explain(caught.value.errors()[0], model)


def test_a_stores_url_is_of_postgresql_and_its_driver_is_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = "postgresql://anna:geheim@host/name"
    assert StoreSettings.model_validate({"url": url}).url == url
    for wrong in ("mysql://anna:geheim@host/name", "geheim"):
        with pytest.raises(ValidationError) as caught:
            Settings.model_validate({"store": {"url": wrong}})
        said = explain(caught.value.errors()[0], Settings)
        assert said == "must begin with postgresql://"
    monkeypatch.setattr(settings, "find_spec", lambda name: None if name == "psycopg" else name)
    with pytest.raises(ValidationError, match=r"optillm-hooks\[postgres\]"):
        StoreSettings.model_validate({"url": url})


@given(SETTINGS, SETTINGS)
def test_a_client_can_lower_a_limit_and_never_raise_one(
    own: LimitSettings, asked: LimitSettings
) -> None:
    lowered = asdict(own.limits().lowered(asked.limits()))
    for name, value in own.model_dump().items():
        given = [limit for limit in (value, getattr(asked, name)) if limit is not None]
        assert lowered[name] == (min(given) if given else None)


@given(SETTINGS)
def test_each_limit_that_is_set_is_one_of_the_budget(settings: LimitSettings) -> None:
    assert asdict(settings.limits()) == settings.model_dump()
    assert settings.limits().lowered(Limits()) == settings.limits()


def test_calls_have_a_limit_where_nobody_sets_one() -> None:
    assert Limits(deadline_s=3).with_max_calls(64) == Limits(deadline_s=3, max_calls=64)
    assert Limits(max_calls=99).with_max_calls(64).max_calls == 99


@pytest.mark.parametrize("model", [LimitSettings, RunSettings, AliasSettings, Settings])
@pytest.mark.parametrize(
    "bad",
    [
        {"deadline_s": 0},
        {"deadline_s": -1},
        {"deadline_s": float("inf")},
        {"deadline_s": "soon"},
        {"max_calls": 0},
        {"max_calls": 1.5},
        {"max_tokens_total": 0},
        {"max_cost_usd": 0},
        {"max_cost_usd": float("nan")},
        {"max_parallel": 0},
        {"max_call": 3},
    ],
    ids=str,
)
def test_a_bad_limit_or_an_unknown_key_is_an_error(
    model: type[LimitSettings], bad: dict[str, object]
) -> None:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(bad)
    assert caught.value.errors()[0]["loc"] == (next(iter(bad)),)


@pytest.mark.parametrize(
    "bad", [{"on_error": "retry"}, {"locked": "perhaps"}, {"forms": {}}], ids=str
)
def test_a_bad_alias_is_an_error(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        AliasSettings.model_validate(bad)


def test_the_defaults_are_safe() -> None:
    settings = Settings()
    assert settings.default_approach is None
    assert (settings.forms.tag, settings.on_error, settings.progress) == ("safe", "error", False)
    alias = AliasSettings()
    assert (alias.locked, alias.inherit_access) == (False, False)


@pytest.mark.parametrize("model", [RunSettings, AliasSettings, Settings])
def test_a_bare_off_of_yaml_is_off(model: type[RunSettings]) -> None:
    read = yaml.safe_load("code_runner: off")
    assert read == {"code_runner": False}
    assert model.model_validate(read).code_runner == "off"
    assert model.model_validate({"code_runner": "monty"}).code_runner == "monty"
    with pytest.raises(ValidationError):
        model.model_validate({"code_runner": True})


@pytest.mark.parametrize("bad", [["/"], ["//etc"], ["etc"], [""], ["/a\0b"], ["/a"] * 33])
def test_programs_cannot_read_the_whole_host(bad: list[str]) -> None:
    with pytest.raises(ValidationError, match="binds"):
        Settings.model_validate({"code_runner_options": {"bubblewrap": {"binds": bad}}})


def test_an_alias_does_not_decide_what_programs_can_read() -> None:
    """Aliases may come from a database, written by those whom LiteLLM lets add models."""
    given = {"code_runner_options": {"bubblewrap": {"binds": ["/opt"]}}}
    Settings.model_validate(given)
    with pytest.raises(ValidationError, match="code_runner_options"):
        AliasSettings.model_validate(given)


@pytest.mark.parametrize("model", [LimitSettings, RunSettings, AliasSettings, Settings])
def test_settings_cannot_be_changed(model: type[LimitSettings]) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        model().max_calls = 5  # type: ignore[misc] # that is the point


def test_every_setting_is_described() -> None:
    for model in (AliasSettings, Settings, PlanCalls):
        for name, info in model.model_fields.items():
            assert info.description, name


async def _nothing(*_: object) -> None:
    raise AssertionError("never run")


RUNS_CODE = Approach(
    "runs_code", "answerer", NoParams, _nothing, lambda _: Cost(1, 1), frozenset({"code"})
)


@pytest.mark.parametrize(
    ("allowed", "refused"),
    [
        ("all", []),
        ("safe", ["runs_code"]),
        ("none", ["re2", "runs_code"]),
        (("re2",), ["runs_code"]),
        (("runs_code",), ["re2"]),
        ((), ["re2", "runs_code"]),
    ],
)
def test_a_form_may_name_what_the_operator_allows(
    allowed: NamedApproaches, refused: list[str]
) -> None:
    assert forbidden([get_approach("re2"), RUNS_CODE], allowed) == refused


def test_parameters_are_immutable_and_tell_the_models_they_name() -> None:
    class Naming(Params):
        model_group_fields = ("judge", "models")

        judge: str | None = None
        models: tuple[str, ...] = ()

    assert Naming().model_groups() == ()
    assert Naming(judge="a", models=("b", "c")).model_groups() == ("a", "b", "c")
    with pytest.raises(ValidationError, match="frozen"):
        Naming().judge = "x"  # type: ignore[misc] # that is the point
