"""Every code block of the documentation, run or read by what it is written for."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from optillm_hooks.catalogue import reference, with_table
from optillm_hooks.settings import AliasSettings, DeploymentSettings, Settings
from tests.proxy import ROOT, Proxy

_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    file: str
    language: str
    text: str


def _blocks() -> list[Block]:
    files = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [
        Block(str(path.relative_to(ROOT)), language, text)
        for path in files
        for language, text in _FENCE.findall(path.read_text())
    ]


def blocks(language: str, holding: str = "") -> list[object]:
    found = [b for b in _blocks() if b.language == language and holding in b.text]
    return [pytest.param(b, id=f"{b.file} {number}") for number, b in enumerate(found)]


def test_every_block_is_of_a_kind_that_a_test_below_runs() -> None:
    assert {block.language for block in _blocks()} <= {"sh", "yaml", "python", "json"}
    for block in _blocks():
        if block.language == "sh":
            assert block.text.startswith(("make ", "curl "))
        if block.language == "yaml":
            assert "model_list:" in block.text or "optillm_settings:" in block.text


@pytest.mark.parametrize("block", blocks("python"))
def test_a_python_block_runs(block: Block) -> None:
    env = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-c", block.text], env=env, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr[-2000:]


@pytest.mark.parametrize("block", blocks("yaml", "model_list:"))
def test_a_proxy_starts_on_a_configuration(block: Block, tmp_path: Path) -> None:
    config = yaml.safe_load(block.text)
    for model in config["model_list"]:
        is_alias = model["litellm_params"]["model"].startswith("optillm/")
        settings = AliasSettings if is_alias else DeploymentSettings
        settings.model_validate(model.get("model_info", {}).get("optillm", {}))
    env = {"OPENAI_API_KEY": "unused"}
    with Proxy(config, tmp_path, env=env, ledger=False) as proxy:
        listed = {model.id for model in proxy.openai().models.list()}
    assert listed == {m["model_name"] for m in config["model_list"] if "*" not in m["model_name"]}


@pytest.mark.parametrize("block", blocks("yaml", "optillm_settings:"))
def test_settings_are_those_that_exist(block: Block) -> None:
    shown = yaml.safe_load(block.text)["litellm_settings"]["optillm_settings"]
    assert Settings.model_validate(shown).model_fields_set == set(shown)


@pytest.mark.parametrize("block", blocks("sh", "make "))
def test_make_knows_the_commands(block: Block) -> None:
    for line in block.text.splitlines():
        command = shlex.split(line, comments=True)
        known = subprocess.run([*command, "-n"], cwd=ROOT, capture_output=True, check=False)
        assert known.returncode == 0, known.stderr


@pytest.fixture(scope="module")
def local_proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """The proxy that `make serve` starts, with every socket beyond loopback blocked."""
    config = yaml.safe_load((ROOT / "litellm_config.yaml").read_text())
    with Proxy(config, tmp_path_factory.mktemp("proxy")) as running:
        yield running


@pytest.mark.parametrize("block", blocks("sh", "curl "))
def test_a_request_is_answered_as_shown(block: Block, local_proxy: Proxy) -> None:
    ended = subprocess.run(
        ["/bin/sh", "-c", block.text.replace("http://127.0.0.1:4000", local_proxy.url)],
        env={**os.environ, "LITELLM_MASTER_KEY": local_proxy.master_key},
        capture_output=True,
        text=True,
        check=True,
    )
    shown = next(b for b in _blocks() if b.language == "json" and b.file == block.file)
    assert _shape(json.loads(ended.stdout)) == _shape(json.loads(shown.text))


def _shape(value: object) -> object:
    """Return the names and types of a JSON value, without what may differ between two runs."""
    if isinstance(value, dict):
        return {key: _shape(item) for key, item in value.items() if key != "notes"}
    if isinstance(value, list):
        return [_shape(item) for item in value[:1]]
    return "number" if isinstance(value, int | float) else type(value).__name__


def test_the_generated_parts_are_current() -> None:
    readme = (ROOT / "README.md").read_text()
    assert readme == with_table(readme)
    assert (ROOT / "docs/approaches.md").read_text() == reference()
