"""A model that calls tools of the operator's servers before it answers."""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, TypeVar

from optillm_hooks.answers.deltas import DeltaAccumulator, as_delta
from optillm_hooks.context import Context
from optillm_hooks.errors import BudgetExceeded, Refused, SampleError, UnusableReply
from optillm_hooks.fanout import outcomes
from optillm_hooks.llm import LLM, ModelFacts
from optillm_hooks.services import Tool, ToolResult
from optillm_hooks.tools.offer import Offer
from optillm_hooks.tools.results import (
    MAX_IMAGES,
    as_message,
    images_message,
    images_of,
    read_arguments,
)
from optillm_hooks.tools.rounds import Rounds
from optillm_hooks.types import (
    Answer,
    Chat,
    Completion,
    Delta,
    Fields,
    FinishReason,
    Json,
    Message,
    Sampling,
    ToolCall,
    Usage,
)

_A = TypeVar("_A", bound=Answer)

CallTool = Callable[[Tool, dict[str, Json]], Awaitable[ToolResult]]
"""Returns the result of a tool, or raises a `SampleError`."""

_REMARK: Final = 400
"""Characters. A shorter text before a tool call is a remark, which is not part of the answer."""

_THOUGHTS: Final = ("thinking_blocks", "provider_specific_fields")
"""Fields of a reply that its provider wants back with the results of its tool calls."""


@dataclass(slots=True, kw_only=True)
class LoopLimits:
    """What the tool calls of one request may take."""

    rounds: int
    """Replies with tool calls, for each answer of the model."""

    calls: int
    """Calls that are left, of all answers together."""

    timeout_s: float
    result_characters: int
    """Of one result."""

    answer_characters: int
    """Of all results that lead to one answer."""

    slots: asyncio.Semaphore

    def take(self) -> bool:
        """Take one call; return False if none is left."""
        self.calls -= 1
        return self.calls >= 0


@dataclass(slots=True)
class _Turn:
    """One answer of the model under way."""

    chat: Chat
    """The conversation, with the rounds so far."""

    asked: Sampling
    """The sampling of the answer, with the tools."""

    client_tools: list[Json]
    """The client's own tools, as far as this answer may call them."""

    begun_at: int
    """Messages of the conversation before the rounds of this request."""

    sampling: Sampling = field(default_factory=Sampling)
    """The sampling of the next call."""

    rounds: list[Message] = field(default_factory=list[Message])
    done: int = 0
    """The number of rounds so far."""

    is_last: bool = False
    """Whether the next call is the last."""

    room: int = 0
    """Characters of results that are left."""

    images: int = MAX_IMAGES
    """Images of results that are left."""

    shown: list[str] = field(default_factory=list[str])
    """Texts of the rounds that are part of the answer."""

    reasoning: list[str] = field(default_factory=list[str])
    usage: Usage = field(default_factory=Usage)

    @property
    def client_names(self) -> frozenset[str]:
        return frozenset(map(tool_name, self.client_tools))

    def add(self, messages: Sequence[Message]) -> None:
        self.rounds += messages
        self.chat = (*self.chat, *messages)


class ToolLoopLLM:
    """An `LLM` that calls tools until the model answers. Judges get no tools.

    A call of the client's own tool ends the loop: only the client can run it. So does the last
    round, after which the model has to answer without tools.
    """

    def __init__(
        self,
        inner: LLM,
        offer: Offer,
        call: CallTool,
        limits: LoopLimits,
        rounds: Rounds,
        ctx: Context,
    ) -> None:
        self.model = inner.model
        self._inner = inner
        self._offer = offer
        self._call = call
        self._limits = limits
        self._rounds = rounds
        self._ctx = ctx
        self._hidden: dict[str, list[Message]] = {}
        """The rounds of earlier answers of this request, by the calls that ended them."""

    @property
    def facts(self) -> ModelFacts:
        """The model's facts, except `max_n`: each sample calls tools by itself."""
        return replace(self._inner.facts, max_n=1)

    async def complete(self, chat: Chat, sampling: Sampling, /) -> Completion:
        if not self._may_call_tools(sampling):
            return await self._inner.complete(chat, sampling)
        turn = self._begin(chat, sampling)
        while True:
            best = self._ctx.best
            reply = await self._inner.complete(turn.chat, turn.sampling)
            turn.usage += reply.usage
            turn.reasoning.append(reply.reasoning)
            calls = _with_ids(reply.tool_calls, turn.done)
            reply, whole = replace(reply, tool_calls=calls), reply
            ours = self._ours(turn, reply)
            if ours:
                self._forget(whole, best)
            if not ours or len(ours) < len(reply.tool_calls):
                last = await self._ended(turn, reply, ours)
                return replace(
                    last,
                    text="\n\n".join([*turn.shown, last.text]),
                    reasoning="\n\n".join(filter(None, turn.reasoning)),
                    usage=turn.usage,
                )
            await self._next_round(turn, reply, ours)

    async def complete_n(self, chat: Chat, sampling: Sampling, n: int, /) -> Sequence[Completion]:
        if not self._may_call_tools(sampling):
            return await self._inner.complete_n(chat, sampling, n)
        return [await self.complete(chat, sampling)]

    async def stream(self, chat: Chat, sampling: Sampling, /) -> AsyncGenerator[Delta, None]:
        if not self._may_call_tools(sampling):
            async with aclosing(self._inner.stream(chat, sampling)) as pieces:
                async for piece in pieces:
                    yield piece
            return
        turn = self._begin(chat, sampling)
        while True:
            held = _Held(after_thoughts=turn.done > 0, after_text=bool(turn.shown))
            async with aclosing(self._inner.stream(turn.chat, turn.sampling)) as pieces:
                async for piece in pieces:
                    for shown in held.feed(piece):
                        yield shown
            reply = held.reply.answer(held.finish_reason)
            reply = replace(reply, tool_calls=_with_ids(reply.tool_calls, turn.done))
            ours = self._ours(turn, reply)
            if not ours or len(ours) < len(reply.tool_calls):
                for shown in held.close():
                    yield shown
                last = await self._ended(turn, reply, ours)
                calls = as_delta(last).tool_calls
                yield Delta(tool_calls=calls, finish_reason=last.finish_reason)
                return
            await self._next_round(turn, reply, ours)

    def _may_call_tools(self, sampling: Sampling) -> bool:
        """Return whether a call gets tools: it writes text, and the client has not ruled them out.

        A decoder's pieces are parts of one reply, which has begun already.
        """
        allowed = self._ctx.client.fields.get("tool_choice") != "none"
        return allowed and bool(self._offer.tools) and sampling.purpose not in ("judge", "piece")

    def _begin(self, chat: Chat, sampling: Sampling) -> _Turn:
        """Return a turn with the client's tools and ours.

        An approach that can use only the text of a reply forbids the client's tools. It gets ours.
        Where two loops are nested, the outer one is the inner one's client.
        """
        client = self._ctx.client.fields
        if client.get("functions"):
            raise Refused("no tools can be added to the old field functions: send tools instead")
        fields = dict(sampling.fields)
        found = fields.get("tools", client.get("tools"))
        given = list(found) if isinstance(found, list) else []
        if fields.get("tool_choice") == "none":
            given, fields["tool_choice"] = [], "auto"
        fields["tools"] = [*given, *self._offer.definitions]
        asked = replace(sampling, fields=fields)
        turn = _Turn(self._with_rounds(chat), asked, given, len(chat))
        turn.room = self._limits.answer_characters
        self._prepare(turn)
        return turn

    def _ours(self, turn: _Turn, reply: Answer) -> tuple[ToolCall, ...]:
        """Return the calls of a reply that are not for the client.

        A name that nobody offers is a mistake of the model's, and it is told so.
        """
        return tuple(
            call
            for call in reply.tool_calls
            if call.type == "function"
            and call.name not in turn.client_names
            and (call.name in self._offer.tools or "" not in turn.client_names)
        )

    def _forget(self, reply: Answer, best: Answer | None) -> None:
        """Take back a reply as the best so far: the client must not see its calls.

        Args:
            reply: the reply, as it came.
            best: the best answer before.
        """
        now = self._ctx.best
        if now is not None and now is not best and now.tool_calls == reply.tool_calls:
            self._ctx.best = best

    async def _next_round(self, turn: _Turn, reply: Answer, ours: Sequence[ToolCall]) -> None:
        """Add a reply and the results of its calls to the turn.

        Raises:
            UnusableReply: the model calls tools where it may not.
        """
        if turn.is_last:
            raise UnusableReply(f"the model still calls tools after {turn.done} rounds")
        if _is_shown(reply.text):
            turn.shown.append(reply.text)
            shown = Answer("\n\n".join(turn.shown), "length")
            self._ctx.keep_reply(shown, turn.asked.purpose, self._inner.facts)
        turn.done += 1
        results = await self._results(ours)
        turn.add([_assistant(reply), *self._messages(turn, ours, results, last=False)])
        self._prepare(turn)

    def _prepare(self, turn: _Turn) -> None:
        """Set the sampling of the turn's next call.

        In the last one, the model can only answer, or call a tool of the client. Before, a choice
        that forces a call is met by the first round, unless the client is owed a call of its tools.
        """
        limits, budget = self._limits, self._ctx.budget
        most = budget.limits.max_calls
        turn.is_last = (
            turn.done >= limits.rounds
            or limits.calls <= 0
            or (most is not None and most - budget.calls_taken <= 1)
        )
        self._ctx.trace.count("tool_rounds", lost=int(turn.is_last), of=1)
        fields = dict(turn.asked.fields)
        if turn.is_last and turn.client_tools:
            fields["tools"] = turn.client_tools
        elif turn.is_last:
            fields["tool_choice"] = "none"
        elif turn.done and not self._may_stay(self._choice(fields), turn):
            fields["tool_choice"] = "auto"
        turn.sampling = replace(turn.asked, fields=fields)

    def _choice(self, fields: Fields) -> Json:
        return fields.get("tool_choice", self._ctx.client.fields.get("tool_choice"))

    def _may_stay(self, choice: Json, turn: _Turn) -> bool:
        """Return whether a choice can stay after a round: another call of ours does not meet it."""
        if isinstance(choice, dict):
            return tool_name(choice) in turn.client_names - {""}
        return choice in (None, "auto") or (choice == "required" and bool(turn.client_tools))

    def _with_rounds(self, chat: Chat) -> Chat:
        """Return `chat` with the rounds of this request that an outer loop has not seen."""
        messages: list[Message] = []
        for at, message in enumerate(chat):
            calls = message.fields.get("tool_calls")
            made = _key(at, calls if isinstance(calls, list) else ())
            messages += self._hidden.get(made) or [message]
        return tuple(messages)

    def _sees_images(self, turn: _Turn) -> bool:
        return self._inner.facts.sees_images or _has_images(turn.chat)

    async def _ended(self, turn: _Turn, reply: _A, ours: Sequence[ToolCall]) -> _A:
        """Return the reply that ends the loop, without calls that are not for the client.

        Some hosts say that a reply with calls has stopped. Clients that go by it do not run them.
        """
        theirs = tuple(call for call in reply.tool_calls if call not in ours)
        if not theirs:
            return reply
        results = await self._results(ours)
        turn.add([_assistant(reply), *self._messages(turn, ours, results, last=True)])
        if turn.done or ours:
            self._rounds.keep(theirs, turn.rounds)
            self._hidden[_key(turn.begun_at, map(_written, theirs))] = list(turn.rounds)
        ended = "tool_calls" if reply.finish_reason == "stop" else reply.finish_reason
        return replace(reply, tool_calls=theirs, finish_reason=ended)

    async def _results(self, calls: Sequence[ToolCall]) -> list[ToolResult]:
        """Return the results of calls, run concurrently; an error is a result too."""
        if not calls:
            return []
        self._ctx.progress(f"Calling tools: {len(calls)}")
        ended = await outcomes([partial(self._result, call) for call in calls])
        failed = [isinstance(each, SampleError) or each.is_error for each in ended]
        self._ctx.trace.count("tool_calls", lost=sum(failed), of=len(calls))
        return [
            ToolResult(text=str(each), is_error=True) if isinstance(each, SampleError) else each
            for each in ended
        ]

    async def _result(self, call: ToolCall) -> ToolResult:
        tool, arguments = self._offer.tools.get(call.name), read_arguments(call)
        if tool is None:
            return _error(f"There is no tool of the name {call.name[:100]!r}.")
        if arguments is None:
            return _error("The arguments are not a JSON object of less than 64 KB.")
        if not self._limits.take():
            return _error("No more tool calls are allowed for this request.")
        try:
            self._ctx.budget.pay(tool.price_usd)
        except BudgetExceeded:
            return _error("The budget of this request does not allow the call.")
        return await self._called(tool, arguments)

    async def _called(self, tool: Tool, arguments: dict[str, Json]) -> ToolResult:
        async with self._limits.slots:
            left = self._ctx.deadline - asyncio.get_running_loop().time()
            seconds = max(0.0, min(self._limits.timeout_s, left))
            try:
                async with asyncio.timeout(seconds):
                    return await self._call(tool, arguments)
            except TimeoutError:
                return _error(f"The tool has not answered within {seconds:.0f} seconds.")

    def _messages(
        self, turn: _Turn, calls: Sequence[ToolCall], results: Sequence[ToolResult], *, last: bool
    ) -> list[Message]:
        """Return results as messages, within the characters and images left for them.

        Images are a turn of the user's, which cannot stand before the results of a client's tools.
        """
        sees = self._sees_images(turn) and not last
        most = min(self._limits.result_characters, turn.room // max(1, len(calls)))
        images = images_of(results, turn.images if sees else 0)
        messages, cut = list[Message](), 0
        for call, result, shown in zip(calls, results, images, strict=True):
            cut += len(result.text) > most or (sees and len(shown) < len(result.images))
            turn.room -= min(len(result.text), most)
            turn.images -= len(shown)
            messages.append(as_message(call, result, at_most=most, images=len(shown)))
        self._ctx.trace.count("tool_results", lost=cut, of=len(results))
        return [*messages, *images_message(images)]


class _Held:
    """The pieces of a streamed reply, of which some wait until it is clear that they are shown.

    Thoughts are shown at once. Text waits until it is too long for a remark. Calls wait until the
    reply has ended, since a call of one of our tools is never shown.
    """

    def __init__(self, *, after_thoughts: bool, after_text: bool) -> None:
        self.reply = DeltaAccumulator()
        self.finish_reason: FinishReason = "stop"
        self._break = "\n\n" if after_thoughts else ""
        self._waiting: list[Delta] = [Delta(text="\n\n")] if after_text else []
        self._length = 0

    def feed(self, piece: Delta) -> Iterator[Delta]:
        """Yield what can be shown now that `piece` has arrived."""
        self.reply.add(piece)
        self.finish_reason = piece.finish_reason or self.finish_reason
        piece = replace(piece, tool_calls=(), finish_reason=None, usage=None)
        if piece.reasoning:
            piece, self._break = replace(piece, reasoning=self._break + piece.reasoning), ""
        self._length += len(piece.text)
        if self._length >= _REMARK:
            yield from self._waiting
            self._waiting = []
            yield piece
        elif self._length:
            self._waiting.append(piece)
        elif piece != Delta():
            yield piece

    def close(self) -> Iterator[Delta]:
        """Yield the rest of a reply that is shown."""
        if self._length:
            yield from self._waiting


def tool_name(tool: Json) -> str:
    """Return the name of a tool that a request defines; "" for a provider's own without a name."""
    if not isinstance(tool, dict):
        return ""
    function = tool.get("function") or tool.get("custom")
    named = function if isinstance(function, dict) else tool
    return str(named.get("name") or "")


def _is_shown(text: str) -> bool:
    return len(text) >= _REMARK


def _error(text: str) -> ToolResult:
    return ToolResult(text=text, is_error=True)


def _with_ids(calls: tuple[ToolCall, ...], rounds: int) -> tuple[ToolCall, ...]:
    """Return calls with ids by which their results can be told apart."""
    ids = [call.id for call in calls]
    if all(ids) and len(set(ids)) == len(ids):
        return calls
    return tuple(
        call if call.type == "function_call" else replace(call, id=f"call_{rounds}_{number}")
        for number, call in enumerate(calls)
    )


def _assistant(reply: Answer) -> Message:
    """Return a reply with tool calls as a message, in the form in which clients send it back."""
    kept = {name: value for name, value in reply.fields.items() if name in _THOUGHTS}
    reasoning: Fields = {"reasoning_content": reply.reasoning} if reply.reasoning else {}
    calls: list[Json] = [_written(call) for call in reply.tool_calls]
    return Message("assistant", reply.text or None, {**kept, **reasoning, "tool_calls": calls})


def _written(call: ToolCall) -> dict[str, Json]:
    body: Json = {"name": call.name, "arguments": call.arguments}
    if call.type == "custom":
        body = {"name": call.name, "input": call.arguments}
    return {**call.fields, "id": call.id, "type": call.type, call.type: body}


def _key(at: int, calls: Iterable[Json]) -> str:
    """Return what tells the calls of one request apart: hosts may number those of each reply anew.

    Args:
        at: where their message stands in the conversation.
        calls: as they are written in it.
    """
    return json.dumps([at, *calls], sort_keys=True)


def _has_images(chat: Chat) -> bool:
    return any(
        part.get("type") == "image_url"
        for message in chat
        if isinstance(message.content, tuple)
        for part in message.content
    )
