"""Entropy decoding in the engine: sampling parameters that follow the uncertainty of each token.

Source and settings: `decoding.entropy_decoding`.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Literal

from optillm_hooks.decoding.entropy_decoding import EntropySettings
from optillm_hooks.local_provider.decoding.base import Branch, DecodingMethod, ReplyContext, Samples
from optillm_hooks.local_provider.engine_request import SamplingParams
from optillm_hooks.local_provider.uncertainty import Uncertainty
from optillm_hooks.types import Json

State = Literal["certain", "hesitant", "fork", "fog", "ordinary"]
"""How uncertain the model is of the next token."""


def state(uncertainty: Uncertainty, settings: EntropySettings) -> State:
    """Return the state for the entropy and varentropy of the next token."""
    h, v, s = uncertainty.entropy, uncertainty.varentropy, settings
    if h < s.low_entropy and v < s.low_varentropy:
        return "certain"
    if h > s.hesitant_entropy and v < s.low_varentropy:
        return "hesitant"
    if v > s.high_varentropy:
        return "fork" if h < s.high_entropy else "fog"
    return "ordinary"


def adapted(
    sampling: SamplingParams, uncertainty: Uncertainty, settings: EntropySettings
) -> SamplingParams:
    """Return the sampling parameters for one token. At temperature 0 every token stays greedy.

    * certain (low entropy, low varentropy): the likeliest token
    * hesitant (high entropy, low varentropy): temperature times 1.3
    * fork (high varentropy: several likely continuations): temperature times 1.2; a top_k is
      raised to at least 5
    * fog (both high): temperature times 1.5, and a smaller top_p that leaves out the tail
    * ordinary: the request's own, with min_p reduced by up to half as the distribution flattens
    """
    if sampling.temperature == 0:
        return sampling
    match state(uncertainty, settings):
        case "certain":
            return replace(sampling, temperature=0.0)
        case "hesitant":
            return _warmer(sampling, 1.3, settings)
        case "fork":
            top_k = max(sampling.top_k, 5) if sampling.top_k else 0
            return replace(_warmer(sampling, 1.2, settings), top_k=top_k)
        case "fog":
            top_p = max(min(sampling.top_p, 0.9) - 0.2, 0.5)
            return replace(_warmer(sampling, 1.5, settings), top_p=top_p)
        case "ordinary":
            flat = uncertainty.entropy + uncertainty.varentropy
            return replace(sampling, min_p=sampling.min_p * max(1 - 0.1 * flat, 0.5))


def _warmer(sampling: SamplingParams, factor: float, settings: EntropySettings) -> SamplingParams:
    # A client's own temperature is kept even if it exceeds the limit.
    limit = max(settings.most_temperature, sampling.temperature)
    return replace(sampling, temperature=min(sampling.temperature * factor, limit))


class Adaptive(Branch):
    """A sample whose sampling parameters are adapted at each token."""

    metrics = frozenset({"entropy"})

    def __init__(self, sampling: SamplingParams, settings: EntropySettings) -> None:
        super().__init__(sampling)
        self._settings = settings
        self._states: Counter[State] = Counter()

    def sampling_params(self, uncertainty: Uncertainty) -> SamplingParams:
        self._states[state(uncertainty, self._settings)] += 1
        return adapted(self._sampling, uncertainty, self._settings)

    def facts(self) -> Mapping[str, Json]:
        return {name: self._states[name] for name in sorted(self._states)}


def _start(settings: EntropySettings, reply: ReplyContext) -> Samples:
    return Samples(partial(Adaptive, reply.sampling, settings), reply.n)


METHOD = DecodingMethod("entropy_decoding", EntropySettings, _start)
