"""Puts private values back into a reply: its text, reasoning, tool calls and other fields."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from optillm_hooks.answers.deltas import IN_PIECES, filtered
from optillm_hooks.privacy.pseudonyms import Pseudonyms
from optillm_hooks.privacy.restore import Restorer, TokenRestorer, in_json
from optillm_hooks.types import Answer, Delta, Fields, Json

A = TypeVar("A", bound=Answer)

_OPAQUE: Final = frozenset({"data", "id", "signature", "thinking_blocks", "thought_signatures"})
"""Fields that only a provider reads. A signature covers the text of a thought as it was written."""


@dataclass(slots=True)
class _Call:
    """A tool call of which pieces have come."""

    arguments: Restorer
    part: str
    """Where its arguments are: `function`, or `custom` for those that are plain text."""

    field: str
    type: Json = None

    def rest(self, index: Json) -> Iterator[Fields]:
        if text := self.arguments.close():
            of_old = {"type": self.type} if self.type == "function_call" else {}
            yield {"index": index, **of_old, self.part: {self.field: text}}


class AnswerFilter:
    """A `DeltaFilter` that puts values back.

    Args:
        pseudonyms: those of the conversation.
        is_json: whether the text is JSON, so that values are written as in a string of it.
    """

    def __init__(self, pseudonyms: Pseudonyms, *, is_json: bool) -> None:
        self._pseudonyms = pseudonyms
        self._text = Restorer(pseudonyms, in_json) if is_json else Restorer(pseudonyms)
        self._reasoning = Restorer(pseudonyms)
        self._tokens = TokenRestorer(pseudonyms)
        self._calls: dict[Json, _Call] = {}
        self._fields: dict[tuple[str, ...], Restorer] = {}

    def feed(self, piece: Delta, /) -> Delta:
        """Return what can be shown now. What is held of one kind goes before the next kind."""
        reasoning = self._reasoning.feed(piece.reasoning)
        text = self._text.feed(piece.text)
        if piece.text or piece.tool_calls:
            reasoning += self._reasoning.close()
        if piece.tool_calls:
            text += self._text.close()
        return replace(
            piece,
            text=text,
            reasoning=reasoning,
            tool_calls=tuple(self._with_calls(piece.tool_calls)),
            logprobs=self._tokens.feed(piece.logprobs),
            fields=self._with_fields(piece.fields, ()),
        )

    def close(self) -> Delta:
        """Return the rest."""
        fields: dict[str, Json] = {}
        for path, restorer in self._fields.items():
            if rest := restorer.close():
                _put(fields, path, rest)
        return Delta(
            text=self._text.close(),
            reasoning=self._reasoning.close(),
            tool_calls=tuple(rest for at, call in self._calls.items() for rest in call.rest(at)),
            logprobs=self._tokens.close(),
            fields=fields,
        )

    def whole(self, reply: A) -> A:
        """Return a whole reply with its values. The filter is used up."""
        return filtered(reply, lambda piece: (self.feed(piece), self.close()))

    def _with_calls(self, parts: tuple[Fields, ...]) -> Iterator[Fields]:
        for part in parts:
            index = part.get("index")
            index = index if isinstance(index, int) else 0
            for other, call in self._calls.items():
                if other != index:
                    yield from call.rest(other)
            yield self._with_call(part, index)

    def _with_call(self, part: Fields, index: Json) -> Fields:
        name = "custom" if isinstance(part.get("custom"), dict) else "function"
        called = part.get(name)
        if not isinstance(called, dict):
            return part
        field = "input" if name == "custom" else "arguments"
        call = self._calls.get(index)
        if call is None:
            restorer = Restorer(self._pseudonyms, in_json if field == "arguments" else str)
            call = self._calls[index] = _Call(restorer, name, field, part.get("type"))
        changed = dict(called)
        if isinstance(text := called.get(field), str):
            changed[field] = call.arguments.feed(text)
        elif text is not None:  # some hosts give an object
            changed[field] = _in_values(text, self._restored)
        if isinstance(tool := called.get("name"), str):
            changed["name"] = self._restored(tool)
        return {**part, name: changed}

    def _with_fields(self, fields: Fields, path: tuple[str, ...]) -> Fields:
        return {name: self._with_field(value, (*path, name)) for name, value in fields.items()}

    def _with_field(self, value: Json, path: tuple[str, ...]) -> Json:
        if path[-1] in _OPAQUE:
            return value
        if isinstance(value, dict):
            return dict(self._with_fields(value, path))
        if isinstance(value, list):
            return _in_values(value, self._restored)
        if not isinstance(value, str):
            return value
        if path[-1] in IN_PIECES:
            return self._fields.setdefault(path, Restorer(self._pseudonyms)).feed(value)
        return self._restored(value)

    def _restored(self, text: str) -> str:
        return Restorer(self._pseudonyms).whole(text)


def _in_values(value: Json, restored: Callable[[str], str]) -> Json:
    """Return a value of JSON with each text in it restored, except opaque ones."""
    if isinstance(value, str):
        return restored(value)
    if isinstance(value, list):
        return [_in_values(item, restored) for item in value]
    if isinstance(value, dict):
        return {
            name: item if name in _OPAQUE else _in_values(item, restored)
            for name, item in value.items()
        }
    return value


def _put(fields: dict[str, Json], path: tuple[str, ...], value: str) -> None:
    """Put `value` into nested `fields`."""
    *parents, name = path
    for parent in parents:
        inner = fields.get(parent)
        fields[parent] = fields = inner if isinstance(inner, dict) else {}
    fields[name] = value
