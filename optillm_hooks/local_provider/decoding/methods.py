"""The decoding methods by name, and each as the engine runs it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from pydantic import BaseModel

from optillm_hooks.decoding.autothink import AutoThinkSettings
from optillm_hooks.decoding.cot_decoding import CotSettings
from optillm_hooks.decoding.deepconf import DeepConfSettings
from optillm_hooks.decoding.entropy_decoding import EntropySettings
from optillm_hooks.decoding.markers import MARKERS, Markers
from optillm_hooks.decoding.thinkdeeper import ThinkSettings
from optillm_hooks.local_provider.decoding.autothink import SteeredThinking
from optillm_hooks.local_provider.decoding.base import Branch, Decoding, Samples
from optillm_hooks.local_provider.decoding.cot_decoding import CotDecoding
from optillm_hooks.local_provider.decoding.deepconf import DeepConf
from optillm_hooks.local_provider.decoding.entropy_decoding import Adaptive
from optillm_hooks.local_provider.decoding.thinkdeeper import Thinking
from optillm_hooks.local_provider.engine_request import EngineRequest

SETTINGS: Mapping[str, type[BaseModel]] = {
    "autothink": AutoThinkSettings,
    "cot_decoding": CotSettings,
    "deepconf": DeepConfSettings,
    "entropy_decoding": EntropySettings,
    "thinkdeeper": ThinkSettings,
}

ONE_CHOICE = (CotSettings, DeepConfSettings)
"""Methods that make one reply of many branches."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a method needs to know of the model's tokens."""

    encode: Callable[[str], Sequence[int]]
    token_bytes: Callable[[int], bytes]


def steering(request: EngineRequest) -> Mapping[str, float]:
    """Return the strengths of the steering vectors that a request wants, by name."""
    settings = request.decoding
    return settings.pattern_strengths if isinstance(settings, AutoThinkSettings) else {}


def markers(request: EngineRequest) -> Markers:
    """Return between what a reply to `request` thinks."""
    settings = request.decoding
    return settings.markers if isinstance(settings, ThinkSettings) else MARKERS


def method(
    request: EngineRequest,
    question: str,
    room: int,
    vocabulary: Vocabulary,
    *,
    opened: bool = False,
) -> Decoding:
    """Return the method of a request whose last user turn is `question`.

    `room` is the most tokens of a reply. `opened`: it begins inside a block of thinking.

    Raises:
        RequestRejected: the settings leave no room for an answer.
    """
    sampling, n = request.sampling, request.n
    encode, token_bytes = vocabulary.encode, vocabulary.token_bytes
    match request.decoding:
        case CotSettings() as settings:
            return CotDecoding(settings, sampling)
        case DeepConfSettings() as settings:
            return DeepConf(settings, sampling)
        case EntropySettings() as settings:
            return Samples(partial(Adaptive, sampling, settings), n)
        case AutoThinkSettings() as settings:
            steered = partial(SteeredThinking, sampling, question, settings, room)
            return Samples(partial(steered, encode, token_bytes, opened=opened), n)
        case ThinkSettings() as settings:
            thinking = partial(
                Thinking, sampling, settings, room, encode, token_bytes, opened=opened
            )
            return Samples(thinking, n)
        case _:
            return Samples(partial(Branch, sampling), n)
