"""Stages of every kind, and requests made of them, for tests of the pipeline."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from optillm_hooks.context import Context
from optillm_hooks.errors import (
    ProviderFailed,
)
from optillm_hooks.llm import LLM, FinalCall
from optillm_hooks.pipeline.events import Event, Outcome, Piece, Report, Request
from optillm_hooks.pipeline.plan import Plan, Stage
from optillm_hooks.pipeline.run import run
from optillm_hooks.pipeline.stream import stream
from optillm_hooks.prompts import edit_question
from optillm_hooks.registry import Approach, Cost, Kind, NoParams, Rest, Result
from optillm_hooks.testing import ScriptedLLM
from optillm_hooks.types import (
    Answer,
    Chat,
    Delta,
    Message,
    Sampling,
)

ASKED: Chat = (Message("system", "Be terse."), Message("user", "6 * 7?"))
BUSY = ProviderFailed("busy", status=429)


def stage(name: str, kind: Kind, run: Callable[..., Awaitable[Any]], calls: int = 1) -> Stage:
    def cost(_: object) -> Cost:
        return Cost(calls, calls)

    return Stage(Approach(name, kind, NoParams, run, cost, frozenset()), NoParams())


def answerer(run: Callable[..., Awaitable[Any]], name: str = "draft") -> Stage:
    return stage(name, "answerer", run)


def request(*chains: Sequence[Stage], **fields: Any) -> Request:
    labels = ["&".join(s.approach.name for s in chain) for chain in chains]
    plan = Plan(tuple(tuple(chain) for chain in chains), "|".join(labels))
    return Request(plan=plan, base="base", chat=ASKED, **fields)


async def outcome(asked: Request, *llms: ScriptedLLM) -> Outcome:
    groups = {llm.model: llm for llm in llms}
    ended = await run(asked, groups.__getitem__)
    for llm in llms:
        llm.assert_used_up()
    return ended


async def events(asked: Request, *llms: ScriptedLLM) -> list[Event]:
    groups = {llm.model: llm for llm in llms}
    found = [event async for event in stream(asked, groups.__getitem__)]
    for llm in llms:
        llm.assert_used_up()
    return found


def text_of(found: Sequence[Event], choice: int = 0) -> str:
    return "".join(e.delta.text for e in found if isinstance(e, Piece) and e.choice == choice)


def report_of(found: Sequence[Event]) -> Report:
    assert isinstance(found[-1], Outcome)
    return found[-1].report


async def draft(chat: Chat, llm: LLM, _params: NoParams, _ctx: Context) -> Answer:
    return await llm.complete(chat, Sampling())


async def final(chat: Chat, _llm: LLM, _params: NoParams, _ctx: Context) -> FinalCall:
    return FinalCall(chat)


DRAFT, FINAL = answerer(draft), answerer(final, "final")


class Brackets:
    """A filter that puts a text between brackets."""

    def __init__(self) -> None:
        self._begun = False

    def feed(self, piece: Delta, /) -> Delta:
        begun, self._begun = self._begun, self._begun or bool(piece.text)
        return piece if begun or not piece.text else replace(piece, text=f"<{piece.text}")

    def close(self) -> Delta:
        return Delta(text=">")


async def rewriting(chat: Chat, _llm: LLM, _params: NoParams, _ctx: Context) -> Chat:
    return edit_question(chat, lambda text: f"{text} rewritten")


async def wrapping(chat: Chat, rest: Rest, _llm: LLM, _params: NoParams, _ctx: Context) -> Result:
    result = await rest(edit_question(chat, lambda text: f"{text} wrapped"))
    if isinstance(result, FinalCall):
        fallback = result.fallback and bracketed(result.fallback)
        return replace(result, wrappers=(*result.wrappers, Brackets), fallback=fallback)
    return bracketed(result)


def bracketed(answer: Answer) -> Answer:
    return replace(answer, text=f"<{answer.text}>")


async def cooling(
    _chat: Chat, sampling: Sampling, _llm: LLM, _params: NoParams, _ctx: Context
) -> Sampling:
    return replace(sampling, temperature=0.0)


KINDS: dict[Kind, Stage] = {
    "rewriter": stage("rewriter", "rewriter", rewriting, 0),
    "wrapper": stage("wrapper", "wrapper", wrapping, 0),
    "decoder": stage("decoder", "decoder", cooling, 0),
    "answerer": DRAFT,
}
