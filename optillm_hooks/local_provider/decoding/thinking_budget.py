"""A reply whose thinking ends after a number of tokens, as a request's `thinking` asks."""

from collections.abc import Sequence
from typing import Literal

from optillm_hooks.local_provider.decoding.base import Branch, Vocabulary
from optillm_hooks.local_provider.engine_request import SamplingParams
from optillm_hooks.local_provider.reasoning import ReasoningFormat
from optillm_hooks.local_provider.uncertainty import Uncertainty


class LimitedThinking(Branch):
    """A reply that may begin with thinking, which is ended after `budget` tokens.

    `opened`: the prompt ends inside a thinking block.
    """

    def __init__(
        self,
        sampling: SamplingParams,
        budget: int,
        vocabulary: Vocabulary,
        reasoning: ReasoningFormat,
        *,
        opened: bool,
    ) -> None:
        super().__init__(sampling)
        self._left = budget
        self._token_bytes = vocabulary.token_bytes
        self._opening, self._closing = (marker.encode() for marker in reasoning.markers)
        self._ending = vocabulary.encode(f"\n{reasoning.closing}{reasoning.gap}")
        self._text = b""
        self._state: Literal["start", "thinking", "answering"] = "thinking" if opened else "start"

    def emit(self, token: int, _uncertainty: Uncertainty, *, end: bool) -> Sequence[int]:
        spelled = self._token_bytes(token)
        if self._state == "start":
            self._text += spelled
            begun = self._text.lstrip()
            if begun.startswith(self._opening):
                self._state, self._text = "thinking", b""
            elif end or not self._opening.startswith(begun):
                self._state = "answering"
            return [token]
        if self._state == "answering":
            return [token]
        self._text = self._text[-len(self._closing) :] + spelled
        if end or self._closing in self._text:
            self._state = "answering"
        elif not self._left:
            self._state = "answering"
            return self._ending
        self._left -= 1
        return [token]
