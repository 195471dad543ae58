"""Parsing fenced code blocks in a model's Markdown. Pure functions, in linear time."""

import re
from typing import Final, NamedTuple

_FENCE = re.compile(
    r"^(?P<before>[^\n`]*+(?=`)|[ \t]*+(?=~))(?P<marker>`{3,}+|~{3,}+)"
    r"[ \t]*+(?P<language>\w*+)(?P<after>[^\n`]*+)$",
    re.MULTILINE,
)


_BEGINS_CODE: Final = re.compile(
    r"#include\b|from \S++ import\b|import [\w.]++;?\Z|</?[a-zA-Z]\w*+[ >]"
    r"|(?:(?:async|export|public|private|static) )*+(?:def|function|func|fn|sub) \w++ ?[(<]"
    r"|(?:(?:export|public|abstract) )*+(?:class|struct|interface|enum) \w++[^\n]*[:{]\Z"
    r"|(?:const|let|var|val) \w++ ?[:=]"
)
"""How lines of programs begin, in whatever language people speak around them."""

_ENDS_CODE: Final = (";", "{")
_CLOSES_CODE: Final = frozenset(")]};,")

_MIN_SHARE: Final = 1 / 3
"""Share of such lines in a program."""


class CodeBlock(NamedTuple):
    """A fenced code block."""

    language: str
    """The first word after the opening fence (info string), in lower case; "" if missing."""

    content: str
    start: int
    """Index of the content in the text."""

    closed: bool
    """Whether it has a closing fence; a block without one extends to the end of the text."""


def code_blocks(text: str) -> list[CodeBlock]:
    """Return the fenced code blocks of `text`, in order, as CommonMark defines them.

    A fence is three or more backticks or tildes. The closing fence is at least as long as the
    opening one, and no word follows it. Unlike in CommonMark, other text may precede backticks on
    their line, since models write "The code: ```python" and "x = 1```".
    """
    blocks: list[CodeBlock] = []
    opening: re.Match[str] | None = None
    for fence in _FENCE.finditer(text):
        if opening is None:
            opening = fence
        elif _closes(fence, opening):
            blocks.append(_block(text, opening, fence.start("marker"), closed=True))
            opening = None
    if opening is not None:
        blocks.append(_block(text, opening, len(text), closed=False))
    return blocks


def holds_code(text: str) -> bool:
    """Return whether `text` has a fenced code block, or is a program of several lines without one.

    What begins like JSON is data.
    """
    if any(block.closed for block in code_blocks(text)):
        return True
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines or lines[0][0] in "{[":
        return False
    of_code = sum(_is_of_code(line) for line in lines)
    return of_code > 1 and of_code >= _MIN_SHARE * len(lines)


def _is_of_code(line: str) -> bool:
    return (
        line.endswith(_ENDS_CODE)
        or _CLOSES_CODE.issuperset(line)
        or _BEGINS_CODE.match(line) is not None
    )


def _closes(fence: re.Match[str], opening: re.Match[str]) -> bool:
    ends_line = not fence["language"] and not fence["after"].strip()
    begins_line = not fence["language"] and not fence["before"].strip()
    return fence["marker"].startswith(opening["marker"]) and (ends_line or begins_line)


def _block(text: str, opening: re.Match[str], end: int, *, closed: bool) -> CodeBlock:
    start = min(opening.end() + 1, end)  # without the line break
    return CodeBlock(opening["language"].lower(), text[start:end], start, closed)
