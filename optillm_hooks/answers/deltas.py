"""Deltas of streamed replies: making them of an answer, splitting and accumulating them."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

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

_IN_PIECES: Final = frozenset({"refusal", "reasoning", "data", "transcript"})
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
        yield Delta(reasoning=str(block["thinking"]), fields={"thinking_blocks": [text]})
        if block.get("signature"):
            yield Delta(fields={"thinking_blocks": [{**block, "thinking": ""}]})


def _merged(so_far: Fields, new: Fields) -> dict[str, Json]:
    return {**so_far, **{name: _joined(name, so_far.get(name), new[name]) for name in new}}


def _joined(name: str, before: Json, now: Json) -> Json:
    if isinstance(before, dict) and isinstance(now, Mapping):
        return _merged(before, now)
    if isinstance(before, list) and isinstance(now, list):
        return before + now
    if isinstance(before, str) and isinstance(now, str) and name in _IN_PIECES:
        return before + now
    return before if now is None else now


@dataclass(slots=True)
class DeltaAccumulator:
    """Accumulates the deltas of one reply."""

    _text: list[str] = field(default_factory=list[str])
    _reasoning: list[str] = field(default_factory=list[str])
    _tool_calls: dict[int, list[str]] = field(default_factory=dict[int, list[str]])
    _types: dict[int, ToolCallType] = field(default_factory=dict[int, ToolCallType])
    _of_calls: dict[int, Fields] = field(default_factory=dict[int, Fields])
    _logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])
    _fields: dict[str, Json] = field(default_factory=dict[str, Json])
    empty: bool = True
    """Whether nothing was added."""

    def add(self, piece: Delta) -> None:
        self.empty = False
        self._text.append(piece.text)
        self._reasoning.append(piece.reasoning)
        self._logprobs.extend(piece.logprobs)
        self._fields = _merged(self._fields, piece.fields)
        for part in piece.tool_calls:
            self._add_tool_call(part)

    def answer(self, finish_reason: FinishReason) -> Answer:
        """Return the accumulated deltas as one answer."""
        return Answer(
            "".join(self._text),
            finish_reason,
            "".join(self._reasoning),
            tuple(
                ToolCall(
                    call_id,
                    name,
                    arguments,
                    self._types.get(index, "function"),
                    self._of_calls[index],
                )
                for index, (call_id, name, arguments) in sorted(self._tool_calls.items())
            ),
            tuple(self._logprobs),
            self._fields,
        )

    def _add_tool_call(self, part: Fields) -> None:
        given = part.get("index")
        index = given if isinstance(given, int) else 0
        call = self._tool_calls.setdefault(index, ["", "", ""])
        self._of_calls[index] = _merged(self._of_calls.get(index, {}), other_fields(part))
        called = part.get("custom") or part.get("function")
        pieces = called if isinstance(called, dict) else {}
        for kind in ("custom", "function_call"):
            if part.get("type") == kind:
                self._types[index] = kind
        new = (part.get("id"), pieces.get("name"), pieces.get("arguments", pieces.get("input")))
        for at, text in enumerate(new):
            # Some providers send the id and the name with each delta.
            repeated = at < 2 and text == call[at]
            if text is not None and not repeated:
                call[at] += text if isinstance(text, str) else json.dumps(text)
