"""Rewrites a program so that each statement that cannot run is left to a model to simulate.

The program runs from its beginning until a statement fails whose effect is not known yet. That
statement and the values of all variables are reported, and the program ends. It is run again with
the effects that the model has given so far, in the order in which they were needed, and so gets
one statement further each time. So no process waits for a model, and every kind of code runner will
do. A program has to do the same each time: random numbers are seeded.

Calls of functions that the program does not define are taken out of their statement, so that the
model gives their value, and the statement itself runs. A function whose body is empty counts as not
defined. In functions and in `try`, only what is not defined is simulated: other errors are the
program's own, as it may handle them.
"""

import ast
import builtins
import json
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from pydantic import BaseModel, Field

from optillm_hooks.code_execution.public_tests import MAX_CHARACTERS
from optillm_hooks.types import Json

MAX_STATEMENTS: Final = 500
_MAX_SOURCE: Final = 1 << 19
_MAX_NAMES: Final = 40
"""Variables of a scope whose values are reported."""

_MAX_STATE: Final = 4000
"""Characters of values after which no further variable is reported, and of the answer."""

VALUE: Final = "value"
"""The name under which a model gives the value of an expression."""

ANSWER: Final = "answer"
"""The variable that has the answer at the end."""

_NO_MODULE: Final = "except ImportError:\n    pass"
"""The names of a missing module stay undefined, so what needs them is simulated."""

_NO_ROOM: Final = "except (MemoryError, RecursionError):\n    raise\n"
"""No model can do what a program has too little room for."""

_UNDEFINED: Final = "(NameError, ImportError, NotImplementedError)"
_Functions = ast.FunctionDef | ast.AsyncFunctionDef
_INNER: Final = (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_SOMETIMES: Final = (ast.BoolOp, ast.IfExp, *_INNER)
"""Expressions whose parts are not evaluated once, before their statement."""

_PRELUDE: Final = """\
import json as _coc_json
import random as _coc_random
_coc_random.seed(0)
_coc_known = _coc_json.loads({known!r})
_coc_max = {max_state}
_coc_used = 0
_coc_missing = None
def _coc_shown(value):
    try:
        return repr(value)[:_coc_max]
    except Exception:
        return "?"
def _coc_ask(statement, error, state, used):
    global _coc_used, _coc_missing
    if _coc_missing is None and _coc_used < len(_coc_known):
        if _coc_known[_coc_used][0] == statement:
            _coc_used = _coc_used + 1
            return _coc_known[_coc_used - 1][1]
    if _coc_missing is None:
        told, size = {{}}, 0
        for name in [*used, *state]:
            if name in state and name not in told and size < _coc_max:
                told[name] = state[name]
                size = size + len(state[name])
        reason = type(error).__name__ + ": " + str(error)[:500]
        _coc_missing = {{"statement": statement, "error": reason, "state": told}}
    raise KeyboardInterrupt("a statement has to be simulated")
"""

_REPORT: Final = """\
def _coc_end():
    try:
        value = answer
    except NameError:
        return None
    return value[:_coc_max] if isinstance(value, str) else _coc_shown(value)
print(_coc_json.dumps({"missing": _coc_missing, "used": _coc_used, "answer": _coc_end()}))
"""


class Statement(NamedTuple):
    """What a model may be asked to simulate."""

    text: str
    is_value: bool
    """Whether it is an expression, of which the value is asked."""


class Stepped(NamedTuple):
    """A program that is ready to be run step by step."""

    source: str
    statements: list[Statement]
    """By number."""


class Effect(NamedTuple):
    """What a model says that a statement does."""

    statement: int
    """Its number."""

    values: dict[str, Json]
    """New values of variables; that of an expression is named `VALUE`."""


class Missing(BaseModel):
    """A statement whose effect is not known yet."""

    statement: int = Field(ge=0)
    error: str
    state: dict[str, str]
    """The values of variables, as Python writes them; those in the statement first."""


class Report(BaseModel):
    """How far a program has come."""

    missing: Missing | None
    used: int
    """How many of the known effects it has used."""

    answer: str | None


def session(program: Stepped, known: Sequence[Effect]) -> list[str]:
    """Return the snippets of a run of `program` with the effects known so far.

    The second is the program, and the output of the third is a `Report`.
    """
    return [
        _PRELUDE.format(known=json.dumps(known), max_state=_MAX_STATE),
        program.source,
        _REPORT,
    ]


class NotStepped(Exception):
    """The program cannot be parsed, or is too long; the message is for the model."""


def step(program: str) -> Stepped:
    """Return `program` with the means to leave statements to a model.

    Raises:
        NotStepped: it is not Python, or too long.
    """
    if len(program) > MAX_CHARACTERS:
        raise NotStepped("the program is too long")
    try:
        stepped = _step(ast.parse(program))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as exc:
        raise NotStepped(f"{type(exc).__name__}: {exc}"[:500]) from exc
    if len(stepped.statements) > MAX_STATEMENTS or len(stepped.source) > _MAX_SOURCE:
        raise NotStepped("the program has too many statements")
    return stepped


def _step(tree: ast.Module) -> Stepped:
    rewriter = _Rewriter(tree)
    body = rewriter.body(tree.body, _Scope(rewriter.globals, None))
    future = [s for s in tree.body if _is_future(s)]
    rest = [s for s in body if s not in future]
    lines = [*map(ast.unparse, future), _state_functions(rewriter.globals), *map(ast.unparse, rest)]
    return Stepped("\n".join(lines), rewriter.statements)


@dataclass(frozen=True, slots=True)
class _Scope:
    """Where a statement stands."""

    names: Sequence[str]
    """The variables whose values are reported, and can be set."""

    function: ast.AST | None
    handled: bool = False
    """Whether the program may handle errors itself."""

    @property
    def handler(self) -> str:
        """The beginning of the `except` of a statement."""
        own = self.handled or self.function is not None
        return f"except {_UNDEFINED}" if own else f"{_NO_ROOM}except Exception"


class _Rewriter:
    """Rewrites one program."""

    def __init__(self, tree: ast.Module) -> None:
        self.statements: list[Statement] = []
        self._defined = _defined(tree)
        self.globals = _assigned(tree.body)[:_MAX_NAMES]
        self._temporaries = 0

    def body(self, statements: Sequence[ast.stmt], scope: _Scope) -> list[ast.stmt]:
        """Return the statements of a block, rewritten."""
        found = [new for old in statements for new in self._statement(old, scope)]
        return found or [ast.Pass()]

    def _statement(self, old: ast.stmt, scope: _Scope) -> Iterator[ast.stmt]:
        match old:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                if not _is_stub(old):
                    yield self._function(old)
            case ast.ClassDef():
                old.body = [
                    self._function(each) if isinstance(each, _Functions) else each
                    for each in old.body
                ]
                yield old
            case ast.If():
                old.test = yield from self._value(old.test, scope)
                old.body = self.body(old.body, scope)
                old.orelse = self.body(old.orelse, scope) if old.orelse else []
                yield old
            case ast.While():
                yield self._while(old, scope)
            case ast.For() | ast.AsyncFor():
                old.iter = yield from self._value(old.iter, scope)
                old.body = self.body(old.body, scope)
                old.orelse = self.body(old.orelse, scope) if old.orelse else []
                yield old
            case ast.With() | ast.AsyncWith():
                old.body = self.body(old.body, scope)
                yield old
            case ast.Try() | ast.TryStar():
                inner = _Scope(scope.names, scope.function, handled=True)
                old.body = self.body(old.body, inner)
                for handler in old.handlers:
                    handler.body = self.body(handler.body, scope)
                old.orelse = self.body(old.orelse, scope) if old.orelse else []
                old.finalbody = self.body(old.finalbody, scope) if old.finalbody else []
                yield old
            case ast.Match():
                old.subject = yield from self._value(old.subject, scope)
                for each in old.cases:
                    each.body = self.body(each.body, scope)
                yield old
            case ast.Return(value=ast.expr() as value):
                old.value = yield from self._value(value, scope)
                yield old
            case ast.Import() | ast.ImportFrom():
                yield old if _is_future(old) else _try(old, _NO_MODULE)
            case ast.Assign() | ast.AugAssign() | ast.AnnAssign() | ast.Expr():
                yield from self._simple(old, scope)
            case _:
                yield old

    def _function(self, old: _Functions) -> _Functions:
        names = _local_names(old)[:_MAX_NAMES]
        old.body = self.body(old.body, _Scope(names, old))
        return old

    def _while(self, old: ast.While, scope: _Scope) -> ast.stmt:
        """Return a loop that evaluates its condition as a statement of its own."""
        body = self.body(old.body, scope)
        if old.orelse:
            old.body, old.orelse = body, self.body(old.orelse, scope)
            return old
        values = self._value(old.test, scope)
        head: list[ast.stmt] = []
        while True:
            try:
                head.append(next(values))
            except StopIteration as done:
                test: ast.expr = done.value
                break
        stop = ast.If(ast.UnaryOp(ast.Not(), test), [ast.Break()], [])
        return ast.While(ast.Constant(True), [*head, stop, *body], [])

    def _simple(
        self, old: ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Expr, scope: _Scope
    ) -> Iterator[ast.stmt]:
        if old.value is None or isinstance(old.value, ast.Constant):  # it cannot fail
            yield old
            return
        shown = ast.unparse(old)
        if isinstance(old.value, ast.Call) and self._is_unknown(old.value):
            old.value = yield from self._value(old.value, scope)
        else:
            yield from self._unknown_calls(old, scope)
        yield self._attempt(old, shown, scope)

    def _value(self, expression: ast.expr, scope: _Scope) -> Generator[ast.stmt, None, ast.expr]:
        """Yield statements that give the value of `expression` a name, and return the name."""
        if isinstance(expression, ast.Constant | ast.Name):
            return expression
        shown = ast.unparse(expression)
        holder = ast.Expr(expression)
        yield from self._unknown_calls(holder, scope, but=expression)
        name = self._temporary()
        value = ast.Assign([ast.Name(name, ast.Store())], holder.value, lineno=0)
        yield self._attempt(value, shown, scope, name)
        return ast.Name(name, ast.Load())

    def _unknown_calls(
        self, statement: ast.stmt, scope: _Scope, but: ast.expr | None = None
    ) -> Iterator[ast.stmt]:
        """Yield statements that evaluate the unknown calls in `statement`, innermost first.

        In it, names take their places. `but` is not taken out itself.
        """
        taken: list[ast.stmt] = []
        rewriter = self

        class TakeOut(ast.NodeTransformer):
            def visit(self, node: ast.AST) -> ast.AST:
                if isinstance(node, _SOMETIMES):
                    return node
                self.generic_visit(node)
                if node is but or not isinstance(node, ast.Call):
                    return node
                if not rewriter._is_unknown(node):
                    return node
                name = rewriter._temporary()
                value = ast.Assign([ast.Name(name, ast.Store())], node, lineno=0)
                taken.append(rewriter._attempt(value, ast.unparse(node), scope, name))
                return ast.Name(name, ast.Load())

        TakeOut().visit(statement)
        yield from taken

    def _is_unknown(self, call: ast.Call) -> bool:
        return isinstance(call.func, ast.Name) and call.func.id not in self._defined

    def _temporary(self) -> str:
        self._temporaries += 1
        return f"_coc_{self._temporaries}"

    def _attempt(self, statement: ast.stmt, shown: str, scope: _Scope, value: str = "") -> ast.stmt:
        """Return `statement` in a `try` that has a model simulate it.

        Args:
            statement: what is tried.
            shown: how it is shown to the model.
            scope: where it stands.
            value: the variable that gets the value of an expression; empty if it is a statement.
        """
        number = len(self.statements)
        self.statements.append(Statement(shown, bool(value)))
        used = [node.id for node in ast.walk(statement) if isinstance(node, ast.Name)]
        asked = f"_coc_ask({number}, _coc_error, _coc_state(), {used})"
        lines: list[str] = []
        if scope.function is not None:
            lines = ["_coc_local = _coc_state()", *_reading(scope.names, "_coc_local")]
            asked = f"_coc_ask({number}, _coc_error, _coc_local, {used})"
        if value:
            lines.append(f"{value} = {asked}[{VALUE!r}]")
        elif scope.function is None:
            lines.append(f"_coc_set({asked})")
        else:
            lines += [f"_coc_effect = {asked}", *_setting(scope.names)]
        return _try(statement, f"{scope.handler} as _coc_error:\n{_indented(lines)}")


def _indented(lines: Iterable[str]) -> str:
    return "\n".join(f"    {line}" for text in lines for line in text.splitlines())


def _reading(names: Iterable[str], into: str) -> list[str]:
    """Return statements that put the values of the variables that have one into a dictionary."""
    return [
        f"try:\n    {into}[{name!r}] = _coc_shown({name})\nexcept NameError:\n    pass"
        for name in names
    ]


def _setting(names: Iterable[str]) -> list[str]:
    """Return statements that set the variables which an effect names."""
    return [f"if {name!r} in _coc_effect:\n    {name} = _coc_effect[{name!r}]" for name in names]


def _try(statement: ast.stmt, handler: str) -> ast.Try:
    """Return `statement` in a `try` with `handler`, the text of its `except`."""
    [attempt] = ast.parse(f"try:\n    pass\n{handler}").body
    if not isinstance(attempt, ast.Try):
        raise TypeError("the handler is not one")
    attempt.body = [statement]
    return attempt


def _state_functions(names: Sequence[str]) -> str:
    """Return the functions that read and set the variables of the module."""
    reading = _indented(["_coc_all = {}", *_reading(names, "_coc_all"), "return _coc_all"])
    declared = [f"global {', '.join(names)}"] if names else ["pass"]
    return (
        f"def _coc_state():\n{reading}\n"
        f"def _coc_set(_coc_effect):\n{_indented([*declared, *_setting(names)])}"
    )


def _is_future(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.ImportFrom) and statement.module == "__future__"


def _is_stub(function: _Functions) -> bool:
    """Return whether a function has no body but a docstring, `pass`, `...` or an error."""
    return all(map(_is_empty, function.body))


def _is_empty(statement: ast.stmt) -> bool:
    match statement:
        case ast.Pass() | ast.Expr(value=ast.Constant()):
            return True
        case ast.Raise(exc=ast.Name(id=name)) | ast.Raise(exc=ast.Call(func=ast.Name(id=name))):
            return name == "NotImplementedError"
        case _:
            return False


def _defined(tree: ast.Module) -> set[str]:
    """Return all names that the program or Python defines anywhere."""
    names = set(dir(builtins))
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                if not _is_stub(node):
                    names.add(node.name)
            case ast.ClassDef(name=name):
                names.add(name)
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
                names.add(name)
            case ast.alias(name=name, asname=other):
                names.add(other or name.partition(".")[0])
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)):
                names.add(name)
            case ast.MatchStar(name=str(name)) | ast.MatchMapping(rest=str(name)):
                names.add(name)
            case _:
                pass
    return names


def _assigned(body: Sequence[ast.stmt]) -> list[str]:
    """Return the variables that statements assign in their own scope, and `global` ones."""
    names: dict[str, None] = {}
    stack: list[ast.AST] = list(reversed(body))
    while stack:
        node = stack.pop()
        if isinstance(node, (*_INNER, ast.ClassDef)):
            continue
        if isinstance(node, _Functions):
            names.update(dict.fromkeys(_declared_global(node)))
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names[node.id] = None
        stack.extend(reversed(list(ast.iter_child_nodes(node))))
    return list(names)


def _declared_global(function: _Functions) -> list[str]:
    return [n for node in ast.walk(function) if isinstance(node, ast.Global) for n in node.names]


def _local_names(function: _Functions) -> list[str]:
    """Return the parameters of a function and the variables that it assigns."""
    of = function.args
    given = [a.arg for a in (*of.posonlyargs, *of.args, *of.kwonlyargs, of.vararg, of.kwarg) if a]
    return list(dict.fromkeys([*given, *_assigned(function.body)]))
