"""Deltas of streamed replies: accumulating them, and converting an answer to one delta."""

import json
from dataclasses import dataclass, field

from optillm_hooks.types import Answer, Delta, Fields, FinishReason, Json, TokenLogprob, ToolCall


def as_delta(answer: Answer) -> Delta:
    """Return `answer` as a single delta."""
    return Delta(
        text=answer.text,
        reasoning=answer.reasoning,
        tool_calls=tuple(
            {
                "index": index,
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for index, call in enumerate(answer.tool_calls)
        ),
        logprobs=answer.logprobs,
        fields=answer.fields,
        finish_reason=answer.finish_reason,
    )


@dataclass(slots=True)
class DeltaAccumulator:
    """Accumulates the deltas of one reply."""

    _text: list[str] = field(default_factory=list[str])
    _reasoning: list[str] = field(default_factory=list[str])
    _tool_calls: dict[int, list[str]] = field(default_factory=dict[int, list[str]])
    _logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])
    _fields: dict[str, Json] = field(default_factory=dict[str, Json])

    def add(self, piece: Delta) -> None:
        self._text.append(piece.text)
        self._reasoning.append(piece.reasoning)
        self._logprobs.extend(piece.logprobs)
        self._fields.update(piece.fields)
        for part in piece.tool_calls:
            self._add_tool_call(part)

    def answer(self, finish_reason: FinishReason) -> Answer:
        """Return the accumulated deltas as one answer."""
        return Answer(
            "".join(self._text),
            finish_reason,
            "".join(self._reasoning),
            tuple(ToolCall(*self._tool_calls[index]) for index in sorted(self._tool_calls)),
            tuple(self._logprobs),
            self._fields,
        )

    def _add_tool_call(self, part: Fields) -> None:
        index = part.get("index")
        call = self._tool_calls.setdefault(index if isinstance(index, int) else 0, ["", "", ""])
        function = part.get("function")
        pieces = function if isinstance(function, dict) else {}
        new = (part.get("id"), pieces.get("name"), pieces.get("arguments"))
        for at, text in enumerate(new):
            # Some providers send the id and the name with each delta.
            repeated = at < 2 and text == call[at]
            if text is not None and not repeated:
                call[at] += text if isinstance(text, str) else json.dumps(text)
