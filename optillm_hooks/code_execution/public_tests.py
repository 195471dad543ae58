"""Public tests: extracts the tests in a request, and the program in a reply.

Supported are doctest examples (`>>>`), assertions, and pairs of input and output under headings
with these names, but not examples in prose, such as "f(2) is 4".
"""

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Final

from optillm_hooks.answers.code_blocks import CodeBlock, code_blocks

if TYPE_CHECKING:
    from doctest import Example

MAX_TESTS: Final = 16
"""Maximum number of tests of one kind per request."""

MAX_CHARACTERS: Final = 1 << 16
"""Maximum length of a reply that is searched for a program."""

_EXAMPLE: Final = re.compile(
    r"^([ \t]*)>>>.*\n?(?:\1(?![ \t]*(?:'{3}|\"{3}|`{3})).*\S.*\n?)*", re.MULTILINE
)
"""A prompt and the lines below it, up to a blank line, a dedent or the end of a quote."""

_NOT_PARSED: Final = (SyntaxError, ValueError, RecursionError, MemoryError)
_ASSERTION: Final = re.compile(r"^[ \t]*(assert\b.+)$", re.MULTILINE)
_LABEL: Final = r"(?:sample |example )?{}(?: ?\d+)?[ \t*_#`:]*+\n++"
_INPUT: Final = rf"[ \t*_#]*+{_LABEL.format('input')}"
_FENCED: Final = r"```\w*+\n(?P<{0}_fenced>(?:(?!```)[^\n]*+\n)+?)```"
_PLAIN: Final = rf"(?P<{{0}}>(?:(?!{_INPUT}|[ \t]*+$)[^\n]++(?:\n|\Z))++)"
_BLOCK: Final = rf"(?:{_FENCED}|{_PLAIN})"
_PAIR: Final = re.compile(
    rf"^{_INPUT}{_BLOCK.format('input')}"
    rf"\s*+[*_#]*+{_LABEL.format('output')}{_BLOCK.format('output')}",
    re.IGNORECASE | re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class CallTest:
    """A test that runs a snippet after the program has been run."""

    snippet: str
    expected: str = ""
    """The expected output, compared as in `doctest`."""

    raises: str = ""
    """The expected exception, as its type and message."""

    def passed(self, output: str, error: str) -> bool:
        if self.raises or error:
            return self.raises == error
        from doctest import ELLIPSIS, NORMALIZE_WHITESPACE, OutputChecker  # it loads unittest

        return OutputChecker().check_output(self.expected, output, NORMALIZE_WHITESPACE | ELLIPSIS)


@dataclass(frozen=True, slots=True)
class InputTest:
    """A test that runs the program with an input and compares its output."""

    stdin: str
    expected: str

    def passed(self, output: str, error: str) -> bool:
        return not error and output.split() == self.expected.split()


@dataclass(frozen=True, slots=True)
class PublicTests:
    """The public tests of one request."""

    calls: Sequence[CallTest] = ()
    inputs: Sequence[InputTest] = ()

    def __len__(self) -> int:
        return len(self.calls) + len(self.inputs)


def read_tests(request: str) -> PublicTests:
    """Return the tests in a request's text in order, at most `MAX_TESTS` of each kind.

    Of a request longer than `MAX_CHARACTERS`, the end is searched.
    """
    request = request[-MAX_CHARACTERS:]
    calls = islice(chain(_interpreted(request), _asserted(request)), MAX_TESTS)
    inputs = [
        InputTest(_block(pair, "input"), _block(pair, "output").strip())
        for pair in islice(_PAIR.finditer(request), MAX_TESTS)
    ]
    return PublicTests([*calls], inputs)


def _block(pair: re.Match[str], name: str) -> str:
    return str(pair[f"{name}_fenced"] or pair[name]).removesuffix("\n")


def read_program(reply: str) -> str | None:
    """Return the longest Python code block in a model's reply, or None if there is none.

    Blocks without a language count if they parse as Python, as does a reply that is a program. A
    reply longer than `MAX_CHARACTERS` is not searched.
    """
    if len(reply) > MAX_CHARACTERS:
        return None
    programs = [block.content for block in code_blocks(reply) if is_python(block)]
    if programs:
        return max(programs, key=len)
    return reply if "\n" in reply.strip() and _parses(reply) else None


def _interpreted(request: str) -> Iterator[CallTest]:
    for shown in _EXAMPLE.finditer(request):
        for example in _examples(shown[0]):
            yield CallTest(
                _shown(example.source),
                expected="" if example.exc_msg else example.want,
                raises=(example.exc_msg or "").strip(),
            )


def _examples(shown: str) -> "list[Example]":
    from doctest import DocTestParser  # it loads unittest

    try:
        return DocTestParser().get_examples(shown)
    except ValueError:  # for example a prompt that is not followed by a space
        return []


def _shown(source: str) -> str:
    """Return `source`, changed to print the value if it is an expression, as in the REPL."""
    try:
        ast.parse(source, mode="eval")
    except _NOT_PARSED:
        return source
    return f"_shown = ({source.strip()})\nif _shown is not None:\n    print(repr(_shown))"


def _asserted(request: str) -> Iterator[CallTest]:
    lines = (found[1] for found in _ASSERTION.finditer(request))
    return (CallTest(line.strip()) for line in lines if _parses(line))


def is_python(block: CodeBlock) -> bool:
    """Return whether a block is marked as Python, or is Python without a mark."""
    named = block.language in ("python", "py", "python3")
    return named or (not block.language and _parses(block.content))


def _parses(text: str) -> bool:
    try:
        ast.parse(text.strip())
    except _NOT_PARSED:
        return False
    return True
