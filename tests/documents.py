"""The code blocks of the documentation, for the tests that run them."""

import re
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.proxy import ROOT

_FENCE: Final = re.compile(
    r"(?:^`([\w/]+\.(?:py|toml))`:\n\n)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL
)


class Block(NamedTuple):
    file: str
    language: str
    text: str
    path: str = ""
    """Where the block belongs, if it is a whole file: named in a line of its own before it."""


def blocks_of(path: Path) -> list[Block]:
    """Return every block of one file."""
    name = str(path.relative_to(ROOT))
    found = _FENCE.findall(path.read_text())
    return [Block(name, language, text, target) for target, language, text in found]


def all_blocks() -> list[Block]:
    """Return every block of the README and of `docs/`."""
    files: list[Path] = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [block for path in files for block in blocks_of(path)]


def blocks(language: str, holding: str = "") -> list[object]:
    """Return the blocks in `language` that contain `holding`, without files, as test parameters."""
    found = [b for b in all_blocks() if b.language == language and holding in b.text and not b.path]
    return [pytest.param(b, id=f"{b.file} {number}") for number, b in enumerate(found)]
