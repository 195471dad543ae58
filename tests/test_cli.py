"""The command line: what its commands print, and their exit statuses."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZipFile

import pytest
import yaml
from jsonschema import Draft202012Validator

from optillm_hooks.cli import COMMANDS, main, parser
from optillm_hooks.commands.schema import schema, text
from optillm_hooks.config_files import HERE, SHIPPED
from optillm_hooks.evaluation import own_proxy
from optillm_hooks.registry import all_approaches
from tests.documents import all_blocks
from tests.proxy import ROOT


class Ended(NamedTuple):
    status: int
    out: str
    err: str


IN_ONE_PROCESS = """\
import contextlib, io, json, sys
from optillm_hooks.cli import main

ended = {}
for name, arguments in json.load(sys.stdin).items():
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(arguments)
    ended[name] = [status, out.getvalue(), err.getvalue()]
print(json.dumps(ended))
"""


def ran(commands: Mapping[str, Sequence[str]], folder: Path) -> dict[str, Ended]:
    """Run commands in one process of their own: loading LiteLLM takes seconds."""
    done = subprocess.run(
        [sys.executable, "-c", IN_ONE_PROCESS],
        input=json.dumps(commands),
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: Ended(*each) for name, each in json.loads(done.stdout).items()}


def alias(expression: str, base: str, name: str = "alias") -> dict[str, Any]:
    model = f"optillm/{expression}/{base}"
    return {"model_name": name, "litellm_params": {"model": model, "num_retries": 0}}


def config(*models: dict[str, Any], **settings: object) -> dict[str, Any]:
    """Return a configuration with these models, and with our settings."""
    handlers = {"optillm": "gateway.provider", "optillm-local": "local_provider.provider"}
    return {
        "model_list": [LOCAL, *models],
        "litellm_settings": {
            "callbacks": ["optillm_hooks.gateway.hook"],
            "custom_provider_map": [
                {"provider": provider, "custom_handler": f"optillm_hooks.{handler}"}
                for provider, handler in handlers.items()
            ],
            "optillm_settings": settings,
        },
    }


LOCAL = {"model_name": "small", "litellm_params": {"model": "optillm-local/smollm2"}}
PRICED = {
    "model_name": "priced",
    "litellm_params": {"model": "openai/mine", "api_key": "x"},
    "model_info": {"input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6},
}
FILES: Mapping[str, object] = {
    ".env": "LITELLM_MASTER_KEY=sk-x",
    "broken.yaml": config(
        alias("bonn", "small"), alias("bon", "nowhere", "other"), max_call=3
    ),
    "later.yaml": {
        **config(alias("bon", "nowhere")), "general_settings": {"store_model_in_db": True},
    },
    "priced.yaml": config(
        PRICED, alias("bon(n=3;judge=small)", "priced"), alias("bonn", "priced", "wrong")
    ),
    "unreadable.yaml": "model_list: [1",
    "repeated.yaml": "model_list: []\nlitellm_settings: {}\nmodel_list: text",
}  # fmt: skip
CHECKS = {
    "shipped": ["check", str(ROOT / "litellm_config.yaml")],
    "broken": ["check", "broken.yaml"],
    "broken, JSON": ["check", "broken.yaml", "--json"],
    "warning": ["check", "later.yaml"],
    "repeated": ["check", "repeated.yaml"],
    "unreadable": ["check", "unreadable.yaml"],
    "unreadable, JSON": ["check", "unreadable.yaml", "--json"],
    "missing": ["check"],
}
ESTIMATES = {
    "expression": ["estimate", "bon(n=5)", "--model", "gpt-4o-mini"],
    "model name": ["estimate", "bon(n=5)-gpt-4o-mini", "--prompt-tokens", "1"],
    "no model": ["estimate", "moa&re2"],
    "alias": ["estimate", "alias", "--config", "priced.yaml", "--prompt-tokens", "1000"],
    "an alias's model": ["estimate", "optillm/bon(n=3)/priced", "--config", "priced.yaml"],
    "local": ["estimate", "cot_decoding-small", "--config", "priced.yaml"],
    "remote": ["estimate", "cot_decoding-priced", "--config", "priced.yaml"],
    "no price": ["estimate", "bon", "--model", "nowhere"],
    "too dear": ["estimate", "bon(n=64)", "--model", "priced", "--config", "priced.yaml"],
    "misspelt alias": ["estimate", "alais", "--config", "priced.yaml"],
    "plain model": ["estimate", "priced", "--config", "priced.yaml"],
    "wrong alias": ["estimate", "wrong", "--config", "priced.yaml"],
    "no list of models": ["estimate", "bon", "--config", "repeated.yaml"],
    "unknown": ["estimate", "bonn", "--model", "priced"],
}


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    folder = tmp_path_factory.mktemp("commands")
    for name, held in FILES.items():
        content = held if isinstance(held, str) else yaml.safe_dump(held)
        (folder / name).write_text(content)
    estimates = {name: [*each, "--json"] for name, each in ESTIMATES.items()}
    return ran({**CHECKS, **estimates, "for people": ESTIMATES["expression"]}, folder)


class TestCheck:
    def test_a_valid_file_has_no_problems(self, ended: dict[str, Ended]) -> None:
        status, out, err = ended["shipped"]
        assert (status, out.endswith(": no problems\n"), err) == (0, True, "")

    def test_each_problem_is_a_line_and_an_error_a_failure(self, ended: dict[str, Ended]) -> None:
        status, out, _ = ended["broken"]
        assert status == 1
        lines = out.splitlines()
        settings, unknown, missing = lines
        assert settings.startswith(
            "error: litellm_settings.optillm_settings.max_call: unknown setting"
        )
        place = "error: model_list[{}].litellm_params.model: "
        assert unknown.startswith(place.format(1))
        assert "'bonn'" in unknown
        assert missing.startswith(place.format(2))
        assert "'nowhere'" in missing

    def test_json_has_the_same(self, ended: dict[str, Ended]) -> None:
        status, out, _ = ended["broken, JSON"]
        assert status == 1
        lines = [": ".join(filter(None, each.values())) for each in json.loads(out)]
        assert lines == ended["broken"].out.splitlines()

    def test_a_warning_is_no_failure(self, ended: dict[str, Ended]) -> None:
        status, out, _ = ended["warning"]
        assert status == 0
        assert out.startswith("warning: ")

    def test_a_section_that_is_there_twice_is_a_problem(self, ended: dict[str, Ended]) -> None:
        status, out, _ = ended["repeated"]
        assert status == 1
        assert out.startswith(
            "error: model_list: is in line 1 of repeated.yaml and again in line 3"
        )

    def test_a_file_that_cannot_be_read_is_a_problem(self, ended: dict[str, Ended]) -> None:
        assert ended["unreadable"].status == ended["missing"].status == 1
        assert ended["unreadable"].out.startswith("error: unreadable.yaml, line 1, column 15: ")
        [problem] = json.loads(ended["unreadable, JSON"].out)
        assert problem["level"] == "error"
        assert "litellm_config.yaml cannot be read: No such file" in ended["missing"].out


class TestEstimate:
    @pytest.mark.parametrize(
        ("case", "expected"),
        [
            # bon(n=5) samples 5 and rates 5. LiteLLM's prices of gpt-4o-mini: 0.15 and 0.6 $/M.
            ("expression", {"calls": 10, "depth": 3, "plain_call_usd": 500 * 1.5e-7 + 400 * 6e-7}),
            (
                "model name",
                {"calls": 10, "models": "gpt-4o-mini", "plain_call_usd": 1.5e-7 + 400 * 6e-7},
            ),
            ("no model", {"models": None, "plain_call_usd": None, "cost_usd": None}),
            ("alias", {"calls": 6, "models": "priced, small", "cost_usd": 6 * (1e-3 + 8e-4)}),
            ("an alias's model", {"calls": 6, "models": "priced"}),
            ("local", {"calls": 1, "cost_usd": 0.0}),
            ("remote", {"calls": 11}),
            ("no price", {"calls": 10, "cost_usd": None, "unknown_prices": "nowhere"}),
        ],
    )
    def test_calls_and_money(
        self, ended: dict[str, Ended], case: str, expected: dict[str, object]
    ) -> None:
        assert ended[case].status == 0, ended[case].err
        found = json.loads(ended[case].out)
        assert {key: found[key] for key in expected} == pytest.approx(expected)
        assert found["refused"] is None

    def test_what_a_proxy_would_refuse_is_said(self, ended: dict[str, Ended]) -> None:
        found = json.loads(ended["too dear"].out)
        assert found["calls"] == 128
        assert "the maximum is 64" in found["refused"]

    def test_an_unknown_approach_is_one_line(self, ended: dict[str, Ended]) -> None:
        status, out, err = ended["unknown"]
        assert (status, out) == (1, "")
        assert "did you mean 'bon'" in err
        assert err.count("\n") == 1

    def test_a_name_that_is_no_approach_is_told_by_the_models(
        self, ended: dict[str, Ended]
    ) -> None:
        told = "estimate: there is no approach or alias 'alais' (did you mean 'alias'?)\n"
        assert ended["misspelt alias"] == (1, "", told)
        assert "put an approach before it, such as bon-priced" in ended["plain model"].err
        assert "unknown approach 'bonn'" in ended["wrong alias"].err

    def test_a_configuration_that_cannot_be_read_is_one_line(self, ended: dict[str, Ended]) -> None:
        status, out, err = ended["no list of models"]
        assert (status, out) == (1, "")
        assert err.startswith("estimate: model_list: must be a list")
        assert err.count("\n") == 1

    def test_people_get_lines(self, ended: dict[str, Ended]) -> None:
        lines = dict(line.split(maxsplit=1) for line in ended["for people"].out.splitlines())
        assert lines["calls"] == "10"
        assert lines["cost_usd"] == "0.003150"


def test_help_names_every_command_and_loads_no_litellm() -> None:
    said = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "optillm_hooks", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not [name for name in COMMANDS if f"\n    {name}" not in said.stdout]
    loaded = {line.rpartition("|")[2].strip() for line in said.stderr.splitlines()}
    assert "optillm_hooks.cli" in loaded
    assert loaded.isdisjoint({"litellm", "torch", "optillm_hooks.gateway"})


def test_an_unknown_option_shows_the_usage_of_its_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["estimate", "bon", "--promt-tokens", "5"])
    told = capsys.readouterr().err
    assert told.startswith("usage: optillm-hooks estimate ")
    assert "unrecognized arguments: --promt-tokens 5" in told


def test_approaches_are_listed_with_package_needs_and_cost(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["approaches", "--json"]) == 0
    listed = {each["name"]: each for each in json.loads(capsys.readouterr().out)["approaches"]}
    assert list(listed) == [approach.name for approach in all_approaches()]
    assert listed["z3"] == {
        "name": "z3", "kind": "answerer", "package": "optillm-hooks", "version": "0.1.0",
        "needs": ["solver"], "calls": 2, "depth": 2, "remote_calls": None,
    }  # fmt: skip
    assert main(["approaches"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["name", "kind", "package", "version", "needs", "calls", "depth"]
    assert [row.split()[0] for row in rows] == list(listed)


def documented(*commands: str) -> list[object]:
    """Return the lines of the documentation's blocks that begin with one of `commands`."""
    lines = [line for b in all_blocks() if b.language == "sh" for line in b.text.splitlines()]
    found = [line for line in lines if line.startswith(tuple(f"{name} " for name in commands))]
    assert found
    return [*found]


@pytest.mark.parametrize("line", documented("optillm-hooks", "uvx"))
def test_a_command_of_the_documentation_is_valid(line: str) -> None:
    words = shlex.split(line.removeprefix("uvx --from 'optillm-hooks[local]' "), comments=True)
    assert parser().parse_args(words[1:]).command in COMMANDS


def test_the_extras_of_the_documentation_are_those_that_exist() -> None:
    extras = set(
        tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    )
    page = (ROOT / "docs/install.md").read_text()
    listed = re.findall(
        r"^\| `(\w+)` \|", page.partition("## Extras")[2].partition("\n## ")[0], re.M
    )
    assert {*listed, "dev"} == extras
    named = ",".join(re.findall(r"optillm-hooks\[([\w,]+)\]", page)).split(",")
    assert set(named) <= extras


def test_every_command_is_documented() -> None:
    page = (ROOT / "docs/install.md").read_text()
    assert [name for name in COMMANDS if f"optillm-hooks {name}" not in page] == []


def test_a_wheel_has_the_command_the_default_configuration_and_all_modules(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "optillm_hooks", tmp_path / "optillm_hooks", ignore=skip)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", "out", "."]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options], cwd=tmp_path, check=True)
    [wheel] = (tmp_path / "out").glob("*.whl")
    with ZipFile(wheel) as files:
        names = set(files.namelist())
        [entries] = [name for name in names if name.endswith("entry_points.txt")]
        assert b"optillm-hooks = optillm_hooks.cli:main" in files.read(entries)
        assert files.read(str(SHIPPED.relative_to(ROOT))) == (ROOT / HERE).read_bytes()
    wanted = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "optillm_hooks").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert wanted - names == set()


class TestSchema:
    def test_the_published_file_is_current(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["schema"]) == 0
        assert capsys.readouterr().out == text()
        assert (ROOT / "docs/litellm_config.schema.json").read_text() == text()

    def test_every_configuration_of_the_documentation_matches(self) -> None:
        check = Draft202012Validator(schema())
        texts = [block.text for block in all_blocks() if block.language == "yaml"]
        assert len(texts) > 20
        for each in [*texts, (ROOT / "litellm_config.yaml").read_text()]:
            check.validate(yaml.load(each, _Loader))  # noqa: S506 (a safe loader)

    @pytest.mark.parametrize(
        ("config", "path"),
        [
            ({"litellm_settings": {"optillm_settings": {"max_call": 3}}}, "optillm_settings"),
            ({"litellm_settings": {"optillm_settings": {"max_calls": 0}}}, "max_calls"),
            (
                {"model_list": [alias("bon", "x") | {"model_info": {"optillm": {"n": 3}}}]},
                "optillm",
            ),
            (
                {"model_list": [LOCAL | {"model_info": {"optillm": {"max_calls": 3}}}]},
                "optillm",
            ),
            ({"model_list": [LOCAL | {"model_info": {"optillm_local": {}}}]}, "optillm_local"),
        ],
        ids=["unknown key", "bound", "key of no alias", "key of an alias", "missing key"],
    )
    def test_a_mistake_is_found(self, config: object, path: str) -> None:
        errors = list(Draft202012Validator(schema()).iter_errors(config))
        assert errors
        places = [".".join(map(str, error.absolute_path)) for error in errors]
        assert any(place.endswith(path) for place in places), places


class _Loader(yaml.SafeLoader):
    """Reads YAML 1.2 as editors do: `off` is a text."""


_Loader.yaml_implicit_resolvers = {
    first: [each for each in resolvers if each[0] != "tag:yaml.org,2002:bool" or first in "tTfF"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def test_a_command_that_is_terminated_ends_the_proxy_that_it_started() -> None:
    """The proxy is a stand-in here, which never says that it is ready."""
    code = """\
import subprocess, sys
from optillm_hooks.cli import main
from optillm_hooks.evaluation import own_proxy

started = subprocess.Popen
stand_in = [sys.executable, "-c", "import time; time.sleep(600)"]
pids = []
subprocess.Popen = lambda _, **given: (
    process := started(stand_in, **given), pids.append(process.pid)
)[0]
own_proxy.any = lambda lines: (print(*pids, flush=True), any(lines))[1]
sys.exit(main(["demo", "--problems", "1"]))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    first, proxy = process.stdout.readline(), int(process.stdout.readline())
    assert "The proxy starts" in first
    process.terminate()
    _, err = process.communicate()
    assert process.returncode == 130, err
    assert not err
    assert not Path(f"/proc/{proxy}").exists()


def test_a_proxy_that_says_much_at_its_end_is_heard_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception of the thread that reads it would fail the test."""
    talker = (
        "import signal, sys\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit('bye ' * 100_000))\n"
        f"sys.stderr = sys.stdout\nprint({own_proxy._READY!r}, flush=True)\n"
        "while True: signal.pause()"
    )
    started = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda _, **given: started([sys.executable, "-c", talker], **given)
    )
    with own_proxy.own_proxy() as (url, _):
        assert url.startswith("http://127.0.0.1:")
