"""OptiLLM's command line and environment, by the command: the YAML, and what became of each."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from optillm_hooks.cli import main
from optillm_hooks.converters.options import CEPO_FIELDS, OPTIONS
from optillm_hooks.gateway.config_check import problems
from optillm_hooks.gateway.model_names import from_deployment
from optillm_hooks.pipeline.expression import parse
from optillm_hooks.pipeline.plan import resolve

KEY = "os.environ/OPENAI_API_KEY"


class Converted(NamedTuple):
    yaml: Any
    report: list[str]

    @property
    def rows(self) -> dict[str, Any]:
        return {row["model_name"]: row["litellm_params"] for row in self.yaml["model_list"]}

    @property
    def settings(self) -> Any:
        return self.yaml["litellm_settings"].get("optillm_settings", {})

    def said_of(self, where: str) -> str:
        return "\n".join(line for line in self.report if where in line)


@pytest.fixture
def convert(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(arguments: Sequence[str], **environment: str) -> Converted:
        for option in OPTIONS:
            monkeypatch.delenv(option.variable or "", raising=False)
        for key in ("CEREBRAS_API_KEY", "AZURE_OPENAI_API_KEY", "OPENAI_API_KEY"):
            monkeypatch.delenv(key, raising=False)
        wanted = {"LITELLM_MASTER_KEY": "sk-x", "K": "k"}  # by what comes out
        for name, value in {**wanted, **environment}.items():
            monkeypatch.setenv(name, value)
        assert main(["convert", *arguments]) == 0
        out, err = capsys.readouterr()
        return Converted(yaml.safe_load(out), err.splitlines())

    return run


def test_a_server_without_options(convert: Any) -> None:
    found = convert([], OPENAI_API_KEY="sk-secret")
    assert list(found.rows) == ["gpt-4o-mini", "*", "optillm/*"]
    assert found.rows["gpt-4o-mini"] == {"model": "openai/gpt-4o-mini", "api_key": KEY}
    assert found.rows["*"] == {"model": "openai/*", "api_key": KEY}
    assert found.settings == {}
    assert problems(found.yaml) == []
    assert "--port 8000" in found.said_of("port")
    assert "sk-secret" not in str(found)


@pytest.mark.parametrize(
    ("environment", "row"),
    [
        (
            {"CEREBRAS_API_KEY": "c", "OPENAI_API_KEY": "o"},
            {
                "model": "cerebras/m",
                "api_key": "os.environ/CEREBRAS_API_KEY",
                "api_base": "http://h",
            },
        ),
        ({"OPENAI_API_KEY": "o"}, {"model": "openai/m", "api_key": KEY, "api_base": "http://h"}),
        (
            {"AZURE_OPENAI_API_KEY": "a"},
            {
                "model": "azure/m",
                "api_key": "os.environ/AZURE_OPENAI_API_KEY",
                "api_base": "os.environ/AZURE_API_BASE",
                "api_version": "os.environ/AZURE_API_VERSION",
            },
        ),
        ({}, {"model": "m"}),
    ],
    ids=["Cerebras before OpenAI", "OpenAI", "Azure, by its own address", "LiteLLM"],
)
def test_the_provider_is_the_one_that_optillm_chooses(
    convert: Any, environment: dict[str, str], row: object
) -> None:
    found = convert(["--model", "m", "--base-url", "http://h"], **environment)
    assert found.rows["m"] == row


def test_its_own_engine_becomes_a_local_model(convert: Any) -> None:
    environment = {"OPTILLM_API_KEY": "optillm", "OPTILLM_MAX_TOKENS": "512"}
    found = convert(["--model", "Qwen/Qwen3-0.6B+a/lora"], **environment)
    [row, _] = found.yaml["model_list"]
    assert row["litellm_params"] == {
        "model": "optillm-local/Qwen/Qwen3-0.6B+a/lora", "max_tokens": 512,
    }  # fmt: skip
    spec = row["model_info"]["optillm_local"]
    assert spec == {"path": "Qwen/Qwen3-0.6B", "adapters": {"a/lora": "a/lora"}}
    assert "extra local" in found.said_of("OPTILLM_API_KEY")


def test_an_approach_becomes_the_default_with_its_parameters(convert: Any) -> None:
    found = convert(["--best-of-n", "4"], OPTILLM_APPROACH="bon&moa", OPENAI_API_KEY="x")
    assert found.settings == {"default_approach": "bon(n=4)&moa"}
    assert "default_approach" in found.said_of("OPTILLM_APPROACH")
    assert problems(found.yaml) == []


@pytest.mark.parametrize("approach", ["auto", "none", "proxy"])
def test_no_approach_is_no_default(convert: Any, approach: str) -> None:
    found = convert(["--approach", approach])
    assert found.settings == {}
    assert found.said_of("--approach")


def test_parameters_hold_for_clients_that_name_the_approach(convert: Any) -> None:
    """Under the very name that OptiLLM's clients send."""
    options = {
        "--mcts-simulations": "3", "--mcts-exploration": "0.4", "--mcts-depth": "2",
        "--best_of_n": "7", "--rstar-max-depth": "4", "--rstar-num-rollouts": "6",
        "--rstar-c": "1.1", "--cepo_bestofn_n": "5", "--cepo_use_plan_diversity": "False",
    }  # fmt: skip
    compact = {"COMPACT_THRESHOLD": "0.5", "COMPACT_KEEP_RECENT": "6"}
    arguments = [word for pair in options.items() for word in pair]
    found = convert([*arguments, "--return-full-response"], OPENAI_API_KEY="x", **compact)
    aliases = {name: row["model"] for name, row in found.rows.items() if "optillm/" in row["model"]}
    del aliases["optillm/*"]
    assert aliases == {
        "mcts-gpt-4o-mini": "optillm/mcts(simulations=3;exploration=0.4;depth=2)/gpt-4o-mini",
        "bon-gpt-4o-mini": "optillm/bon(n=7)/gpt-4o-mini",
        "rstar-gpt-4o-mini": "optillm/rstar(max_depth=4;num_rollouts=6;c=1.1)/gpt-4o-mini",
        "cot_reflection-gpt-4o-mini": "optillm/cot_reflection(show_thinking=true)/gpt-4o-mini",
        "compact-gpt-4o-mini": "optillm/compact(threshold=0.5;keep_recent=6)/gpt-4o-mini",
        "cepo-gpt-4o-mini": "optillm/cepo(bestofn_n=5;use_plan_diversity=false)/gpt-4o-mini",
    }
    for model in aliases.values():
        resolve(parse(from_deployment(model).expression))
    assert problems(found.yaml) == []


def test_what_is_out_of_bounds_is_left_out_and_said(convert: Any) -> None:
    found = convert(["--best-of-n", "100", "--approach", "no_such"], OPENAI_API_KEY="x")
    assert list(found.rows) == ["gpt-4o-mini", "*", "optillm/*"]
    assert "left out: bon: n: " in found.said_of("--best-of-n")
    assert "unknown approach 'no_such'" in found.said_of("--approach")


def test_a_cepo_configuration_is_read_and_flags_come_first(convert: Any, tmp_path: Path) -> None:
    file = tmp_path / "cepo.yaml"
    file.write_text("bestofn_n: 2\nplanning_n: 4\nrating_model: null\nprint_output: true\nold: 1\n")
    found = convert(["--cepo_config_file", str(file), "--cepo_bestofn_n", "6"], OPENAI_API_KEY="x")
    model = found.rows["cepo-gpt-4o-mini"]["model"]
    assert model == "optillm/cepo(bestofn_n=6;planning_n=4)/gpt-4o-mini"
    assert "progress: true" in found.said_of("print_output")
    assert "unknown key, left out" in found.said_of("old")


def test_settings(convert: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = convert(
        ["--plugins-dir", "mine", "--ssl-cert-path", "/ca.pem"], OPTILLM_MEMORY_FILE="m"
    )
    assert found.settings == {"plugins_dir": str(tmp_path / "mine"), "memory": {"store": True}}
    assert found.yaml["litellm_settings"]["ssl_verify"] == "/ca.pem"
    unverified = convert(["--no-ssl-verify", "--ssl-cert-path", "/ca.pem"])
    assert unverified.yaml["litellm_settings"]["ssl_verify"] is False


@pytest.mark.parametrize(
    ("options", "directory"),
    [
        (["--log-conversations", "--conversation-log-dir", "/var/log/mine"], "/var/log/mine"),
        (["--log-conversations"], "/home/me/.optillm/conversations"),
        (["--conversation-log-dir", "/var/log/mine"], None),
    ],
)
def test_conversations_are_logged_if_they_were(
    convert: Any, options: list[str], directory: str | None
) -> None:
    found = convert(options, HOME="/home/me", OPENAI_API_KEY="x")
    assert found.settings.get("conversation_log", {}).get("directory") == directory
    assert found.said_of("--conversation-log-dir")
    assert problems(found.yaml) == []


def test_a_flag_is_stronger_than_its_variable(convert: Any) -> None:
    found = convert(["--approach", "moa"], OPTILLM_APPROACH="re2")
    assert found.settings == {"default_approach": "moa"}


def test_every_option_of_the_command_line_is_reported(convert: Any, tmp_path: Path) -> None:
    texts: dict[type, str] = {int: "2", float: "0.5", str: "bon"}
    (tmp_path / "cepo.yaml").write_text("bestofn_n: 2")
    arguments, places = list[str](), list[str]()
    for option in OPTIONS:
        if not option.flags:
            continue
        value = str(tmp_path / "cepo.yaml") if "config" in option.name else texts.get(option.kind)
        arguments += [option.flags[-1], *([value] if value else [])]
        places.append(option.flags[0])
    for name, kind in CEPO_FIELDS.items():
        value = {"bestofn_rating_type": "majority"}.get(name) or texts.get(kind, "true")
        arguments += [f"--cepo_{name}", value]
        places.append(f"--cepo_{name}")
    found = convert(arguments)
    assert [place for place in places if not found.said_of(place)] == []
    assert problems(found.yaml) == []


def test_every_variable_is_reported(convert: Any) -> None:
    texts: dict[type, str] = {int: "2", float: "0.5", str: "re2", bool: "yes"}
    given = {option.variable: texts[option.kind] for option in OPTIONS if option.variable}
    found = convert([], **given)
    assert [name for name in given if not found.said_of(name)] == []


def test_an_env_file_is_read(convert: Any, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("OPTILLM_APPROACH=re2\nOPENAI_API_KEY=sk-secret\n")
    found = convert(["--env-file", str(tmp_path / ".env")])
    assert found.settings == {"default_approach": "re2"}
    assert "sk-secret" not in str(found)


def test_the_client_key_is_the_master_key(convert: Any) -> None:
    found = convert(["--optillm-api-key", "sk-theirs"], OPENAI_API_KEY="x")
    assert found.yaml["general_settings"]["master_key"] == "os.environ/LITELLM_MASTER_KEY"
    assert "LITELLM_MASTER_KEY" in found.said_of("--optillm-api-key")
    assert "sk-theirs" not in str(found)


def test_the_providers_of_the_proxy_plugin_take_the_place_of_the_one(
    convert: Any, tmp_path: Path
) -> None:
    providers = [{"base_url": "http://a", "api_key": "${K}", "model_map": {"fast": "small"}}]
    (tmp_path / "proxy.yaml").write_text(json.dumps({"providers": providers}))
    arguments = ["--proxy-config", str(tmp_path / "proxy.yaml"), "--model", "fast"]
    found = convert([*arguments, "--approach", "moa"], OPENAI_API_KEY="x")
    assert list(found.rows) == ["fast", "*", "optillm/*"]
    assert found.rows["fast"]["api_key"] == "os.environ/K"
    assert found.settings == {"default_approach": "moa"}
    assert problems(found.yaml) == []


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (["--best-of-n", "many"], {}, "invalid int value"),
        (["--no-such-option"], {}, "unrecognized arguments: --no-such-option"),
        ([], {"OPTILLM_N": "many"}, "OPTILLM_N must be a number, got 'many'"),
        (["--env-file", "/nowhere/.env"], {}, "/nowhere/.env is no file"),
    ],
)
def test_what_optillm_refuses_is_refused(
    arguments: list[str],
    environment: dict[str, str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    try:
        status = main(["convert", *arguments])
    except SystemExit as exc:
        status = int(str(exc.code))
    assert status in (1, 2)
    assert said in capsys.readouterr().err
