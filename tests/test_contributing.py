"""CONTRIBUTING.md, followed word for word in a copy of the repository."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from optillm_hooks.serve import KEY
from tests.documents import blocks_of
from tests.proxy import ROOT, Proxy, hooked_config, model_group
from tests.upstream import Upstream

PAGE = ROOT / "CONTRIBUTING.md"
FILES = {b.path: b.text for b in blocks_of(PAGE) if b.path}
"""The files that the page prints, by where it says they belong."""

LINES = [line for b in blocks_of(PAGE) if b.language == "sh" for line in b.text.splitlines()]
OURS = Path(next(iter(FILES))).stem


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the repository with the files that the page prints."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("optillm_hooks", "tests", "docs", "scripts"):
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=skip)
    for name in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    for name, text in FILES.items():
        assert not (folder / name).exists()
        (folder / name).write_text(text)
    return folder


def run(clone: Path, *arguments: str) -> str:
    """Return the output of `python -m` these arguments, run in the copy."""
    env = {**os.environ, "PYTHONPATH": str(clone), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    ended = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=clone,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


def selections() -> list[str]:
    """Return what the page gives to `make unit T=`."""
    return [
        shlex.split(line)[-1].removeprefix("T=") for line in LINES if line.startswith("make unit T")
    ]


@pytest.mark.parametrize("line", [line for line in LINES if "make" in line])
def test_make_knows_the_command(line: str) -> None:
    ended = subprocess.run(
        ["/bin/sh", "-c", line.partition("|")[0].replace("make ", "make -n ", 1)],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr


def test_every_path_on_the_page_exists() -> None:
    """A decoding method called x has its files where `cot_decoding` has them."""
    text = PAGE.read_text()
    paths = re.findall(r"`((?:optillm_hooks|tests|docs)/[\w./]*)`", text)
    links = re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", text)
    found = [path.replace("/x.py", "/cot_decoding.py") for path in (*paths, *links)]
    missing = {path for path in found if path not in FILES and not (ROOT / path).exists()}
    assert missing == set()
    assert len(found) > 10


def test_the_page_prints_an_approach_of_thirty_lines_and_its_test() -> None:
    code, test = f"optillm_hooks/approaches/{OURS}.py", f"tests/approaches/test_{OURS}.py"
    assert list(FILES) == [code, test]
    assert len(FILES[code].splitlines()) <= 35


@pytest.mark.parametrize("arguments", selections())
def test_the_selected_tests_exist_and_those_of_the_new_approach_pass(
    clone: Path, arguments: str
) -> None:
    new = OURS in arguments
    said = run(clone, "pytest", *shlex.split(arguments), *([] if new else ["--collect-only", "-q"]))
    assert ("passed" if new else "::test_winner") in said


def test_the_new_files_have_the_style_of_the_others(clone: Path) -> None:
    run(clone, "ruff", "format", "--check", *FILES)
    run(clone, "ruff", "check", *FILES)


def test_the_tables_of_the_documentation_take_it_in(clone: Path) -> None:
    [line] = [line for line in LINES if line.startswith(".venv/")]
    run(clone, *line.partition(" -m ")[2].split())
    assert f"| `{OURS}` |" in (clone / "README.md").read_text()
    assert "| `principles` |" in (clone / "docs/approaches.md").read_text()


@pytest.fixture
def proxy(clone: Path, tmp_path: Path) -> Iterator[Proxy]:
    """Serve the copy, with a scripted provider in the place of the embedded model."""
    path = os.pathsep.join(map(str, (clone / "tests/loopback_only", clone)))
    with Upstream() as upstream:
        config = hooked_config([model_group("smollm2", upstream.url)])
        env = {"PYTHONPATH": path, "LITELLM_LOG": "DEBUG"}
        with Proxy(config, tmp_path, env=env, ledger=False, command=True) as running:
            yield running


def without_figures(line: str) -> str:
    return re.sub(r"[\d.]+", "0", re.sub(r"call_id=\S+", "call_id=", line))


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_new_approach_answers_through_the_proxy_and_is_logged(
    clone: Path, proxy: Proxy
) -> None:
    (clone / ".env").write_text(f"{KEY}={proxy.master_key}\n")
    request = next(b.text for b in blocks_of(PAGE) if "curl" in b.text)
    [address] = re.findall(r"http://127\.0\.0\.1:\d+", request)
    ended = subprocess.run(
        ["/bin/sh", "-c", request.replace(address, proxy.url)],
        cwd=clone,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    report = json.loads(ended.stdout)["optillm"]
    shown = re.findall(r"`(\"\w+\": [^`]+)`", PAGE.read_text())
    assert len(shown) == 3
    for fact in shown:
        assert json.loads(f"{{{fact}}}").items() <= report.items()
    [filtered] = [line.partition("grep ")[2] for line in LINES if line.startswith("LITELLM_LOG")]
    [printed] = [b.text.splitlines() for b in blocks_of(PAGE) if b.language == "text"]
    logged = [line for line in proxy.log.splitlines() if shlex.split(filtered)[0] in line]
    assert list(map(without_figures, logged)) == list(map(without_figures, printed))
