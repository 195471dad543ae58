"""Between conversations and token ids: the chat template, text piece by piece, stop strings."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from tokenizers.decoders import DecodeStream

from optillm_hooks.errors import RequestRejected
from optillm_hooks.local_provider.decoding.base import Written
from optillm_hooks.local_provider.generation import Messages, Piece, ScoredToken, SpelledToken
from optillm_hooks.types import FinishReason

_THINK, _THOUGHT = "<think>", "</think>"
_ROLES = {"developer": "system", "function": "tool"}


class ChatFormat:
    """A tokenizer with the chat template of its model."""

    def __init__(self, tokenizer: Any, end_ids: Iterable[int]) -> None:
        self._tokenizer = tokenizer
        self.end_ids = frozenset(end_ids)
        self._bytes = _byte_alphabet()

    def encode(
        self, messages: Messages, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        """Return the prompt: the conversation as the model was trained to read it.

        Raises:
            RequestRejected: a part is not text, or the template refuses the conversation.
        """
        plain = [_plain(message) for message in messages]
        try:
            ids: list[int] = self._tokenizer.apply_chat_template(
                plain,
                tools=list(tools) if tools else None,
                add_generation_prompt=True,
                return_dict=False,
            )
        except Exception as exc:  # a template is a program of the model's author
            raise RequestRejected(
                f"the model's chat template refuses these messages: {exc}", param="messages"
            ) from exc
        return ids

    def opens_thinking(self, prompt: Sequence[int]) -> bool:
        """Return whether the reply to `prompt` begins inside a <think> block."""
        end: str = self._tokenizer.decode(list(prompt[-8:]), skip_special_tokens=False)
        return end.rstrip().endswith(_THINK)

    def encode_text(self, text: str) -> list[int]:
        """Return the ids of `text` alone, without any special token added."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids` without special tokens."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def token_bytes(self, token: int) -> bytes:
        """Return the exact bytes that a token stands for, which may be half a character."""
        piece: str = self._tokenizer.convert_ids_to_tokens(token)
        if piece.startswith("<0x") and len(piece) == 6:
            return bytes([int(piece[3:5], 16)])
        if all(char in self._bytes for char in piece):
            return bytes(self._bytes[char] for char in piece)
        return piece.replace("\u2581", " ").encode()

    def spelled(self, scored: ScoredToken) -> SpelledToken:
        top = tuple((self.token_bytes(token), logprob) for token, logprob in scored.top)
        return SpelledToken(self.token_bytes(scored.id), scored.logprob, top)

    def detokenizer(self) -> "Detokenizer":
        return Detokenizer(self._tokenizer.backend_tokenizer)


def as_text(message: Mapping[str, Any]) -> str:
    """Return the text of a message; of content parts, those of type text, joined by newlines."""
    content = message.get("content")
    if isinstance(content, str) or content is None:
        return content or ""
    return "\n".join(str(part.get("text", "")) for part in content if part.get("type") == "text")


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message with string content, in the roles that templates know."""
    role, content = message.get("role", "user"), message.get("content")
    if isinstance(content, Sequence) and not isinstance(content, str):
        kinds = {str(part.get("type")) for part in content} - {"text"}
        if kinds:
            named = ", ".join(sorted(kinds))
            raise RequestRejected(f"local models read text only, not {named}", param="messages")
    return {**message, "role": _ROLES.get(role, role), "content": as_text(message)}


def _byte_alphabet() -> dict[str, int]:
    """Return the byte of each character in which byte-level vocabularies are written."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + i): byte for i, byte in enumerate(others)}


class Detokenizer:
    """Turns ids into text one by one; a character comes out when its last byte is in."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)

    def feed(self, token: int) -> str:
        """Return the text that `token` completes."""
        return self._stream.step(self._tokenizer, token) or ""


class StopFinder:
    """Finds the first of several strings in a text that comes in pieces.

    What might be the beginning of one is held back until it is certain.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def feed(self, text: str) -> str:
        """Return what can be shown now; after a stop string was found, nothing more."""
        if self.found:
            return ""
        text = self._held + text
        ends = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if ends:
            self.found, self._held = True, ""
            return text[: min(ends)]
        hold = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold]

    def close(self) -> str:
        """Return what was held back, now that no more text comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` with which `stop` begins."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


class Shown(NamedTuple):
    """A piece of a reply, by what it is."""

    text: str
    reasoning: str


class ThinkSplitter:
    """Parts a reply that begins with <think> into its reasoning and its text.

    `opened`: the prompt ends with the marker already, as some chat templates have it.
    """

    def __init__(self, *, opened: bool = False) -> None:
        self._held = ""
        self._state: Literal["start", "thinking", "after", "text"] = (
            "thinking" if opened else "start"
        )

    @property
    def thinking(self) -> bool:
        return self._state == "thinking"

    def feed(self, text: str) -> Shown:
        """Return what can be shown; the beginning of a marker is held back until it is certain."""
        self._held += text
        reasoning = ""
        if self._state == "start":
            begun = self._held.lstrip()
            if _THINK.startswith(begun):
                return Shown("", "")
            self._state = "thinking" if begun.startswith(_THINK) else "text"
            if self._state == "thinking":
                self._held = begun.removeprefix(_THINK).lstrip("\n")
        if self._state == "thinking":
            reasoning, marker, rest = self._held.partition(_THOUGHT)
            if not marker:
                keep = len(reasoning) - _overlap(reasoning, _THOUGHT)
                self._held = reasoning[keep:]
                return Shown("", reasoning[:keep])
            self._state, self._held = "after", rest
        if self._state == "after":
            self._held = self._held.lstrip("\n")
            self._state = "text" if self._held else "after"
        shown, self._held = self._held, ""
        return Shown(shown, reasoning)

    def close(self) -> Shown:
        """Return what was held back, now that no more comes."""
        held, self._held = self._held, ""
        return Shown("", held) if self.thinking else Shown(held, "")


class Transcript:
    """One choice as it is written: takes tokens, gives pieces to show."""

    def __init__(
        self,
        choice: int,
        chat_format: ChatFormat,
        stop: Sequence[str],
        *,
        thinking: bool = False,
    ) -> None:
        self._choice = choice
        self._splitter = ThinkSplitter(opened=thinking)
        self._format = chat_format
        self._detokenizer = chat_format.detokenizer()
        self._stop = StopFinder(stop)
        self._waiting: list[tuple[int, SpelledToken]] = []
        self._ends: list[int] = []
        self._shown = ""
        self.ids: list[int] = []
        self.reasoning_tokens = 0
        self.finish_reason: FinishReason | None = None

    def add(self, token: int, scored: ScoredToken | None, *, last: bool) -> Piece | None:
        """Return what `token` gives to show, or None. `last`: no other token may follow it."""
        start = self._ends[-1] if self._ends else 0
        text = written = ""
        if token in self._format.end_ids:
            self.finish_reason = "stop"
        else:
            written = self._detokenizer.feed(token)
            if scored is not None:
                self._waiting.append((start, self._format.spelled(scored)))
            text = self._stop.feed(written)
            if self._stop.found:
                self.finish_reason = "stop"
            elif last:
                self.finish_reason = "length"
        self.ids.append(token)
        self.reasoning_tokens += self._splitter.thinking
        self._ends.append(start + len(written))
        if self.finish_reason is not None:
            text += self._stop.close()
        return self._piece(text)

    def written(self, *, stopped: bool) -> Written:
        """Return all that was written; of a branch that was stopped, with what was held back."""
        text = self._shown + self._stop.close()
        reason = self.finish_reason or "length"
        return Written(text, tuple(self.ids), tuple(self._ends), reason, stopped)

    def _piece(self, text: str) -> Piece | None:
        self._shown += text
        shown = self._splitter.feed(text)
        if self.finish_reason is not None:
            rest = self._splitter.close()
            shown = Shown(shown.text + rest.text, shown.reasoning + rest.reasoning)
        ended = self.finish_reason is not None and not self._stop.found
        tokens = [token for start, token in self._waiting if start < len(self._shown) or ended]
        del self._waiting[: len(tokens)]
        if not (any(shown) or tokens or self.finish_reason):
            return None
        return Piece(self._choice, shown.text, shown.reasoning, tuple(tokens), self.finish_reason)
