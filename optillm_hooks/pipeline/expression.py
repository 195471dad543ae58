"""Parser of approach expressions: text to syntax tree and back. It does not look names up.

    expression := branch ("|" branch)*
    branch     := stage ("&" stage)*
    stage      := "(" expression ")" | name [ "(" [parameter (";" parameter)*] ")" ]
    parameter  := name "=" value
    value      := number | "true" | "false" | "null" | word | "\"" text "\"" | "[" values "]"

`|` binds weakest: its branches run concurrently. `&` composes from left to right. A word ends at
the next of `;)]` or blank; in a quoted text `\\` escapes the next character. `a=[x;y]` is a list.
Where a comma is unambiguous (YAML, request bodies), it separates as `;` does.
"""

import json
import re
from dataclasses import dataclass
from typing import NoReturn

from optillm_hooks.errors import RequestRejected

Value = None | bool | int | float | str | tuple["Value", ...]

MAX_DEPTH = 16
"""Maximum nesting of parentheses, so that no input can exhaust the stack."""

MAX_LENGTH = 4096


@dataclass(frozen=True, slots=True)
class Call:
    """One stage: `name(args)`, at `column` (from 1) of the text."""

    name: str
    args: tuple[tuple[str, Value], ...] = ()
    column: int = 1


@dataclass(frozen=True, slots=True)
class Chain:
    """Two or more stages, composed by `&`."""

    stages: tuple["Call | Parallel", ...]


@dataclass(frozen=True, slots=True)
class Parallel:
    """Two or more branches, which run concurrently."""

    branches: tuple["Call | Chain", ...]


Tree = Call | Chain | Parallel


def parse(text: str, *, commas: bool = True) -> Tree:
    """Return the syntax tree of an expression.

    `commas` allows a comma to separate parameters and values as `;` does.

    Raises:
        RequestRejected: a syntax error; the message names the column, from 1.
    """
    if len(text) > MAX_LENGTH:
        raise RequestRejected(f"the approach expression is longer than {MAX_LENGTH} characters")
    parser = _Parser(text, ";," if commas else ";")
    tree = parser.expression(0)
    parser.end()
    return tree


def unparse(tree: Tree) -> str:
    """Return the shortest text of `tree`, without commas between parameters."""
    match tree:
        case Call(name, args):
            inner = ";".join(f"{key}={_value_text(value)}" for key, value in args)
            return f"{name}({inner})" if inner else name
        case Chain(stages):
            return "&".join(
                f"({unparse(stage)})" if isinstance(stage, Parallel) else unparse(stage)
                for stage in stages
            )
        case Parallel(branches):
            return "|".join(unparse(branch) for branch in branches)


def branches(tree: Tree) -> list[tuple[Call, ...]]:
    """Return the chains of calls that `tree` runs concurrently, left to right.

    A `|` inside a chain is distributed: `a&(b|c)&d` becomes `a&b&d` and `a&c&d`.
    """
    match tree:
        case Call():
            return [(tree,)]
        case Chain(stages):
            chains: list[tuple[Call, ...]] = [()]
            for stage in stages:
                ends = branches(stage)
                if len(chains) * len(ends) > MAX_BRANCHES:
                    raise RequestRejected(f"more than {MAX_BRANCHES} concurrent branches")
                chains = [chain + end for chain in chains for end in ends]
            return chains
        case Parallel():
            found = [chain for branch in tree.branches for chain in branches(branch)]
            if len(found) > MAX_BRANCHES:
                raise RequestRejected(f"more than {MAX_BRANCHES} concurrent branches")
            return found


MAX_BRANCHES = 64

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_WORD = re.compile(r"[^\s;,()\[\]\"=&|]+")
_BLANK = re.compile(r"\s*")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_CONSTANTS: dict[str, Value] = {"true": True, "false": False, "null": None}


class _Parser:
    def __init__(self, text: str, separators: str) -> None:
        self._text = text
        self._at = 0
        self._separators = separators

    def expression(self, depth: int) -> Tree:
        if depth > MAX_DEPTH:
            self._fail(f"parentheses are nested deeper than {MAX_DEPTH}")
        found: list[Call | Chain] = []
        while True:
            branch = self._branch(depth)
            found += branch.branches if isinstance(branch, Parallel) else [branch]
            if not self._accept("|"):
                return found[0] if len(found) == 1 else Parallel(tuple(found))

    def end(self) -> None:
        if self._peek():
            self._fail(f"unexpected {self._peek()!r}; expected '&', '|' or the end")

    def _branch(self, depth: int) -> Tree:
        stages: list[Call | Parallel] = []
        while True:
            stage = self._stage(depth)
            stages += stage.stages if isinstance(stage, Chain) else [stage]
            if not self._accept("&"):
                return stages[0] if len(stages) == 1 else Chain(tuple(stages))

    def _stage(self, depth: int) -> Tree:
        if self._accept("("):
            inner = self.expression(depth + 1)
            self._expect(")")
            return inner
        self._peek()
        column = self._at + 1
        return Call(self._name("the name of an approach"), self._arguments(), column)

    def _arguments(self) -> tuple[tuple[str, Value], ...]:
        args: dict[str, Value] = {}
        if not self._accept("(") or self._accept(")"):
            return ()
        while True:
            self._peek()
            name = self._name("the name of a parameter")
            if name in args:
                self._at -= len(name)
                self._fail(f"parameter {name!r} is given twice")
            self._expect("=")
            args[name] = self._value(0)
            if self._accept(")"):
                return tuple(args.items())
            if not self._separator():
                self._fail(f"expected '{self._separators[0]}' or ')'{self._but_got()}")

    def _value(self, depth: int) -> Value:
        if depth > MAX_DEPTH:
            self._fail(f"lists are nested deeper than {MAX_DEPTH}")
        if self._peek() == '"':
            return self._quoted()
        if self._accept("["):
            return self._list(depth)
        word = _WORD.match(self._text, self._at)
        if word is None:
            self._fail(f"expected a value{self._but_got()}")
        self._at = word.end()
        return _scalar(word.group())

    def _list(self, depth: int) -> Value:
        values: list[Value] = []
        if self._accept("]"):
            return ()
        while True:
            values.append(self._value(depth + 1))
            if self._accept("]"):
                return tuple(values)
            if not self._separator():
                self._fail(f"expected '{self._separators[0]}' or ']'{self._but_got()}")

    def _quoted(self) -> str:
        start = self._at
        chars: list[str] = []
        at = start + 1
        while at < len(self._text) and self._text[at] != '"':
            at += self._text[at] == "\\"
            chars.append(self._text[at : at + 1])
            at += 1
        if at >= len(self._text):
            self._fail("the quoted text is not closed")
        self._at = at + 1
        return "".join(chars)

    def _name(self, what: str) -> str:
        name = _NAME.match(self._text, self._at)
        if name is None:
            self._fail(f"expected {what}{self._but_got()}")
        self._at = name.end()
        return name.group()

    def _separator(self) -> bool:
        return any(self._accept(separator) for separator in self._separators)

    def _peek(self) -> str:
        blank = _BLANK.match(self._text, self._at)
        self._at = blank.end() if blank else self._at
        return self._text[self._at : self._at + 1]

    def _accept(self, char: str) -> bool:
        if self._peek() != char:
            return False
        self._at += 1
        return True

    def _expect(self, char: str) -> None:
        if not self._accept(char):
            self._fail(f"expected {char!r}{self._but_got()}")

    def _but_got(self) -> str:
        got = self._peek()
        return f" but got {got!r}" if got else " but the expression ends"

    def _fail(self, problem: str) -> NoReturn:
        raise RequestRejected(
            f"approach expression, column {self._at + 1}: {problem}", param="optillm_approach"
        )


def _scalar(word: str) -> Value:
    if word in _CONSTANTS:
        return _CONSTANTS[word]
    if not _NUMBER.fullmatch(word):
        return word
    try:
        return int(word)
    except ValueError:
        return float(word)


def _value_text(value: Value) -> str:
    if isinstance(value, tuple):
        return f"[{';'.join(_value_text(item) for item in value)}]"
    if not isinstance(value, str):
        return json.dumps(value)
    if _WORD.fullmatch(value) and _scalar(value) == value:
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
