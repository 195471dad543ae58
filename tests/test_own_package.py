"""The package with the approach that docs/writing_approaches.md prints: its test and discovery."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from optillm_hooks.registry import ENTRY_POINT_GROUP
from tests.documents import blocks_of
from tests.proxy import ROOT

FILES = {b.path: b.text for b in blocks_of(ROOT / "docs/writing_approaches.md") if b.path}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """Return a folder with the printed files and the metadata that installing them would make."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    project = tomllib.loads(FILES["pyproject.toml"])["project"]
    entries = [f"{n} = {m}" for n, m in project["entry-points"][ENTRY_POINT_GROUP].items()]
    info = tmp_path / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    (info / "entry_points.txt").write_text("\n".join([f"[{ENTRY_POINT_GROUP}]", *entries, ""]))
    return tmp_path


def run(folder: Path, *arguments: str, **env: str) -> str:
    """Return the output of Python with these arguments, where the package is installed."""
    path = os.pathsep.join((str(folder), str(ROOT)))
    ended = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


def test_the_printed_test_passes(package: Path) -> None:
    [test] = [name for name in FILES if name.startswith("test_")]
    assert "1 passed" in run(package, "-m", "pytest", test)


LISTED = ("-m", "optillm_hooks", "approaches", "--json")


@pytest.mark.parametrize(
    ("allowed", "environment"),
    [(["My_Approaches"], ""), ("all", ""), ([], "other, my-approaches"), ([], "all")],
    ids=["by name, in any spelling", "all", "name in the environment", "all in the environment"],
)
def test_the_approach_is_found_if_its_package_is_allowed(
    package: Path, allowed: object, environment: str
) -> None:
    config = {"litellm_settings": {"optillm_settings": {"allowed_packages": allowed}}}
    (package / "litellm_config.yaml").write_text(json.dumps(config))
    listed = json.loads(run(package, *LISTED, OPTILLM_ALLOWED_PACKAGES=environment))
    [found] = [each for each in listed["approaches"] if each["name"] == "twice"]
    shown = {key: found[key] for key in ("package", "version", "needs", "calls", "depth")}
    assert shown == {
        "package": "my-approaches", "version": "1.0", "needs": [], "calls": 2, "depth": 1,
    }  # fmt: skip
    assert (listed["not_loaded"], listed["problems"]) == ([], [])


def test_a_package_that_is_only_installed_is_not_loaded(package: Path) -> None:
    (package / "my_approaches/twice.py").write_text("raise AssertionError('it was run')")
    listed = json.loads(run(package, *LISTED))
    assert "twice" not in {each["name"] for each in listed["approaches"]}
    assert listed["not_loaded"] == [
        {"package": "my-approaches", "version": "1.0", "offers": ["approach 'twice'"]}
    ]
    assert "my-approaches is not loaded (approach 'twice'): add its name to" in run(
        package, "-m", "optillm_hooks", "approaches"
    )


def test_a_package_that_cannot_be_loaded_is_named(package: Path) -> None:
    (package / "my_approaches/twice.py").write_text("import no_such_module")
    listed = json.loads(run(package, *LISTED, OPTILLM_ALLOWED_PACKAGES="my-approaches"))
    [problem] = listed["problems"]
    assert "'twice' of the package my-approaches" in problem
    assert "no_such_module" in problem


LOG = """\
import sys, types
server = types.ModuleType("litellm.proxy.proxy_server")
server.proxy_config = types.SimpleNamespace(config={})
sys.modules["litellm.proxy.proxy_server"] = server
import optillm_hooks.gateway
"""


def test_the_proxys_log_says_what_is_not_loaded(package: Path) -> None:
    said = run(package, "-c", LOG, LITELLM_LOCAL_MODEL_COST_MAP="True")
    assert "optillm: the package my-approaches is not loaded (approach 'twice')" in said
