"""ThinkDeeper in the engine: markers and thought switches are inserted into the sequence.

Settings and the budget: `decoding.thinkdeeper`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from optillm_hooks.decoding.thinkdeeper import ThinkingBudget, ThinkSettings
from optillm_hooks.errors import RequestRejected
from optillm_hooks.local_provider.decoding.base import Branch, DecodingMethod, ReplyContext, Samples
from optillm_hooks.local_provider.engine_request import SamplingParams
from optillm_hooks.local_provider.reasoning import ReasoningFormat
from optillm_hooks.local_provider.uncertainty import Uncertainty
from optillm_hooks.types import Json


class Thinking(Branch):
    """A reply that begins with thinking of a minimum and maximum length.

    Markers and thought switches are found in the text, however it is tokenized, and are inserted
    as exactly their text. `opened`: the prompt ends inside a thinking block, so no opening marker
    is inserted. `reasoning`: the model's markers; None: those of the settings.

    Raises:
        RequestRejected: the prefill leaves no room for an answer.
    """

    def __init__(
        self,
        sampling: SamplingParams,
        settings: ThinkSettings,
        max_tokens: int,
        encode: Callable[[str], Sequence[int]],
        token_bytes: Callable[[int], bytes],
        *,
        opened: bool = False,
        reasoning: ReasoningFormat | None = None,
    ) -> None:
        super().__init__(sampling)
        markers = reasoning or ReasoningFormat(*settings.markers)
        self._switches = [word.encode() for word in settings.thought_switch_tokens]
        begin = "" if opened else f"{markers.opening}{markers.lead}"
        self._opening = encode(begin + settings.prefill)
        self._ending = encode(f"\n{markers.closing}{markers.gap}")
        left = max_tokens - len(self._opening)
        if settings.prefill and left <= len(self._ending) + 1:
            raise RequestRejected(
                f"prefill leaves no room for an answer: with the thinking markers it takes "
                f"{max_tokens - left + len(self._ending)} of {max_tokens} tokens",
                param="prefill",
            )
        self._budget = ThinkingBudget(settings, max(left, 0))
        self._marker = markers.closing.encode()
        self._encode = encode
        self._token_bytes = token_bytes
        self._text = b""
        self._tokens = 0
        self._thoughts = 0
        self._pushed = 0
        self._answering = False

    def emit(self, token: int, _uncertainty: Uncertainty, *, end: bool) -> Sequence[int]:
        opening, self._opening = self._opening, ()
        if opening:
            return opening
        if self._answering:
            return [token]
        self._tokens += 1
        closes = end or (self._text + self._token_bytes(token)).rstrip().endswith(self._marker)
        if closes and self._tokens < self._budget.min_tokens and (more := self._next_switch()):
            return more
        if closes and not end:
            self._answering = True
            return [token]
        if not end:
            self._append(self._token_bytes(token))
        spent = len(self._ending) + self._tokens >= self._budget.max_tokens
        if end or spent or self._thoughts >= self._budget.max_thoughts:
            self._answering = True
            return self._ending if end else [token, *self._ending]
        return [token]

    def facts(self) -> Mapping[str, Json]:
        return self._budget.facts(self._tokens, self._thoughts, self._pushed)

    def _next_switch(self) -> Sequence[int]:
        """Return the tokens of the next thought switch, or none if it does not fit the budget."""
        word = self._switches[self._pushed % len(self._switches)]
        written = self._encode(f"\n{word.decode()}")
        # The sampled token that they replace has already been counted.
        tokens = self._tokens + len(written) - 1
        if tokens + len(self._ending) >= self._budget.max_tokens:
            return ()
        self._pushed += 1
        self._tokens = tokens
        self._append(b"\n" + word)
        return written

    def _append(self, spelled: bytes) -> None:
        self._text += spelled
        # A switch is counted once, when its last byte is appended.
        self._thoughts += any(
            word in self._text[-len(word) - len(spelled) + 1 :] for word in self._switches
        )


def _start(settings: ThinkSettings, reply: ReplyContext) -> Samples:
    encode, token_bytes = reply.vocabulary.encode, reply.vocabulary.token_bytes
    branch = partial(Thinking, reply.sampling, settings, reply.max_tokens, encode, token_bytes)
    return Samples(partial(branch, opened=reply.opened, reasoning=reply.reasoning), reply.n)


METHOD = DecodingMethod("thinkdeeper", ThinkSettings, _start)
