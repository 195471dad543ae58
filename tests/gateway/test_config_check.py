"""Each mistake in the proxy's YAML is told with its place, and with what to write instead."""

import logging
import re
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from optillm_hooks.gateway.config_check import problems, repeated_keys, unreachable_services
from tests.documents import all_blocks
from tests.proxy import ROOT, Config, alias, hooked_config, model_group, shipped_config

MODEL = model_group("base", "http://127.0.0.1:9")
SCORER = model_group("rank", "http://127.0.0.1:9", model="cohere/rerank-v3.5")


def config(*models: dict[str, Any], **settings: object) -> dict[str, Any]:
    return hooked_config([MODEL, *models], optillm_settings=settings)


def shadowed(**shadow: object) -> Config:
    """Return a plain model with a shadow."""
    given = {"approach": "re2", "share": 0.1, "check": "auto", **shadow}
    return model_group("plain", "http://127.0.0.1:9") | {
        "model_info": {"optillm": {"shadow": given}}
    }


@pytest.fixture(autouse=True)
def _variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_MASTER_KEY", "sk-none")


def test_a_right_configuration_has_no_problems() -> None:
    careful, ranked = alias("careful", "moa", max_calls=9), alias("ranked", "bon(judge=rank)")
    right = config(SCORER, careful, ranked, default_approach="re2", max_choices=3)
    assert problems(right) == []
    assert (
        problems({"model_list": []}) == problems({"litellm_settings": None, "model_list": []}) == []
    )


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
        (
            config(fusion={"presets": {"a": {"judge": "base"}}}),
            "fusion.presets.a.models: is missing",
        ),
        (config(alias("a", "fusion(preset=b)")), "unknown preset 'b' (known: none; the operator"),
        (config(shadowed(judge="base")), "info.optillm.shadow: must have either judge or check"),
        (config(shadowed(share=0)), "optillm.shadow.share: must be greater than 0, got 0"),
        (config(plan_calls={"client": 0}), "optillm_settings.plan_calls.client"),
        (config(default_approach="mao"), "unknown approach 'mao'"),
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
    ("model", "said"),
    [
        (
            shadowed(approach="mao"),
            "optillm.shadow.approach: approach expression, column 1: unknown",
        ),
        (shadowed(judge="x", check=None), "optillm.shadow: it calls 'x', which is not configured"),
        (
            alias("a", "privacy", shadow={"approach": "re2", "share": 1, "check": "auto"}),
            "optillm.shadow: the alias keeps texts from models",
        ),
    ],
)
def test_a_shadow_that_cannot_run_is_told(model: Config, said: str) -> None:
    [problem] = problems(config(model, shadow={"directory": "/tmp/shadows"}))  # noqa: S108
    assert said in str(problem)
    assert problem.text.endswith("no shadow runs")


def test_a_shadow_needs_a_folder() -> None:
    [problem] = problems(config(shadowed()))
    assert "needs a folder in litellm_settings.optillm_settings.shadow.dir" in problem.text


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


BROKEN = sorted((ROOT / "tests" / "golden" / "broken_configs").glob("*.yaml"))
"""Each begins with what is wrong in it, a comment a line: level, path and the text's beginning."""


@pytest.mark.parametrize("file", BROKEN, ids=lambda file: file.stem)
def test_a_broken_file_is_told_with_path_and_cure(file: Path) -> None:
    expected = re.findall(r"^# (\w+ .*)$", file.read_text(), re.MULTILINE)
    found = problems(yaml.safe_load(file.read_text()), folder=file.parent)
    found = [*repeated_keys(file), *found]
    told = [f"{logging.getLevelName(each.level).lower()} {each}" for each in found]
    assert len(told) == len(expected), told
    for line, begins in zip(told, expected, strict=True):
        assert line.startswith(begins)
        assert "geheim" not in line
        assert "271828" not in line


def test_there_are_enough_broken_files() -> None:
    assert len(BROKEN) >= 25


OF_README = [
    model_group(name, "http://127.0.0.1:9") for name in ("gpt-4o-mini", "claude", "smollm2")
]
"""Models that excerpts call and do not show."""


def whole(excerpt: Config) -> Config:
    """Return an excerpt of a YAML with what it leaves out: our hook, providers and other models."""
    ours = shipped_config()["litellm_settings"]
    shown = {model["model_name"] for model in excerpt.get("model_list", [])}
    rest = [model for model in OF_README if model["model_name"] not in shown]
    return excerpt | {
        "model_list": [*excerpt.get("model_list", []), *rest],
        "litellm_settings": {**ours, **excerpt.get("litellm_settings", {})},
    }


def shown_configs() -> list[object]:
    found = [block for block in all_blocks() if block.language == "yaml"]
    ours = ("model_list:", "optillm_settings:")
    return [
        pytest.param(block.text, id=f"{block.file} {number}")
        for number, block in enumerate(found)
        if any(name in block.text for name in ours)
    ]


@pytest.mark.parametrize("text", [*shown_configs(), (ROOT / "litellm_config.yaml").read_text()])
def test_what_we_ship_and_show_has_no_problems(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in re.findall(r"os\.environ/(\w+)", text):
        monkeypatch.setenv(name, "postgresql://host/name" if name.endswith("_URL") else "sk-none")
    text = text.replace("/opt/science/bin/python", sys.executable).replace("/srv/tables", "/usr")
    text = text.replace("/etc/litellm", str(ROOT / "tests" / "golden"))
    assert problems(whole(yaml.safe_load(text))) == []


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("mine.logger", "class Logger: ...\nlogger = Logger()", None),
        ("mine.logger", "if True:\n    from elsewhere import logger", None),
        ("mine.logger", "def __getattr__(name): ...", None),
        ("mine.logger", "try:\n    import x as y\nexcept ImportError:\n    logger = 3", None),
        ("mine.loger", "logger = 3", "the module 'mine' has no 'loger' (did you mean 'logger'?)"),
        ("mine.logger", "logger = (", "the module 'mine' has a mistake in line 1"),
        ("json.dumps", "", None),
        ("_socket.socket", "", None),
        ("no_such_module_1.logger", "", "there is no module 'no_such_module_1'"),
    ],
)
def test_a_callback_is_looked_for_beside_the_yaml_first_and_is_not_run(
    tmp_path: Path, name: str, text: str, says: str | None
) -> None:
    (tmp_path / "mine.py").write_text(f"{text}\nraise SystemExit('run')")
    wrong = config()
    wrong["litellm_settings"]["callbacks"].append(name)
    told = [str(problem) for problem in problems(wrong, folder=tmp_path)]
    place = f"litellm_settings.callbacks[{len(wrong['litellm_settings']['callbacks']) - 1}]"
    assert told == ([] if says is None else [f"{place}: {says}: LiteLLM does not start with it"])


def test_a_service_that_does_not_answer_is_told_without_its_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as answers, socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        good, bad = answers.getsockname()[1], silent.getsockname()[1]
        monkeypatch.setenv("TEST_REDIS_HOST", "127.0.0.1")
        monkeypatch.setenv("DATABASE_URL", f"postgresql://anna:geheim@127.0.0.1:{bad}/name")

        def told(of_redis: Mapping[str, object], port: int) -> list[str]:
            settings = {
                "litellm_settings": {"cache": True, "cache_params": of_redis},
                "router_settings": {"redis_host": "127.0.0.1", "redis_port": str(port)},
            }
            found = unreachable_services(settings)
            assert all(each.level == logging.WARNING for each in found)
            assert not any("geheim" in each.text for each in found)
            return [each.path for each in found]

        host = {"host": "os.environ/TEST_REDIS_HOST", "port": bad}
        assert told(host, good) == ["litellm_settings.cache_params.host", "DATABASE_URL"]
        url = {"url": f"redis://:geheim@127.0.0.1:{good}"}
        assert told(url, bad) == ["router_settings.redis_host", "DATABASE_URL"]


def test_nothing_of_the_yaml_makes_the_check_itself_fail() -> None:
    """Whatever stands in a section: a mistake that hides the others helps nobody."""
    odd: list[object] = [None, 3, "text", [], [3], {}, {"a": 3}, {"model": 3}, [[]], {3: 4}]
    right = config(alias("careful", "moa"))
    for section in ("model_list", "litellm_settings", "router_settings", "general_settings"):
        for value in odd:
            problems(right | {section: value})
            unreachable_services(right | {section: value})
    inner = {
        "model_list": ("litellm_params", "model_info"),
        "litellm_settings": ("callbacks", "custom_provider_map", "optillm_settings", "fallbacks"),
        "router_settings": (
            "fallbacks",
            "default_fallbacks",
            "allowed_fails_policy",
            "model_group_alias",
            "routing_groups",
        ),
    }
    for section, names in inner.items():
        for name in names:
            for value in odd:
                given = {name: value}
                problems(right | {section: [given] if section == "model_list" else given})
