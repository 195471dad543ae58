"""Chat template, tokenizer and detokenizer: messages to token ids, and token ids to replies."""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from tokenizers.decoders import DecodeStream

from optillm_hooks.decoding.markers import MARKERS, THINK_END, THINK_START, Markers
from optillm_hooks.errors import RequestRejected
from optillm_hooks.local_provider.decoding.base import BranchOutput
from optillm_hooks.local_provider.engine_request import (
    EngineRequest,
    Messages,
    Piece,
    ScoredToken,
    TokenLogprob,
)
from optillm_hooks.local_provider.grammar import (
    Grammars,
    ReplyGrammar,
    Thinking,
    json_rule,
)
from optillm_hooks.local_provider.text import StopFinder, ThinkSplitter
from optillm_hooks.local_provider.tool_calls import CallFinder, Tools, form_of
from optillm_hooks.types import FinishReason, ToolCall

_ROLES = {"developer": "system", "function": "tool"}


class ChatFormat:
    """A tokenizer with its chat template."""

    def __init__(self, tokenizer: Any, end_ids: Iterable[int]) -> None:
        self._tokenizer = tokenizer
        self.end_ids = frozenset(end_ids)
        self._added = tokenizer.added_tokens_decoder
        byte_level = "ByteLevel" in repr(tokenizer.backend_tokenizer.decoder)
        self._bytes = _byte_alphabet() if byte_level else {}

    @cached_property
    def grammars(self) -> Grammars:
        """The grammars for this tokenizer; creating them takes a second."""
        return Grammars(self._tokenizer, self.end_ids)

    def encode(
        self, messages: Messages, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        """Return the token ids of the prompt: the conversation in the model's chat template.

        Raises:
            RequestRejected: a message is malformed, contains content other than text, or is
                rejected by the template.
        """
        plain = [_plain(message) for message in messages]
        try:
            ids: list[int] = self._tokenizer.apply_chat_template(
                plain,
                tools=list(tools) if tools else None,
                add_generation_prompt=True,
                return_dict=False,
            )
        except Exception as exc:  # a template is a program written by the model's author
            raise RequestRejected(
                f"the model's chat template rejects these messages: {exc}", param="messages"
            ) from exc
        return ids

    def tools(self, request: EngineRequest) -> Tools | None:
        """Return a request's tools in the model's tool-call format; None: calls are not parsed.

        Raises:
            RequestRejected: the chat template does not support tools, or a call is required but the
                model's tool-call format is unknown.
        """
        if not request.tools:
            return None
        template = self._template(request.tools)
        if "tools" not in template:
            raise RequestRejected(
                "this model's chat template does not support tools", param="tools"
            )
        form = form_of(template)
        if form is None and request.must_call:
            raise RequestRejected(
                "this model cannot be required to call a tool: its tool-call format is unknown",
                param="tool_choice",
            )
        functions = {str(tool["function"]["name"]): tool["function"] for tool in request.tools}
        nothing = {"properties": {}, "additionalProperties": False}
        schemas = {
            name: {"type": "object", **(function.get("parameters") or nothing)}
            for name, function in functions.items()
        }
        return Tools(form, schemas, request.parallel_tool_calls) if form else None

    def reply_grammar(
        self, request: EngineRequest, tools: Tools | None, *, opened: bool, thinks: bool
    ) -> ReplyGrammar | None:
        """Return the grammar of a reply to `request`, or None if it is free.

        `opened`: the reply starts inside a <think> block. `thinks`: it may open one, even if the
        chat template does not mention thinking.
        """
        forms: dict[str, str] = {}
        if request.schema is not None and not request.must_call:
            forms["answer"] = f"answer: {json_rule(request.schema)}"
        if tools is not None and (request.must_call or forms):
            names = request.must_call or tuple(tools.schemas)
            forms["calls"] = tools.rules(names, self.grammars.symbol)
        if not forms:
            return None
        thinks = thinks or THINK_END in self._template(request.tools)
        thinking: Thinking = "opened" if opened else "possible" if thinks else "none"
        param = "response_format" if "answer" in forms else "tools"
        return self.grammars.start(self.grammars.reply(forms, thinking), param)

    def opens_thinking(self, prompt: Sequence[int], marker: str = THINK_START) -> bool:
        """Return True if `prompt` ends with the opening marker of a thinking block."""
        last = list(prompt[-len(marker.encode()) - 8 :])
        end: str = self._tokenizer.decode(last, skip_special_tokens=False)
        return end.rstrip().endswith(marker)

    def encode_text(self, text: str) -> list[int]:
        """Return the ids of `text`, without adding special tokens."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids` without special tokens."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def token_bytes(self, token: int) -> bytes:
        """Return the exact bytes of a token, which may be part of a character.

        Empty for an id without a token: a model may have more logits than its tokenizer has tokens.
        """
        piece: str = self._tokenizer.convert_ids_to_tokens(token) or ""
        if token in self._added:
            return piece.encode()
        if self._bytes and all(char in self._bytes for char in piece):
            return bytes(self._bytes[char] for char in piece)
        if piece.startswith("<0x") and len(piece) == 6:
            return bytes([int(piece[3:5], 16)])
        return piece.replace("\u2581", " ").encode()

    def with_bytes(self, scored: ScoredToken) -> TokenLogprob:
        """Return `scored` with the bytes of its tokens instead of their ids."""
        top = tuple((self.token_bytes(token), logprob) for token, logprob in scored.top)
        return TokenLogprob(self.token_bytes(scored.id), scored.logprob, top)

    def detokenizer(self, tools: Tools | None = None, markers: Markers = MARKERS) -> "Detokenizer":
        """Return a detokenizer that keeps `markers` and the tool-call marker, even if special."""
        found = [*markers, *([tools.form.opening] if tools is not None else [])]
        kept = {token: text for text in found if (token := self._special(text)) is not None}
        return Detokenizer(self._tokenizer.backend_tokenizer, kept)

    def _template(self, tools: Sequence[Mapping[str, Any]] | None) -> str:
        """Return the source of the chat template; empty if the tokenizer has none."""
        try:
            return str(self._tokenizer.get_chat_template(tools=list(tools) if tools else None))
        except ValueError:
            return ""

    def _special(self, marker: str) -> int | None:
        """Return the token id of `marker` if it is a special token, else None."""
        token = self._tokenizer.backend_tokenizer.token_to_id(marker)
        added = self._added.get(token)
        return token if added is not None and added.special else None


def as_text(message: Mapping[str, Any]) -> str:
    """Return the text of a message; text parts are joined by newlines."""
    content = message.get("content")
    if isinstance(content, str) or content is None:
        return content or ""
    return "\n".join(part.get("text", "") for part in content if part.get("type") == "text")


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message with string content and a role that chat templates know."""
    _check(message)
    role = message.get("role", "user")
    plain = {**message, "role": _ROLES.get(role, role), "content": as_text(message)}
    # Templates treat a message with this key as a call, even if its value is empty.
    calls = plain.pop("tool_calls", None)
    return {**plain, "tool_calls": [_read_call(call) for call in calls]} if calls else plain


def _check(message: Any) -> None:
    """Raise RequestRejected unless the parts of a message that are used here are valid."""
    if not isinstance(message, Mapping) or not isinstance(message.get("role", "user"), str):
        raise _malformed("each message must be an object whose role is a string")
    content = message.get("content")
    parts = [] if content is None or isinstance(content, str) else content
    if not isinstance(parts, Sequence) or not all(isinstance(part, Mapping) for part in parts):
        raise _malformed("content must be a string or a list of content parts, each an object")
    kinds = {str(part.get("type"))[:80] for part in parts} - {"text"}
    if kinds:
        raise _malformed(f"local models support text content only, not {', '.join(sorted(kinds))}")
    if not all(isinstance(part.get("text", ""), str) for part in parts):
        raise _malformed("the text of a content part must be a string")
    if not isinstance(message.get("tool_calls") or [], Sequence):
        raise _malformed("tool_calls must be a list")


def _malformed(reason: str) -> RequestRejected:
    return RequestRejected(reason, param="messages")


def _read_call(call: Any) -> Any:
    """Return a tool call with parsed arguments, as chat templates expect them."""
    try:
        function = {**call["function"], "arguments": json.loads(call["function"]["arguments"])}
    except (KeyError, TypeError, ValueError, RecursionError):
        return call
    return {**call, "function": function}


def _byte_alphabet() -> dict[str, int]:
    """Return the byte that each character of a byte-level BPE vocabulary stands for."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + i): byte for i, byte in enumerate(others)}


class Detokenizer:
    """Incremental detokenizer: a character is returned with the token that completes it."""

    def __init__(self, tokenizer: Any, kept: Mapping[int, str]) -> None:
        """`kept`: special tokens to keep in the text; all others are skipped."""
        self._tokenizer = tokenizer
        self._kept = kept
        self._stream = DecodeStream(skip_special_tokens=True)

    def feed(self, token: int) -> str:
        """Return the text that `token` completes."""
        return self._kept.get(token) or self._stream.step(self._tokenizer, token) or ""


class Shown(NamedTuple):
    """A piece of a reply: text, reasoning, and the calls that follow the text."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()


class ReplyReader:
    """Parses a streamed reply into reasoning, text and tool calls.

    `opened`: the prompt ends inside a thinking block. `tools`: if None, calls are not parsed.
    """

    def __init__(
        self, *, opened: bool = False, tools: Tools | None = None, markers: Markers = MARKERS
    ) -> None:
        self._splitter = ThinkSplitter(opened=opened, markers=markers)
        self._finder = CallFinder(tools) if tools is not None else None

    @property
    def thinking(self) -> bool:
        return self._splitter.thinking

    @property
    def called(self) -> bool:
        """True if there were tool calls."""
        return self._finder is not None and self._finder.calls > 0

    @property
    def done(self) -> bool:
        """True if the rest of the reply would be ignored."""
        return self._finder is not None and self._finder.done

    def feed(self, text: str) -> Shown:
        """Return the part of the reply that is certain by now."""
        text, reasoning = self._splitter.feed(text)
        if self._finder is None:
            return Shown(text, reasoning)
        found = self._finder.feed(text)
        return Shown(found.text, reasoning, found.calls)

    def close(self) -> Shown:
        """Return what was held back; no more follows."""
        text, reasoning = self._splitter.close()
        if self._finder is None:
            return Shown(text, reasoning)
        first, rest = self._finder.feed(text), self._finder.close()
        return Shown(first.text + rest.text, reasoning, first.calls + rest.calls)


class ChoiceOutput:
    """The output of one sequence: converts tokens to deltas and finds the finish reason."""

    def __init__(
        self,
        choice: int,
        chat_format: ChatFormat,
        stop: Sequence[str],
        *,
        thinking: bool = False,
        tools: Tools | None = None,
        markers: Markers = MARKERS,
    ) -> None:
        self._choice = choice
        self._reader = ReplyReader(opened=thinking, tools=tools, markers=markers)
        self._format = chat_format
        self._detokenizer = chat_format.detokenizer(tools, markers)
        self._stop = StopFinder(stop)
        self._waiting: list[tuple[int, TokenLogprob]] = []
        self._ends: list[int] = []
        self._shown = ""
        self.ids: list[int] = []
        self.reasoning_tokens = 0
        self.finish_reason: FinishReason | None = None

    def add(self, token: int, scored: ScoredToken | None, *, last: bool) -> Piece | None:
        """Return the delta that `token` completes, or None. `last`: the length limit is reached."""
        start = self._ends[-1] if self._ends else 0
        text = written = ""
        if token in self._format.end_ids:
            self.finish_reason = "stop"
        else:
            written = self._detokenizer.feed(token)
            if scored is not None:
                self._waiting.append((start, self._format.with_bytes(scored)))
            text = self._stop.feed(written)
            if self._stop.found:
                self.finish_reason = "stop"
            elif last:
                self.finish_reason = "length"
        self.ids.append(token)
        self.reasoning_tokens += self._reader.thinking
        self._ends.append(start + len(written))
        if self.finish_reason is not None:
            text += self._stop.close()
        return self._piece(text)

    def result(self, *, stopped: bool) -> BranchOutput:
        """Return the complete output, including text that was held back for stop strings."""
        text = self._shown + self._stop.close()
        reason = self.finish_reason or "length"
        return BranchOutput(text, tuple(self.ids), tuple(self._ends), reason, stopped)

    def _piece(self, text: str) -> Piece | None:
        self._shown += text
        shown = self._reader.feed(text)
        if self._reader.done and self.finish_reason is None:
            self.finish_reason = "tool_calls"
        if self.finish_reason is not None:
            rest = self._reader.close()
            shown = Shown(
                shown.text + rest.text, shown.reasoning + rest.reasoning, shown.calls + rest.calls
            )
            if self._reader.called and self.finish_reason == "stop":
                self.finish_reason = "tool_calls"
        ended = self.finish_reason is not None and not self._stop.found
        tokens = [token for start, token in self._waiting if start < len(self._shown) or ended]
        del self._waiting[: len(tokens)]
        if not (any(shown) or tokens or self.finish_reason):
            return None
        return Piece(
            self._choice,
            shown.text,
            shown.reasoning,
            tuple(tokens),
            self.finish_reason,
            shown.calls,
        )
