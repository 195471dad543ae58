"""Stepped programs: what can run does what it did before, and what cannot is left to a model."""

import ast
from contextlib import suppress

import pytest

from optillm_hooks.code_execution.bubblewrap_runner import bubblewrap_runner
from optillm_hooks.code_execution.reading import stepped_program
from optillm_hooks.code_execution.stepping import (
    VALUE,
    Effect,
    NotStepped,
    Report,
    Statement,
    session,
    step,
)

pytestmark = pytest.mark.anyio

PROGRAMS = {
    "scopes": """\
x = 1
def outer():
    x = 2
    def inner():
        nonlocal x
        x += 1
        return x
    return inner() + x
def change():
    global x
    x *= 10
change()
print(outer(), x, [x for x in range(3)], x)
""",
    "loops with else": """\
for n in range(3):
    if n == 5:
        break
else:
    print('all')
n = 0
while n < 3:
    n += 1
else:
    print('done', n)
while True:
    n += 1
    if n % 2:
        continue
    if n > 6:
        break
print(n)
""",
    "errors": """\
def f(n):
    try:
        if n == 0:
            raise ValueError('zero')
        return 10 // (n - 1)
    except ValueError as e:
        return str(e)
    except ZeroDivisionError:
        return 'one'
    else:
        return 'never'
    finally:
        print('leaving', n)
print([f(n) for n in range(3)])
try:
    d = {}['missing']
except KeyError as e:
    print('no', e)
""",
    "classes": """\
import dataclasses
@dataclasses.dataclass(order=True)
class P:
    x: int
    y: int = 2
    def norm(self) -> int:
        total = self.x ** 2
        total += self.y ** 2
        return total
    @property
    def twice(self):
        return 2 * self.x
    @staticmethod
    def make(n):
        return P(n, n)
class Q(P):
    def norm(self):
        return super().norm() + 1
print(Q(1).norm(), P.make(3).twice, sorted([P(2), P(1)]))
""",
    "generators": """\
def upto(n):
    got = None
    for i in range(n):
        got = yield i
        if got:
            return 'stopped'
    yield from [7, 8]
g = upto(3)
print(next(g), next(g), list(g), sum(i for i in upto(2)))
""",
    "async": """\
import asyncio
async def one(n):
    await asyncio.sleep(0)
    return n
async def main():
    total = 0
    for n in range(3):
        total += await one(n)
    got = await asyncio.gather(one(4), one(5))
    return total, got
print(asyncio.run(main()))
""",
    "matching": """\
def kind(v):
    match v:
        case {'a': x}:
            return x
        case [first, *rest]:
            return first, rest
        case int(n) if n > 3:
            return 'big'
        case _:
            return None
print(kind({'a': 1}), kind([1, 2]), kind(9), kind(1))
""",
    "assignments": """\
a = b = [1, 2]
(c, *d), e = [1, 2, 3], 4
b += [3]
a[0], a[-1] = a[-1], a[0]
if (n := len(a)) > 2:
    print(n)
x: list[int]
y: int = 5
z = y if y > 3 else None
obj = type('O', (), {})()
obj.v = [0]
obj.v[0] += 2
del c
print(a, d, e, z, obj.v, 'c' in dir())
""",
    "functions": """\
import functools
def deco(f):
    @functools.wraps(f)
    def inner(*args, **kwargs):
        return f(*args, **kwargs) + 1
    return inner
@deco
def add(a, /, b=2, *more, c=0, **rest):
    return a + b + sum(more) + c + len(rest)
fib = lambda n: n if n < 2 else fib(n - 1) + fib(n - 2)
print(add(1), add(1, 2, 3, c=4, d=5), fib(10), (lambda *a: a)(1, 2))
def empty():
    return
print(empty())
""",
    "files and texts": """\
from __future__ import annotations
import json, re as r
with open('/tmp/x', 'w') as f, open('/tmp/y', 'w') as g:
    f.write('Grüße 漢字')
text = open('/tmp/x').read()
print(f'{text!r:>12}|{len(text):03d}')
print(r.findall(r'\\w+', text))
print(json.dumps({'k': [None, True]}), 'a' 'b', '''c
d''')
""",
}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
async def test_a_program_that_can_run_prints_what_it_did_before(program: str) -> None:
    runner = bubblewrap_runner(None, (), 10.0, 512)
    [plain] = await runner.run([program])
    assert plain.error == ""
    assert plain.output
    ran = await runner.run(session(await stepped_program(program), []))
    assert [result.error for result in ran] == ["", "", ""]
    assert (ran[1].output, ran[1].stderr) == (plain.output, "")
    assert Report.model_validate_json(ran[2].output).missing is None


async def test_the_state_begins_with_the_variables_of_the_statement() -> None:
    """Where there is more than a model is shown, it gets those that it needs."""
    lines = [f"filler_{n} = 'x' * 900" for n in range(30)]
    program = "\n".join([*lines, "wanted = 'here'", "answer = guess(wanted)"])
    runner = bubblewrap_runner(None, (), 10.0, 512)
    ran = await runner.run(session(await stepped_program(program), []))
    missing = Report.model_validate_json(ran[2].output).missing
    assert missing is not None
    assert missing.state["wanted"] == "'here'"
    assert sum(map(len, missing.state.values())) < 6000
    assert missing.error == "NameError: name 'guess' is not defined"


async def test_values_that_cannot_be_shown_are_no_failure() -> None:
    program = (
        "class Odd:\n    def __repr__(self):\n        raise ValueError('no')\n"
        "odd = Odd()\nhuge = list(range(10 ** 6))\nanswer = guess(odd, huge)"
    )
    runner = bubblewrap_runner(None, (), 10.0, 512)
    ran = await runner.run(session(await stepped_program(program), []))
    missing = Report.model_validate_json(ran[2].output).missing
    assert missing is not None
    assert (missing.state["odd"], len(missing.state["huge"])) == ("?", 4000)


def test_what_is_asked_of_the_model() -> None:
    program = "a = 3\nb = known(a) + 1\nc = [far(x) for x in a]\nprint(b or far(c))"
    stepped = step(f"def known(x):\n    return x\n{program}")
    asked = {each.text: each.is_value for each in stepped.statements}
    assert asked == {
        "b = known(a) + 1": False,
        "c = [far(x) for x in a]": False,
        "print(b or far(c))": False,
    }
    assert Statement("far(c)", is_value=True) in step("x = [far(c), 1]").statements


def test_known_effects_are_data_and_not_code() -> None:
    hostile = "'''\nimport os\nos._exit(1)\n'''\"\"\"\\"
    snippets = session(step("answer = f()"), [Effect(0, {VALUE: hostile, "{known!r}": "{}"})])
    [assignment] = [
        node
        for node in ast.walk(ast.parse(snippets[0]))
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_coc_known"
    ]
    assert isinstance(assignment.value, ast.Call)
    assert isinstance(assignment.value.args[0], ast.Constant)


ODD = [
    *("(", "x =", "\0", "def f(:", "'" * 3, "  indented", "\ud800"),
    "(" * 5000,
    "x" + ".y" * 30_000,
    "-" * 50_000 + "1",
    "f(" * 90 + ")" * 90,
    "[" * 90 + "g()" + "]" * 90,
    "x = 1\n" * 100_000,
    "x = f()\n" * 501,
    "\n".join(f"v{n} = f(v{n})" for n in range(400)),
]


@pytest.mark.parametrize("program", ODD, ids=lambda text: repr(text[:12]))
async def test_a_text_that_is_no_program_breaks_nothing(program: str) -> None:
    with suppress(NotStepped):
        stepped = await stepped_program(program)
        assert len(stepped.source) < 1 << 20
        assert len(stepped.statements) <= 500


async def test_the_reason_is_one_that_a_model_can_read() -> None:
    with pytest.raises(NotStepped, match=r"^SyntaxError: .*\(.*line 2\)$"):
        await stepped_program("x = 1\ny = (")
    with pytest.raises(NotStepped, match="too many statements"):
        await stepped_program("x = f()\n" * 501)
