"""Entropy decoding: sampling parameters that follow the model's uncertainty; no known gain.

Good for: local models and hosts with logprobs.
Worth it when: variety matters and accuracy does not: 37 % of our problems right, greedy decoding 58
%.
Source: the sampler of entropix (xjdr, 2024; no paper), in its form on logits alone: entropy and
varentropy of the next token's distribution choose among five ways to sample it.
Deviations: statistics of attention weights are not used, because kernels with a KV cache do not
return them; top-p keeps the likeliest tokens; no fixed token is inserted when the model is
uncertain; and where the distribution is ordinary the request's own parameters apply, with a lower
`min_p` if it is flat.
There is no public evaluation of it. In our own measurement (docs/performance.md) it was right in 32
to 37 % of questions where greedy decoding was right in 57 to 58 %: use it to experiment.
Cost: one call on a local model. Remote models cannot be used: they return the probabilities of at
most 20 tokens, and entropy needs all of them.
"""

from optillm_hooks.context import Context
from optillm_hooks.decoding.entropy_decoding import EntropySettings
from optillm_hooks.decoding.field import Supports, with_decoding
from optillm_hooks.decoding.remote.calls import check_local
from optillm_hooks.llm import LLM
from optillm_hooks.registry import Cost, Params, decoder
from optillm_hooks.types import Chat, Sampling


class EntropyDecodingParams(EntropySettings, Params):
    """The method's own settings."""

    def check_model(self, model: str, supports: Supports) -> None:
        reason = (
            "entropy and varentropy need the whole distribution; remote models return 20 tokens"
        )
        check_local("entropy_decoding", model, supports, reason)


@decoder("entropy_decoding", EntropyDecodingParams, cost=lambda _: Cost(calls=1, depth=1))
async def entropy_decoding(
    _chat: Chat, sampling: Sampling, llm: LLM, params: EntropyDecodingParams, _ctx: Context
) -> Sampling:
    """Return sampling parameters that select the method on a local model.

    Raises:
        RequestRejected: the model is not a local one.
    """
    params.check_model(llm.model, llm.facts.supports)
    return with_decoding("entropy_decoding", params, sampling)
