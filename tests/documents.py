"""The code blocks of the documentation, for the tests that run them."""

import re
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.proxy import ROOT

_FENCE: Final = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    file: str
    language: str
    text: str


def all_blocks() -> list[Block]:
    """Return every block of the README and of `docs/`."""
    files: list[Path] = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [
        Block(str(path.relative_to(ROOT)), language, text)
        for path in files
        for language, text in _FENCE.findall(path.read_text())
    ]


def blocks(language: str, holding: str = "") -> list[object]:
    """Return the blocks in `language` that contain `holding`, as parameters of a test."""
    found = [b for b in all_blocks() if b.language == language and holding in b.text]
    return [pytest.param(b, id=f"{b.file} {number}") for number, b in enumerate(found)]
