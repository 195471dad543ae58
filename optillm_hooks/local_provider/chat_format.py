"""A model's tokenizer and chat template: messages to token ids, and the formats of its replies."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from optillm_hooks.decoding.markers import Markers
from optillm_hooks.errors import RequestRejected
from optillm_hooks.local_provider.call_history import (
    described,
    in_system_message,
    one_by_one,
    wants_one,
    wants_text,
    with_text,
    with_thoughts,
)
from optillm_hooks.local_provider.detokenizer import Detokenizer, byte_alphabet
from optillm_hooks.local_provider.engine_request import (
    EngineRequest,
    Messages,
    PromptOptions,
    ScoredToken,
    TokenLogprob,
)
from optillm_hooks.local_provider.grammar import (
    Grammars,
    ReplyGrammar,
    Thinking,
    json_rule,
)
from optillm_hooks.local_provider.harmony import HarmonyReader
from optillm_hooks.local_provider.prompt import encode_prompt
from optillm_hooks.local_provider.prompt_length import LengthBound, check_length
from optillm_hooks.local_provider.reasoning import (
    CALL,
    END,
    HARMONY,
    RETURN,
    THINK,
    ReasoningFormat,
    reasoning_of,
)
from optillm_hooks.local_provider.reply_reader import ReplyReader
from optillm_hooks.local_provider.tool_calls.detection import form_of
from optillm_hooks.local_provider.tool_calls.harmony_calls import HARMONY_CALLS
from optillm_hooks.local_provider.tool_calls.tools import Tools

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
"""The token of a single byte, in vocabularies that spell unknown characters with them."""

_RESULTS = ("<|tool_response>", "<start_function_response>")
"""Special tokens with which Gemma asks for the result of a call."""

_ROLES = {"developer": "system", "function": "tool"}

_DEFAULT_OPTIONS = PromptOptions()


class ChatFormat:
    """A tokenizer with its chat template."""

    def __init__(self, tokenizer: Any, end_ids: Iterable[int]) -> None:
        self._tokenizer = tokenizer
        self._reasoning = reasoning_of(_all_templates(tokenizer))
        self.end_ids = self._ends(end_ids)
        self._added = tokenizer.added_tokens_decoder
        self._special_ids = {token for token, added in self._added.items() if added.special}
        decoder = repr(tokenizer.backend_tokenizer.decoder)
        self._bytes = byte_alphabet() if "ByteLevel" in decoder else {}
        self._falls_back = "ByteFallback" in decoder
        self._bound = LengthBound(tokenizer)
        # Resets truncation, padding and the like, as its own first call would: from now on nothing
        # changes the tokenizer, so that threads can share it.
        tokenizer("", add_special_tokens=False)

    def _ends(self, end_ids: Iterable[int]) -> frozenset[int]:
        """Return the tokens that end a reply: `end_ids`, and those before a tool's result."""
        id_of = self._tokenizer.get_vocab().get
        ends = {*end_ids, *(id_of(text) for text in _RESULTS)}
        if self._reasoning is HARMONY:
            ends = {*ends, id_of(CALL), id_of(RETURN)} - {id_of(END)}
        return frozenset(token for token in ends if token is not None)

    @cached_property
    def grammars(self) -> Grammars:
        """The grammars for this tokenizer; creating them takes a second."""
        return Grammars(self._tokenizer, self.end_ids)

    def encode(
        self,
        messages: Messages,
        tools: Sequence[Mapping[str, Any]] | None = None,
        options: PromptOptions = _DEFAULT_OPTIONS,
        context: int | None = None,
    ) -> list[int]:
        """Return the token ids of the prompt: the conversation in the model's chat template.

        Can be called in any thread.

        Raises:
            RequestRejected: a message is malformed, contains content other than text, or is
                rejected by the template.
            PromptTooLong: it surely has `context` tokens or more; it has not been tokenized.
        """

        def check(text: str) -> None:
            if context is not None:
                check_length(self._bound.of(text), context, at_least=True)

        plain: list[Mapping[str, Any]] = [_plain(message) for message in messages]
        template = self._template(tools)
        plain = [with_thoughts(message, template) for message in plain]
        if tools and "message['tools']" in template:
            plain = in_system_message(plain, tools)
        if any("tool_calls" in message for message in plain) and self._calls_as_text:
            plain = [with_text(message) for message in plain]
        several = any(len(message.get("tool_calls", ())) > 1 for message in plain)
        if several and self._calls_one_by_one:
            plain = one_by_one(plain)
        try:
            return self._encode_described(plain, tools, options, check)
        except RequestRejected:
            raise
        except Exception as exc:  # a template is a program written by the model's author
            reason = f"the model's chat template rejects these messages: {str(exc)[:300]}"
            if not self._tokenizer.chat_template:
                reason = (
                    "this model has no chat template, which turns messages into a prompt: its "
                    "folder needs a chat_template.jinja"
                )
            raise RequestRejected(reason, param="messages") from exc

    def _encode_described(
        self,
        messages: Messages,
        tools: Sequence[Mapping[str, Any]] | None,
        options: PromptOptions,
        check: Callable[[str], None],
    ) -> list[int]:
        """Return the ids of a prompt; a template that insists on descriptions gets empty ones."""
        try:
            return encode_prompt(self._tokenizer, messages, tools, options, check)
        except RequestRejected:
            raise
        except Exception:  # a template may raise anything
            if not tools:
                raise
            return encode_prompt(self._tokenizer, messages, described(tools), options, check)

    @cached_property
    def _calls_as_text(self) -> bool:
        """Whether the template wants the arguments of earlier calls as JSON text."""
        return wants_text(self._render)

    @cached_property
    def _calls_one_by_one(self) -> bool:
        """Whether the template wants one call in each message."""
        return wants_one(self._render, text=self._calls_as_text)

    def _render(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any]) -> str:
        write = self._tokenizer.apply_chat_template
        return str(write(list(messages), tools=list(tools), tokenize=False))

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

    def reasoning(self, markers: Markers | None = None) -> ReasoningFormat:
        """Return the format of the model's reasoning; `markers`: those of the request, if any.

        Raises:
            RequestRejected: the model needs markers of its own.
        """
        if markers not in (None, self._reasoning.markers) and self._reasoning is HARMONY:
            raise RequestRejected(
                "this model has reasoning markers of its own: leave out start_think_token and "
                "end_think_token",
                param="start_think_token",
            )
        return self._reasoning.marked(markers)

    def reader(
        self,
        tools: Tools | None = None,
        *,
        opened: bool = False,
        markers: Markers | None = None,
    ) -> ReplyReader | HarmonyReader:
        """Return a reader of one reply; `opened`: the prompt ends inside the reasoning."""
        if self._reasoning is HARMONY:
            return HarmonyReader(opened=opened, tools=tools)
        return ReplyReader(opened=opened, tools=tools, reasoning=self.reasoning(markers))

    def reply_grammar(
        self,
        request: EngineRequest,
        tools: Tools | None,
        reasoning: ReasoningFormat = THINK,
        *,
        opened: bool,
        thinks: bool,
    ) -> ReplyGrammar | None:
        """Return the grammar of a reply to `request`, or None if it is free.

        `opened`: the reply starts inside a thinking block. `thinks`: it may open one, even if the
        chat template does not mention thinking.
        """
        forms: dict[str, str] = {}
        if request.schema is not None and not request.must_call:
            before = self.grammars.symbol(reasoning.answer)
            forms["answer"] = f"answer: {before} {json_rule(request.schema)}"
        if tools is not None and (request.must_call or forms):
            names = request.must_call or tuple(tools.schemas)
            forms["calls"] = tools.rules(names, self.grammars.symbol)
        if not forms:
            return None
        template = self._template(request.tools)
        thinks = thinks or any(marker in template for marker in reasoning.markers)
        thinking: Thinking = "opened" if opened else "possible" if thinks else "none"
        param = "response_format" if "answer" in forms else "tools"
        return self.grammars.start(self.grammars.reply(forms, thinking, reasoning), param)

    def opens_thinking(
        self, prompt: Sequence[int], reasoning: ReasoningFormat | None = None
    ) -> bool:
        """Return True if `prompt` ends with the opening marker of a thinking block."""
        marker = (reasoning or self._reasoning).opening
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
        if _BYTE.fullmatch(piece):
            return bytes([int(piece[3:5], 16)])
        return piece.replace("\u2581", " ").encode()

    def _raw_bytes(self, token: int) -> bytes | None:
        """Return the bytes of a token that may be part of a character; None if it is text."""
        piece = self._tokenizer.convert_ids_to_tokens(token) or ""
        is_byte = self._falls_back and _BYTE.fullmatch(piece) is not None
        return self.token_bytes(token) if is_byte or self._bytes or not piece else None

    def with_bytes(self, scored: ScoredToken) -> TokenLogprob:
        """Return `scored` with the bytes of its tokens instead of their ids."""
        top = tuple((self.token_bytes(token), logprob) for token, logprob in scored.top)
        return TokenLogprob(self.token_bytes(scored.id), scored.logprob, top)

    def detokenizer(
        self,
        tools: Tools | None = None,
        markers: Markers | None = None,
        *,
        skip_special_tokens: bool = True,
    ) -> Detokenizer:
        """Return a detokenizer that keeps the markers of reasoning and calls, even if special.

        Without `skip_special_tokens` it keeps all tokens.
        """
        reasoning = self.reasoning(markers)
        texts = [*reasoning.markers, *(text for pair in reasoning.wrappers for text in pair)]
        texts += HARMONY_CALLS.markers if reasoning is HARMONY else ()
        texts += tools.form.markers if tools is not None else ()
        kept = {token: text for marker in texts for token, text in self._specials(marker)}
        if not skip_special_tokens:
            kept = {token: self._added[token].content for token in self._special_ids}
        skipped = self._special_ids - kept.keys()
        return Detokenizer(self._tokenizer.backend_tokenizer, self._raw_bytes, kept, skipped)

    def _template(self, tools: Sequence[Mapping[str, Any]] | None) -> str:
        """Return the source of the chat template; empty if the tokenizer has none."""
        try:
            return str(self._tokenizer.get_chat_template(tools=list(tools) if tools else None))
        except ValueError:
            return ""

    def _specials(self, marker: str) -> list[tuple[int, str]]:
        """Return the special tokens in `marker`, each with its text."""
        ids = self._tokenizer.encode(marker, add_special_tokens=False)
        return [(token, self._added[token].content) for token in ids if token in self._special_ids]


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


def _all_templates(tokenizer: Any) -> str:
    """Return the sources of all chat templates; empty if the tokenizer has none."""
    templates = tokenizer.chat_template or ""
    return "\n".join(templates.values()) if isinstance(templates, dict) else templates
