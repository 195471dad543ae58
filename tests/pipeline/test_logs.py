"""Log lines about stages and faults: names, code locations and figures, and no text."""

import logging
import re
from collections.abc import Callable
from contextlib import suppress

import pytest

from optillm_hooks.context import Context, MeteredLLM
from optillm_hooks.errors import ProviderFailed
from optillm_hooks.pipeline.logs import format_traceback, logged_stage
from optillm_hooks.testing import ScriptedLLM, chat, context
from optillm_hooks.types import Sampling

PROMPT = "6 * 7?"


def ask_for(key: str) -> str:
    none: dict[str, str] = {}
    return none[key]


def implicitly() -> None:
    try:
        ask_for(PROMPT)
    except KeyError:
        raise ValueError(PROMPT)  # noqa: B904 (as a bug in an approach would)


def explicitly() -> None:
    try:
        ask_for(PROMPT)
    except KeyError as exc:
        raise ValueError(PROMPT) from exc


def suppressed() -> None:
    try:
        ask_for(PROMPT)
    except KeyError:
        raise ValueError(PROMPT) from None


def in_a_group() -> None:
    errors: list[Exception] = []
    for fail in (explicitly, suppressed):
        try:
            fail()
        except ValueError as exc:
            errors.append(exc)
    raise ExceptionGroup(PROMPT, errors)


def in_a_circle() -> None:
    error = ValueError(PROMPT)
    error.__cause__ = error
    raise error


def too_deep(calls: int = 100) -> None:
    if not calls:
        raise RecursionError(PROMPT)
    too_deep(calls - 1)


HERE = r"tests/pipeline/test_logs.py:\d+"
VALUE = f"ValueError at {HERE} > {HERE}"
KEY = f"KeyError at {HERE} > {HERE}"
MEMBERS = rf"\[{VALUE}, caused by {KEY}; {VALUE}\]"


@pytest.mark.parametrize(
    ("fail", "expected"),
    [
        pytest.param(lambda: ask_for(PROMPT), f"KeyError at {HERE} > {HERE} > {HERE}", id="alone"),
        pytest.param(implicitly, rf"{VALUE}, caused by {KEY}", id="while handling another"),
        pytest.param(explicitly, rf"{VALUE}, caused by {KEY}", id="from another"),
        pytest.param(suppressed, VALUE, id="from None"),
        pytest.param(in_a_group, f"ExceptionGroup at {HERE} > {HERE} {MEMBERS}", id="a group"),
        pytest.param(in_a_circle, VALUE, id="its own cause"),
    ],
)
def test_an_exception_is_named_by_its_type_and_places(
    fail: Callable[[], object], expected: str
) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011 (of several types)
        fail()
    assert re.fullmatch(expected, format_traceback(caught.value))


def test_the_innermost_place_is_the_last() -> None:
    with pytest.raises(KeyError) as caught:
        ask_for(PROMPT)
    line = ask_for.__code__.co_firstlineno + 2
    assert format_traceback(caught.value).endswith(f" > tests/pipeline/test_logs.py:{line}")


def test_a_deep_traceback_is_logged_by_its_ends() -> None:
    with pytest.raises(RecursionError) as caught:
        too_deep()
    frames = format_traceback(caught.value).split(" > ")
    assert (len(frames), frames[10]) == (31, "...")


def test_an_exception_that_was_never_raised_has_its_type() -> None:
    assert format_traceback(KeyError(PROMPT)) == "KeyError"


# ---------------------------------------------------------------------------------------- stages


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.DEBUG, logger="optillm_hooks")
    return lambda: [re.sub(r"seconds=\d+\.\d{3}", "seconds=S", m) for m in caplog.messages]


async def work(ctx: Context) -> None:
    llm = MeteredLLM(ScriptedLLM(["41", "42", ProviderFailed(PROMPT)]), ctx)
    with logged_stage("first", ctx):
        await llm.complete(chat(PROMPT), Sampling())
    with suppress(ProviderFailed), logged_stage("second", ctx):
        for _ in range(2):
            await llm.complete(chat(PROMPT), Sampling())


@pytest.mark.anyio
async def test_a_stage_logs_its_start_and_end(lines: Callable[[], list[str]]) -> None:
    root = context()
    root.trace.call_id = "b1"
    await work(root.child(0, stage="re2&bon"))
    await work(root.child(1, stage="moa"))
    first = "call_id=b1 approach=first chain=moa choice=1"
    second = "call_id=b1 approach=second chain=moa choice=1"
    assert lines()[4:] == [
        f"stage started: {first}",
        f"stage ended: {first} outcome=ok seconds=S calls=1",
        f"stage started: {second}",
        f"stage ended: {second} outcome=ProviderFailed seconds=S calls=2",
    ]


@pytest.mark.anyio
async def test_a_stage_counts_the_calls_of_its_own_run_only(
    lines: Callable[[], list[str]],
) -> None:
    root = context()
    other = MeteredLLM(ScriptedLLM(["42"]), root.child(1))
    with logged_stage("waiting", root.child(0)):
        await other.complete(chat(PROMPT), Sampling())
    assert lines()[-1].endswith(" calls=0")


@pytest.mark.anyio
async def test_stages_cost_nothing_where_nobody_reads_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="optillm_hooks")
    await work(context())
    assert not caplog.messages
