"""Every code block of the documentation, run or validated by its own tool.

Requests to the embedded model are sent in `tests.gateway.test_local`, where it is served. Whole
files are tested in `tests.test_contributing`.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from optillm_hooks.errors import OptiLLMError
from optillm_hooks.gateway import http_routes, page_routes
from optillm_hooks.gateway.reports import report_object
from optillm_hooks.pipeline.events import Report
from optillm_hooks.registry import all_approaches
from optillm_hooks.settings import AliasSettings, DeploymentSettings, Settings
from optillm_hooks.types import Usage
from scripts.catalogue import reference, with_settings, with_table
from tests.documents import Block, all_blocks, blocks
from tests.proxy import ROOT, Proxy

LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)")
"""A link to a page of ours: its path, and the heading."""


def test_every_block_is_of_a_kind_that_a_test_below_runs() -> None:
    kinds = {"sh", "yaml", "python", "json", "mermaid"}
    assert {block.language for block in all_blocks() if not block.path} <= kinds
    for block in all_blocks():
        if block.language == "sh":
            ours = ("make ", "curl ", ". ./.env", "pip ", "uvx ", "optillm-hooks ")
            assert block.text.startswith((*ours, "inspect ", "lm_eval "))
        if block.language == "yaml":
            wanted = ("model_list:", "optillm_settings:", "loggers:")
            assert any(key in block.text for key in wanted)


@pytest.mark.parametrize("block", blocks("python"))
def test_a_python_block_runs(block: Block) -> None:
    env = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-c", block.text], env=env, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr[-2000:]


@pytest.mark.parametrize("block", blocks("yaml", "model_list:"))
def test_the_settings_of_a_configurations_models_are_valid(block: Block) -> None:
    for model in yaml.safe_load(block.text)["model_list"]:
        is_alias = model["litellm_params"]["model"].startswith("optillm/")
        settings = AliasSettings if is_alias else DeploymentSettings
        settings.model_validate(model.get("model_info", {}).get("optillm", {}))


LOG = """\
import logging, logging.config, sys, types, yaml
logging.config.dictConfig(yaml.safe_load(sys.argv[1]))
sys.modules["litellm.proxy.proxy_server"] = types.ModuleType("proxy_server")
import optillm_hooks.gateway
logging.getLogger("optillm_hooks.pipeline.run").debug("once")
"""


@pytest.mark.parametrize("block", blocks("yaml", "loggers:"))
def test_a_logging_configuration_shows_our_debug_lines(block: Block) -> None:
    """LiteLLM's command line gives it to uvicorn, which loads it so before the proxy."""
    ended = subprocess.run(
        [sys.executable, "-c", LOG, block.text],
        env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stderr.count("DEBUG optillm_hooks.pipeline.run once") == 1


def configurations() -> list[dict[str, Any]]:
    texts = [block.text for block in all_blocks() if block.language == "yaml"]
    return [yaml.safe_load(text) for text in texts if "model_list:" in text]


def public_names(config: dict[str, Any]) -> set[str]:
    return {m["model_name"] for m in config["model_list"] if "*" not in m["model_name"]}


LOAD = """\
import asyncio, json, os, sys
from litellm.proxy.proxy_server import ProxyConfig
async def load():
    for path in sys.argv[1:]:
        router, *_ = await ProxyConfig().load_config(router=None, config_file_path=path)
        print(json.dumps(router.get_model_names()), flush=True)
    os._exit(0)  # LiteLLM is still connecting to MCP servers, and does not stop when asked to
asyncio.run(load())
"""


def test_litellm_loads_every_configuration(tmp_path: Path) -> None:
    """One process loads all, and no other, because LiteLLM keeps what it loads in globals."""
    files = [tmp_path / f"{number}.yaml" for number in range(len(configurations()))]
    for file, config in zip(files, configurations(), strict=True):
        file.write_text(yaml.safe_dump(config))
    env = {
        **os.environ,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_MASTER_KEY": "sk-unused",
        "OPENAI_API_KEY": "unused",
        "PYTHONPATH": str(ROOT),
    }
    ended = subprocess.run(
        [sys.executable, "-c", LOAD, *files], env=env, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    loaded = [set(json.loads(line)) for line in ended.stdout.splitlines() if line[:1] == "["]
    for names, config in zip(loaded, configurations(), strict=True):
        assert names >= public_names(config)


def test_a_proxy_starts_on_the_readmes_configuration(tmp_path: Path) -> None:
    config = configurations()[0]
    with Proxy(config, tmp_path, env={"OPENAI_API_KEY": "unused"}, ledger=False) as proxy:
        listed = {model.id for model in proxy.openai().models.list()}
    assert listed == public_names(config)


@pytest.mark.parametrize("block", blocks("yaml", "optillm_settings:"))
def test_settings_are_those_that_exist(block: Block) -> None:
    text = re.sub(r"os\.environ/\w+_URL", "postgresql://host/name", block.text)  # as LiteLLM does
    text = text.replace("/etc/litellm", str(ROOT / "tests" / "golden"))
    shown = yaml.safe_load(text)["litellm_settings"]["optillm_settings"]
    assert Settings.model_validate(shown).model_fields_set == set(shown)


def test_the_parameters_that_take_a_scorer_are_documented() -> None:
    page = (ROOT / "docs/judges.md").read_text()
    section = page.partition("\n## Judges that score\n")[2].partition("\n```")[0]
    takers = [approach for approach in all_approaches() if approach.params.scorer_fields]
    named = {name for a in takers for name in (a.name, *a.params.scorer_fields)}
    assert set(re.findall(r"`(\w+)`", section)) == named


def _names(model: type[BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _names(field.annotation)


def test_every_setting_is_documented() -> None:
    text = "\n".join(path.read_text() for path in (ROOT / "docs").glob("*.md"))
    names = {*_names(Settings), *_names(AliasSettings), *_names(DeploymentSettings)}
    assert not [name for name in sorted(names) if not re.search(rf"\b{name}\b", text)]


@pytest.mark.parametrize("block", blocks("sh", "make "))
def test_make_knows_the_commands(block: Block) -> None:
    for line in block.text.splitlines():
        command = shlex.split(line, comments=True)
        known = subprocess.run([*command, "-n"], cwd=ROOT, capture_output=True, check=False)
        assert known.returncode == 0, known.stderr


def _anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", _without_blocks(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def _without_blocks(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def test_every_link_leads_to_a_file_and_to_a_heading() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    links = [(page, *link) for page in pages for link in LINK.findall(_without_blocks(page))]
    dead = list[str]()
    for page, path, anchor in links:
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            dead.append(f"{page.name}: {path}#{anchor}")
    assert links
    assert dead == []


def _codes(error: type[OptiLLMError]) -> Iterator[str]:
    yield error.code
    for kind in error.__subclasses__():
        yield from _codes(kind)


def test_the_http_reference_names_what_the_code_sends() -> None:
    page = (ROOT / "docs/http.md").read_text()
    source = "".join(path.read_text() for path in (ROOT / "optillm_hooks").rglob("*.py"))
    headers = set(re.findall(r"x-optillm-[a-z][a-z-]*[a-z]", source))
    assert set(re.findall(r"^\| `(x-optillm-[a-z-]+)` \|", page, re.MULTILINE)) == headers
    members = page.partition("## The `optillm` object")[2].partition("\n## ")[0]
    report = Report(
        approach="none", base="base", calls=0, calls_saved=0, depth=0, usage=Usage(), seconds=0.0,
        stopped_by=None, degraded=(), choices=(), notes=(), trace=(),
    )  # fmt: skip
    assert re.findall(r"^\| `(\w+)` \|", members, re.MULTILINE) == list(report_object(report))
    inner = {"optillm_error", "truncated"}  # the base class, and a step of cepo
    assert {code for code in _codes(OptiLLMError) if f"`{code}`" not in page} <= inner
    routes = [*http_routes.router.routes, *page_routes.router.routes]
    paths = {getattr(each, "path", "") for each in routes if getattr(each, "include_in_schema", 0)}
    assert not [path for path in paths if re.sub(r"\{\w+\}", "ID", path) not in page]


def test_the_first_page_leads_to_every_page() -> None:
    listed = {path for path, _ in LINK.findall((ROOT / "docs/README.md").read_text())}
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages <= listed


def test_the_generated_parts_are_current() -> None:
    readme = (ROOT / "README.md").read_text()
    assert readme == with_table(readme)
    local_models = (ROOT / "docs/local_models.md").read_text()
    assert local_models == with_settings(local_models)
    assert (ROOT / "docs/approaches.md").read_text() == reference()
