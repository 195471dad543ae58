"""What each verifier says about answers, and what they say together."""

import asyncio
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from types import SimpleNamespace
from typing import Any

import pytest

from optillm_hooks import packages
from optillm_hooks.budget import Limits
from optillm_hooks.code_execution.runner import MontyRunner
from optillm_hooks.context import Context, MeteredLLM
from optillm_hooks.errors import Refused
from optillm_hooks.services import ServiceFailed, Services
from optillm_hooks.testing import HANG, Reply, ScriptedLLM, chat, context
from optillm_hooks.types import Completion, Json, Sampling
from optillm_hooks.verifiers import panel
from optillm_hooks.verifiers.constraints import literal
from optillm_hooks.verifiers.panel import all_verifiers, panel_for, together
from optillm_hooks.verifiers.protocol import UNKNOWN, Asked, Check, Verdict

pytestmark = pytest.mark.anyio

PASS, FAIL, PROVEN = "pass", "fail", "proven"


def short(verdict: Verdict) -> str:
    return PROVEN if verdict.proven else verdict.outcome


async def verdicts(
    names: Sequence[str],
    request: str,
    answers: Sequence[str],
    replies: Sequence[Reply] = (),
    ctx: Context | None = None,
    **given: Any,
) -> list[str]:
    ctx, llm = ctx or context(limits=Limits()), ScriptedLLM(replies)
    asked = Asked(chat=chat(request), llm=MeteredLLM(llm, ctx), ctx=ctx, **given)
    async with panel_for(names, asked) as opened:
        found = [await opened.verdict(Completion(answer)) for answer in answers]
    llm.assert_used_up()
    return [short(each) for each in found]


def served(**services: Any) -> Context:
    ctx = context(limits=Limits())
    ctx.services = Services(**services)
    return ctx


async def test_programs_pass_the_tests_of_the_request() -> None:
    good = "```python\ndef double(n):\n    return 2 * n\n```"
    half = "```python\ndef double(n):\n    return n\n```"
    request = "Write double.\n\n>>> double(0)\n0\n>>> double(2)\n4\n"
    ctx = served(code_runner=MontyRunner())
    found = await verdicts(["tests"], request, [good, half, "It is easy."], ctx=ctx)
    assert found == [PROVEN, FAIL, FAIL]


async def test_the_share_of_passed_tests_is_the_score() -> None:
    ctx = served(code_runner=MontyRunner())
    request = ">>> double(0)\n0\n>>> double(2)\n4\n"
    asked = Asked(chat=chat(request), llm=MeteredLLM(ScriptedLLM([]), ctx), ctx=ctx)
    async with panel_for(["tests"], asked) as opened:
        half = "```python\ndef double(n):\n    return n\n```"
        assert await opened.verdict(Completion(half)) == Verdict("fail", 0.5)


@pytest.mark.parametrize(
    ("request_text", "answers", "expected"),
    [
        ("6 * 7?", ["ANSWER: 42", "It is 41.", "<think>41</think>42"], [PROVEN, FAIL, PROVEN]),
        ("6 * 7?", ['{"answer": 42}', "Who knows?"], [PROVEN, "unknown"]),
        ("Solve x^2 - 5x + 6 = 0", ["x = 3, x = 2", "2", "4"], [PROVEN, PASS, FAIL]),
        ("Solve x^3 = 8", ["x = 2", "x = 3"], [PROVEN, FAIL]),
        ("x + y = 5 and x - y = 1", ["x = 3, y = 2", "(2, 3)"], [PROVEN, FAIL]),
    ],
)
async def test_equations(request_text: str, answers: list[str], expected: list[str]) -> None:
    assert await verdicts(["sympy"], request_text, answers) == expected


SCRIPT = """\
```smt2
(declare-const answer Int)
(declare-const k Int)
(assert (= answer (* 7 k)))
(assert (> answer 30))
{best}
```"""


@pytest.mark.parametrize(
    ("best", "expected"),
    [
        pytest.param("(minimize answer)", [PROVEN, FAIL, FAIL, "unknown"], id="the smallest"),
        pytest.param("(assert (< answer 40))", [PROVEN, FAIL, FAIL, "unknown"], id="the only one"),
        pytest.param("", [PASS, PASS, FAIL, "unknown"], id="one of many: nothing is proven"),
    ],
)
async def test_constraints_are_written_once(best: str, expected: list[str]) -> None:
    answers = ["ANSWER: 35", "42", "ANSWER: 35.5", "No idea."]
    replies = [SCRIPT.format(best=best)]
    assert await verdicts(["z3"], "A multiple of 7 above 30?", answers, replies) == expected


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param("Let me see.", id="no formalisation"),
        pytest.param("```smt2\n(declare-const x Int)\n```", id="no answer in it"),
        pytest.param("```smt2\n(declare-const answer Int)\n(\n```", id="broken"),
        pytest.param(
            "```smt2\n(declare-const answer Int)\n(assert false)\n```", id="contradictory"
        ),
    ],
)
async def test_constraints_that_cannot_be_used_say_nothing(reply: str) -> None:
    ctx = context(limits=Limits())
    assert await verdicts(["z3"], "Which?", ["42"], [reply], ctx) == ["unknown"]
    assert ctx.trace.lost == ("formalisations:1/1",)


async def test_a_model_that_sees_no_constraints_is_no_loss() -> None:
    ctx = context(limits=Limits())
    assert await verdicts(["z3"], "Which?", ["42"], ["NONE"], ctx) == ["unknown"]
    assert not ctx.trace.lost


@pytest.mark.parametrize(
    ("final", "sort", "expected"),
    [
        ("7", "Int", "7"),
        ("-1,234 apples", "Int", "(- 1234)"),
        ("3/4", "Real", "(/ 3.0 4.0)"),
        ("2.5", "Int", "(/ 5.0 2.0)"),
        ("Yes.", "Bool", "true"),
        ("Ann", "String", '"ann"'),
        ('a" (exit)', "String", '"a"" (exit)"'),
        ("1/0", "Real", None),
        ("2 or 3", "Int", None),
        ("many", "Int", None),
        ("maybe", "Bool", None),
    ],
)
def test_literals(final: str, sort: str, expected: str | None) -> None:
    assert literal(final, sort) == expected


OBJECT: dict[str, Json] = {"type": "object", "required": ["x"]}


async def test_the_form_of_json() -> None:
    answers = ['{"x": 1}', 'Here: {"x": 1}', '{"y": 1}', "none"]
    found = await verdicts(["schema"], "Which?", answers, schema=OBJECT)
    assert found == [PASS, PASS, FAIL, FAIL]
    wanted: Json = {"type": "json_schema", "json_schema": {"name": "n", "schema": OBJECT}}
    ctx = context(limits=Limits(), client=Sampling(fields={"response_format": wanted}))
    assert await verdicts(["auto"], "Which?", answers, ctx=ctx) == [PASS, FAIL, FAIL, FAIL]


@pytest.mark.parametrize("schema", [{"type": "thing"}, {"$ref": "#/nowhere"}])
async def test_a_schema_that_is_none_is_refused(schema: dict[str, Json]) -> None:
    with pytest.raises(Refused, match="json_schema"):
        await verdicts(["auto"], "Which?", ["{}"], schema=schema)


async def test_a_pattern_is_searched_for() -> None:
    answers = ["ANSWER: B", "ANSWER: b", "It is B."]
    found = await verdicts(["auto"], "Which?", answers, pattern=r"^ANSWER: [A-D]$")
    assert found == [PASS, FAIL, FAIL]


async def test_a_pattern_that_takes_for_ever_is_ended() -> None:
    ctx = context(limits=Limits())
    found = await verdicts(["regex"], "Which?", ["a" * 60], ctx=ctx, pattern=r"^(a|a)*b$")
    assert found == ["unknown"]
    assert ctx.trace.lost == ("verifications:1/1",)


@pytest.mark.parametrize("pattern", ["(", "(?P<a>.)(?P<a>.)", "a{9999999999999}", "*"])
async def test_a_pattern_that_is_none_is_refused(pattern: str) -> None:
    with pytest.raises(Refused, match="pattern"):
        await verdicts(["auto"], "Which?", ["a"], pattern=pattern)


async def test_arithmetic_in_an_answer() -> None:
    answers = ["6 * 7 = 42", "6 * 7 = 43", "Many."]
    assert await verdicts(["calculator"], "Which?", answers) == [PASS, FAIL, "unknown"]


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ((True, 0.8), Verdict("pass", 0.8, proven=True)),
        ((False, None), Verdict("fail", 0.0)),
        ((None, 0.3), Verdict("unknown", 0.3)),
        (ServiceFailed("down"), UNKNOWN),
    ],
)
async def test_the_operators_word_settles_it(reply: Any, expected: Verdict) -> None:
    seen: list[tuple[str, str]] = []

    async def check(question: str, answer: str, /) -> tuple[bool | None, float | None]:
        seen.append((question, answer))
        if isinstance(reply, Exception):
            raise reply
        return reply  # type: ignore[no-any-return] # a row above

    ctx = served(answer_check=check)
    asked = Asked(chat=chat("Which?"), llm=MeteredLLM(ScriptedLLM([]), ctx), ctx=ctx)
    async with panel_for(["http"], asked) as opened:
        assert await opened.verdict(Completion("<think>B?</think>A")) == expected
    assert seen == [("Which?", "A")]
    assert bool(ctx.trace.lost) == isinstance(reply, Exception)


# ------------------------------------------------------------------------------ together


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], UNKNOWN),
        ([UNKNOWN, UNKNOWN], UNKNOWN),
        ([UNKNOWN, Verdict("pass", 1.0)], Verdict("pass", 1.0)),
        ([Verdict("pass", 1.0, proven=True), Verdict("pass", 0.5)], Verdict("pass", 0.75, True)),
        ([Verdict("pass", 1.0, proven=True), Verdict("fail", 0.0)], Verdict("fail", 0.5)),
        ([Verdict("unknown", 0.4)], Verdict("unknown", 0.4)),
    ],
)
def test_one_that_fails_outweighs_those_that_pass(given: list[Verdict], expected: Verdict) -> None:
    assert together(given) == expected


async def test_truncated_answers_and_tool_calls_are_not_verified() -> None:
    ctx = context(limits=Limits())
    asked = Asked(chat=chat("6 * 7?"), llm=MeteredLLM(ScriptedLLM([]), ctx), ctx=ctx)
    async with panel_for(["auto"], asked) as opened:
        assert await opened.verdict(Completion("42", finish_reason="length")) == UNKNOWN
        assert await opened.verdict(Completion("<think>42")) == UNKNOWN


async def test_a_verifier_that_does_not_apply_is_counted_if_it_was_named() -> None:
    ctx = context(limits=Limits())
    assert await verdicts(["sympy", "auto"], "Why?", ["So."], ctx=ctx) == ["unknown"]
    assert ctx.trace.lost == ("verifiers:1/2",)


async def test_leaving_ends_what_is_being_prepared() -> None:
    ctx, llm = context(limits=Limits()), ScriptedLLM([HANG])
    asked = Asked(chat=chat("Which?"), llm=MeteredLLM(llm, ctx), ctx=ctx)
    before = asyncio.all_tasks()
    async with panel_for(["z3"], asked):
        await llm.until_hanging(1)
    assert llm.inside == 0
    assert asyncio.all_tasks() == before


class Short:
    """A verifier of another package: short answers are right."""

    automatic = True

    def missing(self, _: Services) -> str:
        return ""

    async def check_for(self, _: Asked) -> Check:
        class _Check(Check):
            async def verify(self, answer: str) -> Verdict:
                return Verdict("pass" if len(answer) < 3 else "fail")

        return _Check()


SHORT = Short()


async def test_other_packages_add_verifiers(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("short", f"{__name__}:SHORT", panel.ENTRY_POINT_GROUP)
    monkeypatch.setattr(packages, "entry_points", lambda *, group: [entry] if group else [])
    assert "short" not in all_verifiers()  # no package is allowed
    all_verifiers.cache_clear()
    monkeypatch.setattr(packages, "_ALLOWED", SimpleNamespace(packages="all"))
    all_verifiers.cache_clear()
    try:
        assert await verdicts(["short"], "Why?", ["So.", "No"]) == [FAIL, PASS]
    finally:
        all_verifiers.cache_clear()


async def test_a_check_that_fails_again_and_again_is_not_run_any_more() -> None:
    """Each failure may be a wait for a host that does not answer."""
    asked: list[str] = []

    async def check(_question: str, answer: str, /) -> tuple[bool | None, float | None]:
        asked.append(answer)
        if answer != "fine":
            raise ServiceFailed("no answer")
        return None, 0.5

    ctx = served(answer_check=check)
    answers = ["a", "fine", "b", "c", "d", "fine"]
    assert await verdicts(["http"], "Which?", answers, ctx=ctx) == ["unknown"] * 6
    assert asked == ["a", "fine", "b", "c"]
    assert ctx.trace.lost == ("verifications:5/6",)
