"""The decoding methods of the engine, by name."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from optillm_hooks.decoding.autothink import AutoThinkSettings
from optillm_hooks.decoding.markers import MARKERS, Markers
from optillm_hooks.decoding.thinkdeeper import ThinkSettings
from optillm_hooks.local_provider.decoding import (
    autothink,
    cot_decoding,
    deepconf,
    entropy_decoding,
    thinkdeeper,
)
from optillm_hooks.local_provider.decoding.base import (
    Branch,
    Decoding,
    DecodingMethod,
    ReplyContext,
    Samples,
    Vocabulary,
)
from optillm_hooks.local_provider.decoding.thinking_budget import LimitedThinking
from optillm_hooks.local_provider.engine_request import EngineRequest
from optillm_hooks.local_provider.reasoning import THINK, ReasoningFormat

_MODULES = (autothink, cot_decoding, deepconf, entropy_decoding, thinkdeeper)
METHODS: Mapping[str, DecodingMethod[Any]] = {m.METHOD.name: m.METHOD for m in _MODULES}


def steering(request: EngineRequest) -> Mapping[str, float]:
    """Return the strengths of the steering vectors in a request, by name."""
    settings = request.decoding
    return settings.pattern_strengths if isinstance(settings, AutoThinkSettings) else {}


def markers(request: EngineRequest) -> Markers | None:
    """Return the thinking markers that `request` asks for; None: the model's own."""
    settings = request.decoding
    if isinstance(settings, ThinkSettings) and settings.markers != MARKERS:
        return settings.markers
    return None


def start_decoding(
    request: EngineRequest,
    question: str,
    max_tokens: int,
    vocabulary: Vocabulary,
    *,
    opened: bool = False,
    reasoning: ReasoningFormat = THINK,
) -> Decoding:
    """Return the initial state of the request's decoding method, which is sampling by default.

    `question`: the last user turn. `opened`: the prompt ends inside a thinking block. `reasoning`:
    the markers of the thinking.

    Raises:
        RequestRejected: the settings leave no room for an answer.
    """
    sampling, n = request.sampling, request.n
    reply = ReplyContext(sampling, n, question, max_tokens, vocabulary, opened, reasoning)
    for method in METHODS.values():
        if type(request.decoding) is method.settings:
            return method.start(request.decoding, reply)
    branch: Callable[[], Branch] = partial(Branch, sampling)
    if (budget := request.prompt.thinking_budget) is not None:
        branch = partial(LimitedThinking, sampling, budget, vocabulary, reasoning, opened=opened)
    return Samples(branch, n)
