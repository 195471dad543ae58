"""Whether a prompt is too long for a model, as far as possible before it is tokenized.

Tokenizing a text of a few megabytes takes seconds, counting its characters a millisecond.
"""

import json
import unicodedata
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from tokenizers.models import BPE

from optillm_hooks.local_provider.detokenizer import byte_alphabet
from optillm_hooks.local_provider.engine_request import PromptTooLong

_KEEPS_ALL = frozenset({"ByteLevel", "Split", "Digits", "Metaspace", "Prepend", "Replace", "NFC"})
"""Steps of tokenizers that drop nothing but blanks, unless they say so."""


def check_length(tokens: int, context: int, *, at_least: bool = False) -> None:
    """Raise PromptTooLong unless a prompt of `tokens` tokens leaves room for one more."""
    if tokens >= context:
        count = f"at least {tokens}" if at_least else tokens
        raise PromptTooLong(
            f"the prompt has {count} tokens; this model's context of {context} must hold it and at "
            "least one token of the answer",
            param="messages",
        )


class LengthBound:
    """A lower bound on the tokens of a text: its length over that of the longest token.

    Blanks do not count, since tokenizers may drop them. There is no bound, which is zero, if other
    text may be dropped too, or any length of it become one unknown token.
    """

    def __init__(self, tokenizer: Any) -> None:
        backend = tokenizer.backend_tokenizer
        normalizer, before = _steps(backend.normalizer), _steps(backend.pre_tokenizer)
        kinds = {step["type"] for step in (*normalizer, *before)}
        whole = kinds <= _KEEPS_ALL and not any(map(_drops, (*normalizer, *before)))
        pieces, added = tokenizer.get_vocab(), tokenizer.added_tokens_decoder.values()
        self._normalizes = "NFC" in kinds
        self._measure: Callable[[str], int] | None = None
        longest = max(map(len, pieces), default=0)
        if whole and "ByteLevel" in kinds and isinstance(backend.model, BPE):
            self._measure = partial(_byte_count, _without_token(pieces))
            # Each character of a piece is a byte; those of added tokens are characters.
            longest = max([longest, *(len(token.content.encode()) for token in added)])
        elif whole and getattr(backend.model, "byte_fallback", False) and "<0xFF>" in pieces:
            self._measure = len
        self._longest = max(1, longest)

    def of(self, text: str) -> int:
        """Return a number of tokens that `text` has at least."""
        if self._measure is None:
            return 0
        visible = "".join(text.split())
        if self._normalizes:
            visible = unicodedata.normalize("NFC", visible)
        return self._measure(visible) // self._longest


def _byte_count(left_out: bytes, text: str) -> int:
    return len(text.encode(errors="replace").translate(None, left_out))


def _without_token(pieces: Collection[str]) -> bytes:
    """Return the bytes that no token of a byte-level vocabulary stands for; they are dropped."""
    return bytes(byte for letter, byte in byte_alphabet().items() if letter not in pieces)


def _steps(component: Any) -> list[dict[str, Any]]:
    """Return the settings of a normalizer or pre-tokenizer, one for each of its steps."""
    if component is None:
        return []
    settings = json.loads(component.__getstate__())
    steps = settings.get("normalizers") or settings.get("pretokenizers") or [settings]
    return [step for step in steps if isinstance(step, dict)]


def _drops(step: dict[str, Any]) -> bool:
    """Return True if a step may drop text other than blanks, or join characters."""
    if step["type"] == "Replace":
        return step["pattern"] != {"String": " "} or not step["content"]
    return step.get("behavior") == "Removed"
