"""Deltas of streamed replies: making them of an answer, splitting and accumulating them."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

from optillm_hooks.types import (
    Answer,
    Delta,
    Fields,
    FinishReason,
    Json,
    TokenLogprob,
    ToolCall,
    ToolCallType,
)

A = TypeVar("A", bound=Answer)

IN_PIECES: Final = frozenset({"refusal", "reasoning", "data", "transcript"})
"""Names of text fields that a stream gives in pieces. Of other fields, the last value counts."""

_OF_TOOL_CALL: Final = frozenset({"index", "id", "type", "function", "custom"})
"""Fields of a tool call that have their own attribute in `ToolCall`, or are of streams only."""


def other_fields(call: Fields) -> Fields:
    """Return the fields of a tool call, or of a piece of one, that belong to `ToolCall.fields`."""
    return {k: v for k, v in call.items() if k not in _OF_TOOL_CALL and v is not None}


def as_delta(answer: Answer) -> Delta:
    """Return `answer` as a single delta."""
    return Delta(
        text=answer.text,
        reasoning=answer.reasoning,
        tool_calls=tuple(_part(index, call) for index, call in enumerate(answer.tool_calls)),
        logprobs=answer.logprobs,
        fields=answer.fields,
        finish_reason=answer.finish_reason,
    )


def _part(index: int, call: ToolCall) -> dict[str, Json]:
    if call.type == "custom":
        return {
            **call.fields,
            "index": index,
            "id": call.id,
            "type": call.type,
            "custom": {"name": call.name, "input": call.arguments},
        }
    return {
        **call.fields,
        "index": index,
        **({"id": call.id} if call.type == "function" else {}),
        "type": call.type,
        "function": {"name": call.name, "arguments": call.arguments},
    }


def parts(delta: Delta) -> Iterator[Delta]:
    """Yield `delta` in parts, of which none has two kinds of content or two tool calls.

    Translators between APIs expect this of a stream: from a mixed delta they take one kind. Other
    fields come with the first part, since one without content would begin an empty block.
    """
    blocks = delta.fields.get("thinking_blocks")
    found = [*_reasoning(delta.reasoning, blocks if isinstance(blocks, list) else [])]
    if delta.text or delta.logprobs:
        found.append(Delta(text=delta.text, logprobs=delta.logprobs))
    found += [Delta(tool_calls=(call,)) for call in delta.tool_calls]
    others = {name: value for name, value in delta.fields.items() if name != "thinking_blocks"}
    end = Delta(finish_reason=delta.finish_reason, usage=delta.usage, facts=delta.facts)
    if others:
        first = found[0] if found else Delta()
        found[:1] = [replace(first, fields={**first.fields, **others})]
    if end != Delta():
        found.append(end)
    yield from found


def _reasoning(reasoning: str, blocks: list[Json]) -> Iterator[Delta]:
    """Yield the reasoning by its blocks, if they have it: each one's text, then its signature."""
    thoughts = [block for block in blocks if isinstance(block, dict) and block.get("thinking")]
    if reasoning and not thoughts:
        yield Delta(reasoning=reasoning)
    for block in blocks:
        if block not in thoughts or not isinstance(block, dict):
            yield Delta(fields={"thinking_blocks": [block]})
            continue
        text = {**block, "signature": ""}
        own = reasoning if len(thoughts) == 1 else str(block["thinking"])
        yield Delta(reasoning=own, fields={"thinking_blocks": [text]})
        if block.get("signature"):
            yield Delta(fields={"thinking_blocks": [{**block, "thinking": ""}]})


@dataclass(slots=True)
class _Pieces:
    """A text that is joined when it is read, so that a piece costs what it is long."""

    texts: list[str]


def _add(fields: dict[str, Any], new: Fields) -> None:
    """Merge `new` into `fields`, which has texts that come in pieces as `_Pieces`."""
    for name, now in new.items():
        before = fields.get(name)
        if isinstance(before, dict) and isinstance(now, Mapping):
            _add(before, now)
        elif isinstance(before, list) and isinstance(now, list):
            before.extend(now)
        elif isinstance(before, _Pieces) and isinstance(now, str):
            before.texts.append(now)
        elif now is not None or name not in fields:
            fields[name] = _begun(name, now)


def _begun(name: str, value: Json) -> Any:
    if isinstance(value, Mapping):
        return {inner: _begun(inner, item) for inner, item in value.items()}
    if isinstance(value, list):
        return list(value)
    return _Pieces([value]) if isinstance(value, str) and name in IN_PIECES else value


def _whole(value: Any) -> Any:
    """Return what `_add` has made of fields, with texts as texts."""
    if isinstance(value, dict):
        return {name: _whole(item) for name, item in value.items()}
    if isinstance(value, list):
        return list(value)
    return "".join(value.texts) if isinstance(value, _Pieces) else value


@dataclass(slots=True)
class _Call:
    """A tool call of which pieces have come."""

    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list[str])
    type: ToolCallType = "function"
    fields: dict[str, Any] = field(default_factory=dict[str, Any])

    def add(self, part: Fields) -> None:
        _add(self.fields, other_fields(part))
        called = part.get("custom") or part.get("function")
        pieces = called if isinstance(called, dict) else {}
        for kind in ("custom", "function_call"):
            if part.get("type") == kind:
                self.type = kind
        self.id = _extended(self.id, part.get("id"))
        self.name = _extended(self.name, pieces.get("name"))
        self.arguments.append(_text(pieces.get("arguments", pieces.get("input"))))

    def is_other(self, part: Fields) -> bool:
        """Return whether `part` begins another call: it has a name, and an id of its own."""
        called = part.get("custom") or part.get("function")
        named = bool(called.get("name")) if isinstance(called, dict) else False
        return named and bool(self.id and self.name) and part.get("id") not in (None, "", self.id)

    def whole(self) -> ToolCall:
        fields = _whole(self.fields)
        return ToolCall(self.id, self.name, "".join(self.arguments), self.type, fields)


def _extended(so_far: str, piece: Json) -> str:
    """Return `so_far` and `piece`. Some providers send the id and the name with each delta."""
    return so_far if piece == so_far else so_far + _text(piece)


def _text(value: Json) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)


def filtered(reply: A, pieces: Callable[[Delta], Iterable[Delta]]) -> A:
    """Return a whole reply as a filter leaves it; `pieces` returns what it makes of one delta."""
    shown = DeltaAccumulator()
    for piece in pieces(as_delta(reply)):
        shown.add(piece)
    answer = shown.answer(reply.finish_reason)
    return replace(
        reply,
        text=answer.text,
        reasoning=answer.reasoning,
        tool_calls=answer.tool_calls,
        logprobs=answer.logprobs,
        fields=answer.fields,
    )


@dataclass(slots=True)
class DeltaAccumulator:
    """Accumulates the deltas of one reply."""

    _text: list[str] = field(default_factory=list[str])
    _reasoning: list[str] = field(default_factory=list[str])
    _calls: dict[int, list[_Call]] = field(default_factory=dict[int, list[_Call]])
    """By their index. Some providers give several calls of one reply the same index."""

    _logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])
    _fields: dict[str, Any] = field(default_factory=dict[str, Any])
    empty: bool = True
    """Whether nothing was added."""

    def add(self, piece: Delta) -> None:
        self.empty = False
        self._text.append(piece.text)
        self._reasoning.append(piece.reasoning)
        self._logprobs.extend(piece.logprobs)
        _add(self._fields, piece.fields)
        for part in piece.tool_calls:
            index = part.get("index")
            calls = self._calls.setdefault(index if isinstance(index, int) else 0, [])
            if not calls or calls[-1].is_other(part):
                calls.append(_Call())
            calls[-1].add(part)

    def answer(self, finish_reason: FinishReason) -> Answer:
        """Return the accumulated deltas as one answer."""
        return Answer(
            "".join(self._text),
            finish_reason,
            "".join(self._reasoning),
            tuple(call.whole() for _, calls in sorted(self._calls.items()) for call in calls),
            tuple(self._logprobs),
            _whole(self._fields),
        )
