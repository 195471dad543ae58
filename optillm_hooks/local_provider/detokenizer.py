"""Incremental detokenization: token ids to text, a whole character at a time.

Text that has been shown must never change. `tokenizers` decodes a run of byte tokens as one: a bad
byte after a good one turns both into replacement characters, and its own `DecodeStream` then
raises. So bytes are decoded here, one character after the other, as SentencePiece does.
"""

import codecs
from collections.abc import Callable, Collection, Mapping
from typing import Any


class Detokenizer:
    """Incremental detokenizer: a character is returned with the token that completes it.

    The text is that of `tokenizers`, except that a byte which is part of no character becomes one
    replacement character without changing the bytes beside it.
    """

    def __init__(
        self,
        tokenizer: Any,
        raw_bytes: Callable[[int], bytes | None],
        kept: Mapping[int, str],
        skipped: Collection[int],
    ) -> None:
        """Begin a text.

        Args:
            tokenizer: a tokenizer of `tokenizers`.
            raw_bytes: returns the bytes of a token that may be part of a character, which are empty
                for an id without a token; None for a token that is text.
            kept: special tokens that are part of the text.
            skipped: special tokens that are not.
        """
        self._tokenizer = tokenizer
        self._raw_bytes = raw_bytes
        self._kept = kept
        self._skipped = skipped
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._last: list[int] = []
        """The last token of the text: decoders treat the beginning of a text in a special way."""

    def feed(self, token: int) -> str:
        """Return the text that `token` completes."""
        if token in self._kept:
            return self.close() + self._kept[token]
        raw = b"" if token in self._skipped else self._raw_bytes(token)
        if raw == b"":
            return ""
        if raw is None or (raw.isascii() and not self._last):
            return self.close() + self._text(token)
        self._last = [token]
        return self._utf8.decode(raw)

    def close(self) -> str:
        """Return a replacement character if the last character is incomplete."""
        return self._utf8.decode(b"", final=True)

    def _text(self, token: int) -> str:
        """Return the text that `token` adds to the last one."""
        before, whole = self._decode(self._last), self._decode([*self._last, token])
        self._last = [token]
        return whole[len(before) :] if whole.startswith(before) else self._decode([token])

    def _decode(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=False)
        return text


def byte_alphabet() -> dict[str, int]:
    """Return the byte that each character of a byte-level BPE vocabulary stands for."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + i): byte for i, byte in enumerate(others)}
