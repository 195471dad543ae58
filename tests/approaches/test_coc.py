"""Chain of Code: what Python runs, what the model simulates, and how far a program comes."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace

import pytest

from optillm_hooks.budget import Limits
from optillm_hooks.code_execution.bubblewrap_runner import bubblewrap_runner
from optillm_hooks.code_execution.runner import CodeRunner, MontyRunner, SnippetResult
from optillm_hooks.context import Context
from optillm_hooks.errors import ProviderFailed, Refused, RequestRejected
from optillm_hooks.llm import FinalCall
from optillm_hooks.services import ServiceFailed, Services
from optillm_hooks.testing import HANG, Reply, ScriptedLLM, chat, context, params, run
from optillm_hooks.types import Answer, Chat, Message
from tests.fakes import ScriptedRunner
from tests.solver.processes import children

pytestmark = pytest.mark.anyio
ASKED = chat("How many of these are fruits: apple, carrot, plum? Answer in one word.")
BOTH = pytest.mark.parametrize(
    "runner",
    [MontyRunner(seconds=5.0), bubblewrap_runner(None, (), 5.0, 512)],
    ids=["monty", "bubblewrap"],
)


def fenced(program: str) -> str:
    return f"```python\n{program}\n```"


def value(of: object) -> str:
    return changes(value=of)


def changes(**of: object) -> str:
    return json.dumps({"changes": [{"name": k, "value": json.dumps(v)} for k, v in of.items()]})


def with_runner(
    runner: CodeRunner | None, *, max_calls: int | None = None, deadline_s: float = 600.0
) -> Context:
    ctx = context(limits=Limits(deadline_s=deadline_s, max_calls=max_calls))
    return replace(ctx, services=Services(code_runner=runner))


async def final(
    replies: Sequence[Reply], ctx: Context, asked: Chat = ASKED, **given: object
) -> tuple[FinalCall, ScriptedLLM]:
    llm = ScriptedLLM(replies)
    result = await run("coc", asked, llm, ctx, **given)
    llm.assert_used_up()
    assert isinstance(result, FinalCall)
    return result, llm


async def worked_out(program: str, *effects: str, runner: CodeRunner | None = None) -> str | None:
    """Return the value of `answer`, with the model's effects in order; a test's own shorthand."""
    ctx = with_runner(runner or MontyRunner(seconds=5.0))
    result, _ = await final([fenced(program), *effects], ctx, repairs=0, simulations=20)
    assert ctx.trace.lost == (), result.chat[-1].text
    return None if result.fallback is None else result.fallback.text


# ------------------------------------------------------------- what is run and what is simulated


@BOTH
async def test_what_python_can_run_is_not_simulated(runner: CodeRunner) -> None:
    assert await worked_out("answer = sum(n * n for n in range(4))", runner=runner) == "14"


@BOTH
async def test_a_loop_needs_the_model_for_each_round(runner: CodeRunner) -> None:
    program = (
        "count = 0\nfor thing in ['apple', 'carrot', 'plum']:\n"
        "    if is_fruit(thing):\n        count += 1\nanswer = count"
    )
    said = [value(True), value(False), value(True)]
    assert await worked_out(program, *said, runner=runner) == "2"


@BOTH
@pytest.mark.parametrize(
    ("program", "effects", "answer"),
    [
        pytest.param("answer = capital('France')", [value("Paris")], "Paris", id="a value"),
        pytest.param(
            "answer = len(name(0)) * weight(name(1))",
            [value("ab"), value("cd"), value(3)],
            "6",
            id="calls within calls, innermost first",
        ),
        pytest.param(
            "d = {}\nd['mood'] = mood('!')\nanswer = d['mood'].upper()",
            [value("glad")],
            "GLAD",
            id="an item of a dictionary",
        ),
        pytest.param(
            "found = [w for w in ['a', 'b'] if odd(w)]\nanswer = found",
            [changes(found=["b"])],
            "['b']",
            id="a comprehension is simulated as a whole",
        ),
        pytest.param(
            "names = ['x']\nnames.append(translate('y'))\nanswer = names",
            [value("z")],
            "['x', 'z']",
            id="an argument of a method",
        ),
        pytest.param(
            "n = 0\nwhile goes_on(n):\n    n += 1\nanswer = n",
            [value(True), value(True), value(False)],
            "2",
            id="the condition of a loop",
        ),
        pytest.param(
            "n = 0\nfor word in split_up('a-b'):\n    n += 1\nanswer = n",
            [value(["a", "b"])],
            "2",
            id="what a loop goes over",
        ),
        pytest.param(
            "def judge(x):\n    if good(x):\n        return rate(x)\n    return 0\n"
            "answer = judge(1) + judge(2)",
            [value(True), value(5), value(False)],
            "5",
            id="within a function",
        ),
        pytest.param(
            'def is_fruit(x):\n    """Return whether it is one."""\n    ...\nanswer = is_fruit(1)',
            [value(True)],
            "True",
            id="a function without a body",
        ),
        pytest.param(
            "def f(x):\n    raise NotImplementedError\nanswer = f(1)",
            [value(1.5)],
            "1.5",
            id="a function that is not written",
        ),
        pytest.param(
            "import weather_of_the_world as w\nanswer = w.today('Rome')",
            [changes(answer="sunny")],
            "sunny",
            id="a module that is not there",
        ),
        pytest.param("answer = 1 / 0", [changes(answer="no number")], "no number", id="an error"),
        pytest.param(
            "try:\n    x = int('seven')\nexcept ValueError:\n    x = 7\nanswer = x",
            [],
            "7",
            id="an error that the program handles",
        ),
        pytest.param(
            "try:\n    x = read(7)\nexcept Exception:\n    x = 0\nanswer = x",
            [value(8)],
            "8",
            id="what is not defined is no error to handle",
        ),
        pytest.param(
            "def number(t):\n    return int(t)\ntry:\n    x = number('?')\n"
            "except ValueError:\n    x = 3\nanswer = x",
            [],
            "3",
            id="an error of a function that its caller handles",
        ),
        pytest.param(
            "a, b = 1, 2\nc = guess(a, b)\nif c > 2 and b == 2:\n    answer = c\n"
            "else:\n    answer = 0",
            [value(3)],
            "3",
            id="a condition that Python evaluates",
        ),
        pytest.param(
            "x = 5\nswap_in_words(x)\nanswer = x", [value(None)], "5", id="a call for nothing"
        ),
        pytest.param("if is_it():\n    answer = 'ja'", [value(True)], "ja", id="a first statement"),
        pytest.param("x: int = pick()\nanswer = x", [value(4)], "4", id="an annotation"),
    ],
)
async def test_each_kind_of_statement(
    runner: CodeRunner, program: str, effects: list[str], answer: str
) -> None:
    assert await worked_out(program, *effects, runner=runner) == answer


async def test_what_only_all_of_python_has() -> None:
    runner = bubblewrap_runner(None, (), 5.0, 512)
    program = (
        "class Bag:\n    def __init__(self):\n        self.things = []\n"
        "    def put(self, thing):\n        self.things.append(describe(thing))\n"
        "class Box(Bag):\n    pass\n"
        "def each(n):\n    for i in range(n):\n        yield i\n"
        "box = Box()\nfor i in each(2):\n    box.put(i)\nwith open('/tmp/x', 'w') as f:\n"
        "    f.write(summary(box.things))\ndel i\nanswer = open('/tmp/x').read()"
    )
    said = [value("red"), value("blue"), value("colours")]
    assert await worked_out(program, *said, runner=runner) == "colours"


@BOTH
async def test_printing_and_warnings_are_no_failure(runner: CodeRunner) -> None:
    """OptiLLM called the model four times for this, and let it guess."""
    program = (
        "import sys\nprint('warning: odd', file=sys.stderr)\nfigure = 6\n"
        "print('the figure is', figure)\nanswer = figure * 7"
    )
    ctx = with_runner(runner)
    result, _ = await final([fenced(program)], ctx)
    assert result.fallback == Answer("42")
    assert "On standard error:\nwarning: odd" in result.chat[-1].text
    assert ctx.trace.lost == ()


async def test_random_numbers_are_the_same_in_each_run() -> None:
    program = (
        "import random\nrolls = [random.randint(1, 6) for _ in range(50)]\n"
        "name = luck(rolls)\nagain = [random.randint(1, 6) for _ in range(50)]\n"
        "answer = check(name, again)"
    )
    ctx = with_runner(bubblewrap_runner(None, (), 5.0, 512))
    result, llm = await final([fenced(program), value("ok"), value("fine")], ctx)
    assert result.fallback == Answer("fine")
    first, second = (asked[-1].text for asked, _ in llm.calls[1:])
    assert first.rpartition("rolls = [")[2][:50] == second.rpartition("rolls = [")[2][:50]


# --------------------------------------------------------------------------- what the model is told


async def test_the_simulation_sees_the_question_the_program_and_the_state() -> None:
    """OptiLLM's never saw the question."""
    asked = (Message("system", "Be terse."), *ASKED)
    program = "things = ['apple']\nkind = 'fruit'\nanswer = is_a(things[0], kind)"
    _, llm = await final([fenced(program), value(True)], with_runner(MontyRunner()), asked)
    simulating, sampling = llm.calls[1]
    assert simulating[0] == asked[0]
    text = simulating[-1].text
    assert text.startswith(asked[-1].text)
    assert program in text
    assert "is_a(things[0], kind)\n\nPython says: NameError" in text
    assert "things = ['apple']" in text
    assert "kind = 'fruit'" in text
    assert sampling.purpose == "judge"


async def test_the_last_call_keeps_the_conversation_and_asks_for_the_users_form() -> None:
    asked = (Message("system", "Be terse."), *ASKED)
    result, _ = await final(
        [fenced("answer = guess()"), value(2)], with_runner(MontyRunner()), asked
    )
    assert result.chat[0] == asked[0]
    text = result.chat[-1].text
    assert text.startswith(asked[-1].text)
    assert "answer = 2\n" in text
    assert 'guess()\n-> {"value": 2}' in text
    assert text.endswith("in the form that it asks for.")


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ('{"changes": [{"name": "value", "value": "lemon"}]}', "lemon"),
        ('{"changes": [{"name": "value", "value": 3}]}', "3"),
        ('{"changes": [{"name": "value", "value": ["a"]}]}', "['a']"),
        ('{"changes": [{"name": "value", "value": "{\\"a\\": [1]}"}]}', "{'a': [1]}"),
        ('{"changes": [{"name": "answer", "value": "true"}]}', "True"),
        ('<think>{"changes": []}</think>{"changes": [{"name": "value", "value": "1"}]}', "1"),
    ],
)
async def test_values_as_models_write_them(reply: str, answer: str) -> None:
    assert await worked_out("answer = guess()", reply) == answer


async def test_text_of_any_language_comes_through() -> None:
    program = "wort = 'Straße 漢字 🍎'\nanswer = umkehren(wort) + wort"
    assert await worked_out(program, value("ß' \\ \n漢")) == "ß' \\ \n漢Straße 漢字 🍎"


# ---------------------------------------------------------------------------------- what goes wrong


async def test_simulations_are_bounded() -> None:
    program = "n = 0\nwhile goes_on(n):\n    n += 1\nanswer = n"
    ctx = with_runner(MontyRunner())
    result, _ = await final([fenced(program), *[value(True)] * 3], ctx, simulations=3)
    assert ctx.trace.lost == ("simulations:1/4",)
    text = result.chat[-1].text
    assert "Nothing could be put in for goes_on(n), where the program stopped with\nn = 3" in text


@pytest.mark.parametrize(
    "replies",
    [
        [ProviderFailed("busy", status=429)],
        ["I do not know."] * 2,
        ['{"changes": []}'],
        ['{"changes": [{"name": "value", "value": "NaN"}]}'],
        [value("x" * 30_000)],
    ],
    ids=["failed", "unreadable", "no value", "not a number", "too long"],
)
async def test_a_simulation_that_fails_ends_the_program_where_it_is(replies: list[Reply]) -> None:
    ctx = with_runner(MontyRunner())
    result, _ = await final([fenced("x = 5\nanswer = guess(x)"), *replies], ctx)
    assert ctx.trace.lost == ("simulations:1/1",)
    assert "where the program stopped with\nx = 5" in result.chat[-1].text


async def test_of_a_program_that_stops_on_its_way_no_value_is_the_answer() -> None:
    ctx = with_runner(MontyRunner())
    program = "answer = 0\nprint(answer)\nfor word in ['a', 'b']:\n    answer += weight(word)"
    failed = ProviderFailed("busy", status=500)
    result, _ = await final([fenced(program), value(20), failed], ctx)
    assert "answer = 20" in result.chat[-1].text
    assert result.fallback is None


async def test_what_a_program_prints_is_the_answer_if_it_names_none() -> None:
    result, _ = await final([fenced("print(6 * 7)")], with_runner(MontyRunner()))
    assert result.fallback == Answer("42")


async def test_a_program_that_cannot_be_parsed_is_repaired() -> None:
    ctx = with_runner(MontyRunner())
    result, llm = await final([fenced("answer = ("), fenced("answer = 1")], ctx)
    assert "SyntaxError" in llm.calls[1][0][-1].text
    assert (result.fallback, ctx.trace.lost) == (Answer("1"), ())


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("raise ValueError('no')", "ValueError: no"),
        ("assert 1 == 2", "AssertionError"),
        ("while True:\n    pass", "TimeoutError"),
        ("x = [0]\nwhile True:\n    x = x + x", "memory"),
        ("def f():\n    return f()\nanswer = f()", "RecursionError"),
        ("x = f()\n" * 600, "too many statements"),
    ],
    ids=["an error of its own", "an assertion", "no end", "no memory", "no depth", "too large"],
)
async def test_a_program_that_ends_by_itself_is_repaired_or_told(program: str, said: str) -> None:
    ctx = with_runner(MontyRunner(seconds=1.0, memory_mb=64))
    result, llm = await final([fenced(program), "NONE"], ctx)
    assert said.lower() in llm.calls[1][0][-1].text.lower()
    assert "It failed: " in result.chat[-1].text
    assert ctx.trace.lost == ("program_runs:1/1",)


async def test_a_program_that_does_something_else_each_time_is_stopped() -> None:
    runner = ScriptedRunner(
        SnippetResult(output=_report(0, missing=0), error=""),
        SnippetResult(output=_report(0, missing=1), error=""),
    )
    ctx = with_runner(runner)
    program = fenced("a = one()\nanswer = two()")
    result, _ = await final([program, value(1)], ctx, repairs=0)
    assert "does not do the same each time" in result.chat[-1].text
    assert ctx.trace.lost == ("program_runs:1/1",)


def _report(used: int, missing: int) -> str:
    lacking = {"statement": missing, "error": "NameError", "state": {}}
    return json.dumps({"missing": lacking, "used": used, "answer": None})


@pytest.mark.parametrize(
    "forged",
    [
        "",
        "}",
        "[" * 50_000,
        '{"missing": {"statement": 99, "error": "", "state": {}}, "used": 0, "answer": null}',
        '{"missing": {"statement": -1, "error": "", "state": {}}, "used": 0, "answer": null}',
    ],
)
async def test_a_forged_report_is_that_of_a_program_without_one(forged: str) -> None:
    ctx = with_runner(ScriptedRunner(SnippetResult(output=forged, error="")))
    result, _ = await final([fenced("answer = 1")], ctx)
    assert "It printed nothing." in result.chat[-1].text


async def test_a_sandbox_that_fails_leaves_a_plain_answer() -> None:
    ctx = with_runner(ScriptedRunner(ServiceFailed("the sandbox does not answer")))
    result, _ = await final([fenced("answer = 1")], ctx)
    assert (result.chat, ctx.trace.lost) == (ASKED, ("program_runs:1/1",))


async def test_a_sandbox_that_fails_later_leaves_what_was_worked_out() -> None:
    runner = ScriptedRunner(
        SnippetResult(output=_report(0, missing=0), error=""), ServiceFailed("no answer")
    )
    ctx = with_runner(runner)
    result, _ = await final([fenced("answer = guess()"), value(1)], ctx)
    assert 'guess()\n-> {"value": 1}' in result.chat[-1].text


@pytest.mark.parametrize(("max_calls", "replies"), [(1, 0), (2, 1), (3, 2), (4, 3)])
async def test_the_last_call_of_a_budget_is_left_for_the_answer(
    max_calls: int, replies: int
) -> None:
    program = "x = 1\na = guess()\nb = guess()\nanswer = guess()"
    said = [fenced(program), *[value(n) for n in range(9)]]
    ctx = with_runner(MontyRunner(), max_calls=max_calls)
    result, _ = await final(said[:replies], ctx)
    assert ctx.budget.stopped_by == "max_calls"
    assert ("where the program stopped with\n" in result.chat[-1].text) == (replies > 0)


async def test_a_simulation_is_not_asked_again_with_the_last_call() -> None:
    ctx = with_runner(MontyRunner(), max_calls=3)
    await final([fenced("x = 1\nanswer = guess()"), "I do not know."], ctx)
    assert ctx.trace.lost == ("simulations:1/1",)


async def test_a_simulation_that_hangs_ends_at_the_deadline() -> None:
    ctx = with_runner(MontyRunner(), deadline_s=1.5)
    result, _ = await final([fenced("x = 1\nanswer = guess()"), HANG], ctx)
    assert "where the program stopped with\nx = 1" in result.chat[-1].text
    assert ctx.budget.stopped_by == "deadline"


@BOTH
async def test_while_the_model_simulates_no_process_waits(runner: CodeRunner) -> None:
    llm = ScriptedLLM([fenced("answer = guess()"), HANG])
    task = asyncio.create_task(run("coc", ASKED, llm, with_runner(runner)))
    await llm.until_hanging(1)
    assert not children()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@BOTH
async def test_cancelling_ends_the_program(runner: CodeRunner) -> None:
    llm = ScriptedLLM([fenced("while True:\n    pass")])
    task = asyncio.create_task(run("coc", ASKED, llm, with_runner(runner)))
    before = 0
    while before < 3:  # the worker that reads the program has come and gone by then
        await asyncio.sleep(0.01)
        before = before + 1 if children() else 0
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not children()


async def test_where_programs_may_not_run_it_is_refused() -> None:
    with pytest.raises(RequestRejected, match=r"coc runs programs, .* set code_runner to"):
        params("coc").check_services(Services())
    with pytest.raises(Refused, match="set code_runner to"):
        await run("coc", ASKED, ScriptedLLM([]), with_runner(None))
