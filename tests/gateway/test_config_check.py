"""Each mistake in the proxy's YAML is told with its place, and with what to write instead."""

import logging
from typing import Any

import pytest

from optillm_hooks.gateway.config_check import problems
from tests.proxy import Config, alias, hooked_config, model_group

MODEL = model_group("base", "http://127.0.0.1:9")
SCORER = model_group("rank", "http://127.0.0.1:9", model="cohere/rerank-v3.5")


def config(*models: dict[str, Any], **settings: object) -> dict[str, Any]:
    return hooked_config([MODEL, *models], optillm_settings=settings)


@pytest.fixture(autouse=True)
def _variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_MASTER_KEY", "sk-none")


def test_a_right_configuration_has_no_problems() -> None:
    careful, ranked = alias("careful", "moa", max_calls=9), alias("ranked", "bon(judge=rank)")
    right = config(SCORER, careful, ranked, default_approach="re2", max_choices=3)
    assert problems(right) == []
    assert problems({}) == problems({"litellm_settings": None, "model_list": None}) == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (config(max_choice=3), "optillm_settings.max_choice"),
        (config(forms={"tags": "all"}), "optillm_settings.forms.tags"),
        (
            config(fusion={"presets": {"a": {"models": ["base"], "modles": 1}}}),
            "fusion.presets.a.modles: unknown setting (did you mean 'models'?) (known: ",
        ),
        (
            config(fusion={"presets": {"a": {"models": ["x"]}}}),
            "fusion.presets.a: it names 'x', which is not configured",
        ),
        (config(fusion={"presets": {"a": {"judge": "base"}}}), "fusion.presets.a.models: Field"),
        (config(alias("a", "fusion(preset=b)")), "unknown preset 'b' (known: none; the operator"),
        (config(plan_calls={"client": 0}), "optillm_settings.plan_calls.client"),
        (config(default_approach="mao"), "unknown approach 'mao'"),
        (config(default_approach="auto"), "'auto' stands for the approach in the model's name"),
        (
            config(alias("a", "re2&proxy")),
            "model_list[1].litellm_params.model: approach expression, column 5: 'proxy' is",
        ),
        (config(default_approach="bon(n=64;ratings=16)"), "1088 model calls"),
        (
            config(alias("a", "moa", max_call=9)),
            "model_list[1].model_info.optillm.max_call: unknown setting (did you mean",
        ),
        (config(alias("a", "moa&")), "model_list[1].litellm_params.model: approach expression"),
        (
            config(alias("a", "bon(n=8)"), plan_calls={"alias": 9}),
            "litellm_params.model: this request",
        ),
        (
            config(SCORER, alias("a", "cascade(strong=rank)")),
            "model_list[2].litellm_params.model: the model 'rank' only scores",
        ),
        (config(SCORER, alias("a", "re2", "rank")), "the base model 'rank' only scores"),
        (
            config(SCORER, fusion={"presets": {"b": {"models": ["base"], "judge": "rank"}}}),
            "fusion.presets.b: the model 'rank' only scores answers",
        ),
        (
            config(fusion={"presets": {"b": {"models": ["base"], "first_m": 2}}}),
            "optillm_settings.fusion.presets.b: fusion: first_m must be at most",
        ),
        (config(alias("a", "re2", code_runner="litellm")), "sandbox_tools has no entry ''"),
        (
            config(
                alias("a", "re2", code_runner="bubblewrap"),
                code_runner_options={"bubblewrap": {"python": "/no/python"}},
            ),
            "/no/python is not a Python interpreter",
        ),
        (
            config(code_runner_options={"bubblewrap": {"binds": ["/"]}}),
            "optillm_settings.code_runner_options.bubblewrap.binds",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_problem_is_told_once(wrong: dict[str, Any], said: str) -> None:
    [problem] = problems(wrong)
    assert said in str(problem)
    assert "refused" in problem.text
    assert problem.level == logging.ERROR


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (alias("a", "re2", "nobody"), "it calls 'nobody', which is not configured"),
        (alias("a", "bon(judge=nobody)"), "it calls 'nobody', which is not configured"),
        (alias("a", "moa(models=[base,x])"), "it calls 'x', which is not configured"),
        (alias("a", "re2", "a"), "'a', which is itself an alias"),
        (alias("a", "re2", "optillm/re2/base"), "'optillm/re2/base', which is not configured"),
        (alias("a", "re2", "served"), "'served', which is not configured"),
    ],
    ids=str,
)
def test_an_alias_of_a_model_that_does_not_exist_is_told(wrong: Config, said: str) -> None:
    """With a database, a model may come later."""
    [problem] = problems(config(wrong))
    assert problem.path == "model_list[1].litellm_params.model"
    assert said in problem.text
    assert "requests for 'a' are refused" in problem.text
    assert problem.level == logging.ERROR
    [later] = problems(config(wrong), models_come_later=True)
    assert later == problem._replace(level=logging.WARNING)
    stored = config(wrong)
    stored["general_settings"] |= {"store_model_in_db": True}
    assert problems(stored) == [later]


def test_the_default_approach_may_name_a_model_that_does_not_exist_too() -> None:
    [problem] = problems(config(default_approach="bon(judge=nobody)"))
    assert problem == (
        "litellm_settings.optillm_settings.default_approach",
        "it names 'nobody', which is not configured",
        logging.ERROR,
    )


@pytest.mark.parametrize(
    "base", ["base", "served/any", "gpt-4o", "short", "hidden", "team-model", "id-7", "everything"]
)
def test_every_kind_of_name_is_a_model(base: str) -> None:
    right = config(
        alias("a", "re2", base),
        model_group("served/*", "http://127.0.0.1:9"),
        model_group("openai/*", "http://127.0.0.1:9"),
        model_group("internal", "http://127.0.0.1:9")
        | {"model_info": {"team_id": "t", "team_public_model_name": "team-model", "id": "id-7"}},
    )
    right["router_settings"] |= {
        "model_group_alias": {"short": "base", "hidden": {"model": "base", "hidden": True}},
        "routing_groups": [{"group_name": "everything", "models": ["base"]}],
    }
    assert problems(right) == []
