"""docs/architecture.md: its path, picture, layers and list of modules, compared with the code."""

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType

import litellm
import pytest
from litellm import Router
from litellm.proxy._types import UserAPIKeyAuth
from litellm.utils import custom_llm_setup

from optillm_hooks.gateway import callback, caller, hook, provider
from scripts.catalogue import modules, with_code
from scripts.imports import MODULES, import_graph
from tests.proxy import ROOT
from tests.test_architecture import LAYERS, RANKS

PAGE = (ROOT / "docs/architecture.md").read_text()
LEFT_OUT = {"types", "errors"}
"""Of the picture, as the page says."""

LINK = re.compile(r"\[[^\]]*\]\(([^)#]+)\)")
NAMED = re.compile(r"`([\w.]+)`(?: and `[\w.]+`)?\s+in\s+(?:the\s+)?\[`[^`]+`\]\((\.\./[^)]+)\)")
"""A function or class, and the file that it is said to be in."""

STEP = re.compile(r"^\d\. \*\*[\w ]+\.\*\*(?:.|\n {3})+", re.MULTILINE)


def qualified_names(path: Path) -> set[str]:
    """Return the functions, classes and methods that a file defines."""
    body = ast.parse(path.read_text()).body
    defined = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    outer = [node for node in body if isinstance(node, defined)]
    inner = [
        f"{node.name}.{part.name}"
        for node in outer
        for part in node.body
        if isinstance(part, defined)
    ]
    return {node.name for node in outer} | set(inner)


def test_every_link_leads_to_a_file() -> None:
    links = [link for link in LINK.findall(PAGE) if not link.startswith("http")]
    assert links
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []


def test_every_name_is_in_the_file_that_the_page_says() -> None:
    named = NAMED.findall(PAGE)
    assert len(named) >= 10
    for name, link in named:
        assert name in qualified_names(ROOT / "docs" / link), f"{name} is not in {link}"


# ------------------------------------------------------------------------------- the path


def path_of_a_request() -> list[tuple[str, str]]:
    """Return what each step of the page names first: a function, and its file."""
    steps = [match[0] for match in STEP.finditer(PAGE)]
    return [(name, Path(link).name) for name, link in (NAMED.findall(step)[0] for step in steps)]


class Calls:
    """Records the functions of the package in the order in which they are first entered."""

    def __init__(self) -> None:
        self.seen: dict[CodeType, None] = {}

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        if event == "call" and "optillm_hooks" in frame.f_code.co_filename:
            self.seen.setdefault(frame.f_code)

    def names(self) -> Iterator[tuple[str, str]]:
        for code in self.seen:
            yield code.co_qualname, Path(code.co_filename).name


@pytest.fixture
def router(monkeypatch: pytest.MonkeyPatch) -> Router:
    entry = {"provider": "optillm", "custom_handler": provider}
    monkeypatch.setattr(litellm, "custom_provider_map", [entry])
    custom_llm_setup()
    answering = {"model": "openai/gpt-4o-mini", "mock_response": "ANSWER: 42", "api_key": "none"}
    models = {"base": answering, "optillm/*": {"model": "optillm/*"}}
    router = Router([{"model_name": n, "litellm_params": p} for n, p in models.items()])
    monkeypatch.setattr(callback, "proxy_router", lambda: router)
    monkeypatch.setattr(provider, "_router", router)
    monkeypatch.setattr(caller, "can_key_call_resolved_model", _granted)
    return router


async def _granted(**_: object) -> None:
    """Access is LiteLLM's to refuse; that needs a whole proxy."""


@pytest.mark.anyio
@pytest.mark.usefixtures("litellm_in_this_loop")
@pytest.mark.filterwarnings("ignore:.*`ReadOnly`:UserWarning")  # LiteLLM's own types
async def test_a_request_takes_the_path_that_the_page_describes(router: Router) -> None:
    calls = Calls()
    asked = {"model": "bon-base", "messages": [{"role": "user", "content": "6 * 7?"}]}
    sys.setprofile(calls)
    try:
        data = await hook.async_pre_call_hook(UserAPIKeyAuth(), None, asked, "acompletion")
        response = await router.acompletion(**data)
    finally:
        sys.setprofile(None)
    assert response.choices[0].message.content == "ANSWER: 42"
    path = path_of_a_request()
    assert len(path) == 8
    assert [step for step in calls.names() if step in path] == path


# ---------------------------------------------------------------------------- the picture


def drawn_imports() -> dict[str, set[str]]:
    """Return the arrows of the picture."""
    [drawing] = re.findall(r"^```mermaid\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    first, *lines = drawing.splitlines()
    assert first == "flowchart TD"
    drawn: dict[str, set[str]] = {}
    for line in lines:
        start, end = line.replace("optillm_hooks", "__init__").strip().split(" --> ")
        drawn.setdefault(start, set()).add(end)
        drawn.setdefault(end, set())
    return drawn


def reached(arrows: dict[str, set[str]], start: str) -> set[str]:
    return arrows[start].union(*(reached(arrows, name) for name in arrows[start]))


def test_the_picture_shows_the_imports_between_the_parts_of_the_package() -> None:
    drawn, real = drawn_imports(), import_graph()
    assert drawn.keys() == real.keys() - LEFT_OUT
    for name in drawn:
        assert drawn[name] <= real[name], f"{name} does not import these"
        assert real[name] - LEFT_OUT <= reached(drawn, name), f"{name} imports more"


def test_the_picture_goes_down_the_layers() -> None:
    for name, others in drawn_imports().items():
        assert {other for other in others if RANKS[other] >= RANKS[name]} == set()


def test_the_picture_leaves_out_arrows_that_follow_from_others() -> None:
    drawn = drawn_imports()
    for name, found in drawn.items():
        implied = {far for near in found for far in reached(drawn, near)}
        assert not found & implied, f"{name} --> {found & implied}"


def test_the_table_of_layers_is_the_one_that_the_tests_hold() -> None:
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \|", PAGE, re.MULTILINE)
    assert [int(number) for number, _ in rows] == [*range(1, len(LAYERS) + 1)]
    assert [set(re.findall(r"`(\w+)`", cell)) for _, cell in rows] == LAYERS


# ---------------------------------------------------------------------------- the modules


def test_the_generated_parts_are_current() -> None:
    assert with_code(PAGE) == PAGE


def test_every_module_is_listed_once_with_what_it_is() -> None:
    lines = re.findall(r"^- \[`[\w.]+`\]\(\.\./optillm_hooks/(.+)\.py\): (.+)$", modules(), re.M)
    listed = Counter(path.replace("/", ".") for path, _ in lines)
    assert listed == Counter(MODULES.keys())
    assert [(path, line) for path, line in lines if not re.match(r"\w.{9,}", line)] == []
