"""ThinkDeeper: at least and at most so many tokens of thinking before the answer.

Source: Muennighoff et al. 2025, "s1: Simple test-time scaling", arXiv:2501.19393 (budget forcing);
what differs is said in `decoding.thinkdeeper` and `decoding.remote.thinking`.
Cost: one call of a local model. Of a model elsewhere 2 calls, one after another, and one more each
time (at most 8) that the model is made to think on; it must continue a prefix.
"""

from collections.abc import Mapping
from typing import ClassVar

from optillm_hooks.context import Context
from optillm_hooks.decoding.field import FIELD, Supports, by_engine, settings_of
from optillm_hooks.decoding.remote.calls import check_continues
from optillm_hooks.decoding.remote.thinking import think
from optillm_hooks.decoding.thinkdeeper import ThinkSettings
from optillm_hooks.llm import LLM
from optillm_hooks.registry import Cost, Params, decoder
from optillm_hooks.types import Chat, Completion, Sampling


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

    def check_model(self, model: str, supports: Supports) -> None:
        check_continues("thinkdeeper", model, supports, "it writes into the reply")


@decoder("thinkdeeper", ThinkDeeperParams, cost=lambda _: Cost(calls=1, depth=1))
async def thinkdeeper(
    chat: Chat, sampling: Sampling, llm: LLM, params: ThinkDeeperParams, ctx: Context
) -> Completion | Sampling:
    """Return the sampling by which a local model decodes so, or another model's decoded reply.

    Raises:
        RequestRejected: the model is neither.
    """
    params.check_model(llm.model, llm.facts.supports)
    settings = settings_of(ThinkSettings, params)
    if llm.facts.supports(FIELD):
        return by_engine("thinkdeeper", settings, sampling)
    reply, facts = await think(chat, sampling, llm, settings, ctx)
    ctx.trace.note("thinkdeeper", **facts)
    return reply
