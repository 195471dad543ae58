"""ThinkDeeper: a minimum and a maximum of thinking before the answer (budget forcing).

Good for: local models and hosts with logprobs.
Worth it when: a reasoning model stops thinking too early, or does not stop.
Source: Muennighoff et al. 2025, "s1: Simple test-time scaling", arXiv:2501.19393, section 3.1: an
end of thinking that comes too early is replaced by a word that makes the model continue, and at the
maximum the end of thinking is written for the model.
Deviation: thoughts are limited as well, by counting the words that begin one, where Wang et al.
2025, arXiv:2501.18585, make these words less likely.
Cost: one call on a local model. On a remote model 2 sequential calls, and one more each time that
the model is made to continue (at most 8 times); the model must continue a prefix. Text written for
the model is then part of the prompt and does not count against the budget.
"""

from collections.abc import Mapping
from typing import ClassVar

from optillm_hooks.context import Context
from optillm_hooks.decoding.field import FIELD, Supports, settings_of, with_decoding
from optillm_hooks.decoding.remote.calls import check_continues
from optillm_hooks.decoding.remote.thinking import think
from optillm_hooks.decoding.thinkdeeper import ThinkSettings
from optillm_hooks.llm import LLM
from optillm_hooks.registry import Cost, Params, decoder
from optillm_hooks.types import Chat, Completion, Sampling


class ThinkDeeperParams(ThinkSettings, Params):
    """The method's own settings."""

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


@decoder("thinkdeeper", ThinkDeeperParams, cost=lambda _: Cost(calls=1, depth=1, remote_calls=2))
async def thinkdeeper(
    chat: Chat, sampling: Sampling, llm: LLM, params: ThinkDeeperParams, ctx: Context
) -> Completion | Sampling:
    """Return sampling parameters that select the method on a local model, or a remote reply.

    Raises:
        RequestRejected: the model is remote and cannot continue a prefix.
    """
    params.check_model(llm.model, llm.facts.supports)
    settings = settings_of(ThinkSettings, params)
    if llm.facts.supports(FIELD):
        return with_decoding("thinkdeeper", settings, sampling)
    reply, facts = await think(chat, sampling, llm, settings, ctx)
    ctx.trace.note("thinkdeeper", **facts)
    return reply
