"""The package with the approach that docs/writing_approaches.md prints: its test and discovery."""

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


def run(folder: Path, *arguments: str) -> str:
    """Return the output of Python with these arguments, where the package is installed."""
    path = os.pathsep.join((str(folder), str(ROOT)))
    ended = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
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


def test_the_approach_is_found_by_its_entry_point(package: Path) -> None:
    said = run(
        package,
        "-c",
        "from optillm_hooks.registry import get_approach, load_entry_points\n"
        "load_entry_points()\n"
        "print(get_approach('twice').doc)",
    )
    assert said == FILES["my_approaches/twice.py"].split('"""')[1]
