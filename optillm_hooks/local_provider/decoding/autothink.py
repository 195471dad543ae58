"""AutoThink in the engine: `thinkdeeper` with a thinking budget per question, and steering.

Settings and the complexity score: `decoding.autothink`.
"""

from collections.abc import Mapping
from functools import partial

from optillm_hooks.decoding.autothink import AutoThinkSettings, complexity, thinking_settings
from optillm_hooks.local_provider.decoding.base import DecodingMethod, ReplyContext, Samples
from optillm_hooks.local_provider.decoding.thinkdeeper import Thinking
from optillm_hooks.types import Json


class SteeredThinking(Thinking):
    """Thinking with a budget for its question, along the requested steering vectors."""

    def __init__(self, settings: AutoThinkSettings, reply: ReplyContext) -> None:
        super().__init__(
            reply.sampling,
            thinking_settings(reply.question, settings, reply.max_tokens),
            reply.max_tokens,
            reply.vocabulary.encode,
            reply.vocabulary.token_bytes,
            opened=reply.opened,
            reasoning=reply.reasoning,
        )
        self._complexity = complexity(reply.question)
        self.steering = settings.pattern_strengths

    def facts(self) -> Mapping[str, Json]:
        return {
            "complexity": round(self._complexity, 3),
            "steering": dict(self.steering),
            **super().facts(),
        }


def _start(settings: AutoThinkSettings, reply: ReplyContext) -> Samples:
    return Samples(partial(SteeredThinking, settings, reply), reply.n)


METHOD = DecodingMethod("autothink", AutoThinkSettings, _start)
