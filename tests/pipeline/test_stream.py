"""Streaming the pipeline: pieces, progress, choice indices, failures in mid-stream."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from optillm_hooks.budget import Limits
from optillm_hooks.context import Context
from optillm_hooks.errors import (
    ProviderFailed,
)
from optillm_hooks.llm import LLM, FinalCall
from optillm_hooks.pipeline.events import Event, Outcome, Piece, Progress
from optillm_hooks.pipeline.stream import stream
from optillm_hooks.prompts import question
from optillm_hooks.registry import NoParams
from optillm_hooks.testing import HANG, ONE_CALL, AnsweringLLM, Reply, ScriptedLLM, chat
from optillm_hooks.types import (
    Answer,
    Chat,
    Delta,
    Fields,
    Sampling,
    ToolCall,
)
from tests.fakes import Pieces
from tests.pipeline.shared import (
    BUSY,
    DRAFT,
    FINAL,
    KINDS,
    answerer,
    events,
    outcome,
    report_of,
    request,
    text_of,
)

pytestmark = pytest.mark.anyio


async def test_an_answer_that_is_not_streamed_passes_no_part_of_a_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unwanted(*_: object) -> None:
        raise AssertionError("a part of a stream")

    for part in ("Choices", "as_delta", "DeltaAccumulator"):
        monkeypatch.setattr(f"optillm_hooks.pipeline.stream.{part}", unwanted)
    asked = request([KINDS["rewriter"], KINDS["wrapper"], DRAFT, FINAL], progress=True)
    assert (await outcome(asked, ScriptedLLM(["41", "42"]))).answers[0].text == "<42>"
    with pytest.raises(AssertionError, match="a part of a stream"):
        await events(asked, ScriptedLLM([]))


async def test_a_stream_is_progress_then_pieces_then_the_outcome() -> None:
    async def judged(chat: Chat, llm: LLM, *_: object) -> FinalCall:
        await llm.complete(chat, Sampling(purpose="judge"))
        return FinalCall(chat)

    pieces = [Delta(text="4"), Delta(text="2"), Delta(finish_reason="stop", usage=ONE_CALL)]
    found = await events(request([answerer(judged)]), Pieces(pieces, ["judgement"]))
    assert found[:-1] == [
        Progress(),
        Piece(0, Delta(text="4")),
        Piece(0, Delta(text="2")),
        Piece(0, Delta(finish_reason="stop")),
    ]
    assert report_of(found).usage == ONE_CALL + ONE_CALL


async def test_the_first_piece_is_shown_before_the_reply_ends() -> None:
    llm = Pieces([Delta(text="4"), HANG])
    found = stream(request([FINAL]), {"base": llm}.__getitem__)
    assert await anext(found) == Piece(0, Delta(text="4"))
    await found.aclose()
    assert llm.closed


async def test_an_answer_that_is_there_already_comes_by_its_kinds_of_content() -> None:
    async def ready(*_: object) -> Answer:
        return Answer("42", reasoning="6 * 7", fields={"annotations": [1]})

    found = await events(request([answerer(ready)]), ScriptedLLM([]))
    assert found[:-1] == [
        Piece(0, Delta(reasoning="6 * 7", fields={"annotations": [1]})),
        Piece(0, Delta(text="42")),
        Piece(0, Delta(finish_reason="stop")),
    ]


async def test_every_part_of_a_piece_is_passed_on() -> None:
    call: Fields = {"index": 0, "id": "1", "function": {"name": "f", "arguments": "{}"}}
    pieces = [
        Delta(reasoning="hm"),
        Delta(fields={"annotations": [1]}),
        Delta(tool_calls=(call,)),
        Delta(),
        Delta(finish_reason="tool_calls", usage=ONE_CALL),
    ]
    found = await events(request([FINAL]), Pieces(pieces))
    shown = [event.delta for event in found if isinstance(event, Piece)]
    assert shown == [*pieces[:3], Delta(finish_reason="tool_calls")]
    assert isinstance(found[-1], Outcome)
    [answer] = found[-1].answers
    assert answer.tool_calls == (ToolCall("1", "f", "{}"),)
    assert (answer.reasoning, answer.finish_reason) == ("hm", "tool_calls")


async def test_choices_of_one_stream_keep_their_numbers() -> None:
    def reply(sent: Chat, _: Sampling) -> Reply:
        return "b" if "rewritten" in question(sent) else "a"

    class Streaming(AnsweringLLM):
        async def stream(self, chat: Chat, sampling: Sampling, /) -> AsyncGenerator[Delta, None]:
            yield Delta(text=(await self.complete(chat, sampling)).text)
            yield Delta(finish_reason="stop", usage=ONE_CALL)

    asked = request([DRAFT], [KINDS["rewriter"]], n=2)
    found = await events(asked, Streaming(reply))
    assert [text_of(found, number) for number in range(4)] == ["a", "a", "b", "b"]


async def test_the_filters_text_is_streamed() -> None:
    pieces = [Delta(text="4"), Delta(text="2"), Delta(finish_reason="length", usage=ONE_CALL)]
    found = await events(request([KINDS["wrapper"]]), Pieces(pieces))
    shown = [event.delta for event in found if isinstance(event, Piece)]
    assert [delta.text for delta in shown] == ["<4", "2", ">", ""]
    assert shown[-1].finish_reason == "length"


@pytest.mark.parametrize("on_error", ["error", "plain"])
async def test_a_stream_that_breaks_off_after_its_first_words_fails_and_shows_nothing_else(
    on_error: str,
) -> None:
    async def fusing(chat: Chat, _llm: LLM, _params: NoParams, ctx: Context) -> FinalCall:
        ctx.offer(Answer("a best so far"))
        return FinalCall(chat, fallback=Answer("a proposal"))

    llm = Pieces([Delta(text="4"), BUSY], ["a plain answer"])
    found: list[Event] = []
    asked = request([answerer(fusing)], on_error=on_error)
    with pytest.raises(ProviderFailed) as caught:  # noqa: PT012 (events before it count)
        async for event in stream(asked, lambda _: llm):
            found.append(event)
    assert caught.value is BUSY
    assert found == [Piece(0, Delta(text="4"))]
    assert len(llm.calls) == 1


async def test_a_streamed_choice_that_fails_leaves_no_gap_in_the_numbers() -> None:
    async def failing(_chat: Chat, *_: object) -> Answer:
        raise BUSY

    found = await events(request([answerer(failing)], [FINAL]), ScriptedLLM(["42"]))
    assert {event.choice for event in found if isinstance(event, Piece)} == {0}
    assert text_of(found) == "42"


async def test_a_streamed_choice_waits_for_the_numbers_of_those_before_it() -> None:
    async def late(_chat: Chat, llm: LLM, _params: NoParams, _ctx: Context) -> Answer:
        for _ in range(20):
            await asyncio.sleep(0)
        return await llm.complete(chat("late"), Sampling())

    found = await events(request([answerer(late)], [FINAL]), ScriptedLLM(["quick", "late"]))
    assert (text_of(found, 0), text_of(found, 1)) == ("late", "quick")


async def test_a_stream_that_breaks_off_in_its_thoughts_is_a_failure() -> None:
    llm = Pieces([Delta(reasoning="hm"), BUSY])
    with pytest.raises(ProviderFailed) as caught:
        async for _ in stream(request([FINAL]), lambda _: llm):
            pass
    assert caught.value is BUSY


async def test_a_stream_that_breaks_off_in_its_thoughts_has_its_fallback() -> None:
    async def fusing(chat: Chat, *_: object) -> FinalCall:
        return FinalCall(chat, fallback=Answer("a proposal"))

    found = await events(request([answerer(fusing)]), Pieces([Delta(reasoning="hm"), BUSY]))
    assert text_of(found) == "a proposal"


async def test_what_is_held_back_of_a_failed_choice_gives_way_to_the_best_so_far() -> None:
    """The client has not seen its pieces: they wait for the number of the choice before it."""

    async def late(chat: Chat, llm: LLM, _params: NoParams, _ctx: Context) -> Answer:
        for _ in range(50):
            await asyncio.sleep(0)
        return await llm.complete(chat, Sampling())

    async def breaking(chat: Chat, _llm: LLM, _params: NoParams, ctx: Context) -> FinalCall:
        ctx.offer(Answer("a best so far"))
        return FinalCall(chat)

    llm = Pieces([Delta(text="half an ans"), BUSY], ["first"])
    found = await events(request([answerer(late)], [answerer(breaking)]), llm)
    assert (text_of(found, 0), text_of(found, 1)) == ("first", "a best so far")
    assert report_of(found).degraded == ("provider_failed",)


async def test_an_error_before_the_first_piece_comes_before_any_event() -> None:
    llm = Pieces([BUSY])
    found = stream(request([FINAL]), {"base": llm}.__getitem__)
    with pytest.raises(ProviderFailed):
        await anext(found)


async def test_the_deadline_ends_a_stream_as_a_cut_answer() -> None:
    asked = request([FINAL], limits=Limits(deadline_s=0.05))
    found = await events(asked, Pieces([Delta(text="4"), HANG]))
    assert isinstance(found[-1], Outcome)
    assert found[-1].answers == (Answer("4", "length"),)
    assert (found[-1].report.stopped_by, found[-1].report.degraded) == ("deadline", ())


@pytest.mark.parametrize("told", [False, True])
async def test_progress_is_told_only_to_those_who_want_it(told: bool) -> None:
    async def telling(chat: Chat, _llm: LLM, _params: NoParams, ctx: Context) -> FinalCall:
        ctx.progress("thinking")
        return FinalCall(chat)

    found = await events(request([answerer(telling)], progress=told), ScriptedLLM(["42"]))
    assert (Progress("thinking") in found) is told


async def test_progress_without_text_comes_only_where_nothing_has_been_shown() -> None:
    """It would interrupt what a client shows of the progress before it."""

    async def telling(chat: Chat, llm: LLM, _params: NoParams, ctx: Context) -> FinalCall:
        ctx.progress("judging")
        await llm.complete(chat, Sampling(purpose="judge"))
        return FinalCall(chat)

    found = await events(request([answerer(telling)], progress=True), ScriptedLLM(["fine", "42"]))
    assert [event for event in found if isinstance(event, Progress)] == [Progress("judging")]
