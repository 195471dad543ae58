"""AutoThink: how long a reply thinks depends on how hard its question looks.

Source: Sharma 2025, "AutoThink: efficient inference for reasoning LLMs", SSRN 5253327. There a
trained classifier gives one of two budgets in tokens; here a rule that needs no download gives a
score, and thinking gets a share of the reply that grows with it. The thinking itself is that of
thinkdeeper. Steering vectors are the operator's (`local_provider.steering`); a request says which,
and how strongly, instead of having a classifier find one.
"""

from collections.abc import Callable, Mapping, Sequence

from optillm_hooks.decoding.autothink import AutoThinkSettings, complexity, thinking_for
from optillm_hooks.local_provider.decoding.thinkdeeper import Thinking
from optillm_hooks.local_provider.engine_request import SamplingParams
from optillm_hooks.types import Json


class SteeredThinking(Thinking):
    """Thinking with the budget of its question, along the steering vectors that were asked for."""

    def __init__(
        self,
        sampling: SamplingParams,
        question: str,
        settings: AutoThinkSettings,
        room: int,
        encode: Callable[[str], Sequence[int]],
        token_bytes: Callable[[int], bytes],
        *,
        opened: bool = False,
    ) -> None:
        budget = thinking_for(question, settings, room)
        super().__init__(sampling, budget, room, encode, token_bytes, opened=opened)
        self._complexity = complexity(question)
        self.steering = settings.pattern_strengths

    def facts(self) -> Mapping[str, Json]:
        return {
            "complexity": round(self._complexity, 3),
            "steering": dict(self.steering),
            **super().facts(),
        }
