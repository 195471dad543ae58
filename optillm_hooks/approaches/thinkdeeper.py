"""ThinkDeeper: at least and at most so many tokens of thinking before the answer.

Source: Muennighoff et al. 2025, "s1: Simple test-time scaling", arXiv:2501.19393 (budget forcing);
what differs is said in `local_provider.decoding.thinkdeeper`.
Cost: one call; the local engine runs its branches in one batch from one reading of the prompt.
"""

from collections.abc import Mapping
from typing import ClassVar

from optillm_hooks.context import Context
from optillm_hooks.errors import RequestRejected
from optillm_hooks.llm import LLM
from optillm_hooks.local_provider.decoding import FIELD, by_engine
from optillm_hooks.local_provider.decoding.thinkdeeper import ThinkSettings
from optillm_hooks.registry import Cost, Params, decoder
from optillm_hooks.types import Chat, Sampling


class ThinkDeeperParams(ThinkSettings, Params):
    """The engine's own settings."""

    body_fields: ClassVar[Mapping[str, str]] = {
        "reasoning_effort": "reasoning_effort",
        "min_thinking_tokens": "min_thinking_tokens",
        "max_thinking_tokens": "max_thinking_tokens",
        "max_thoughts": "max_thoughts",
        "thought_switch_tokens": "thought_switch_tokens",
        "prefill": "prefill",
        "start_think_token": "start_think_token",
        "end_think_token": "end_think_token",
    }


@decoder("thinkdeeper", ThinkDeeperParams, cost=lambda _: Cost(calls=1, depth=1))
async def thinkdeeper(
    _chat: Chat, sampling: Sampling, llm: LLM, params: ThinkDeeperParams, _ctx: Context
) -> Sampling:
    """Return the sampling by which a local model decodes so.

    Raises:
        RequestRejected: the model is not a local one.
    """
    if not llm.supports(FIELD):
        raise RequestRejected(
            "thinkdeeper needs a local model (optillm-local/...): it replaces tokens"
        )
    return by_engine("thinkdeeper", params, sampling)
