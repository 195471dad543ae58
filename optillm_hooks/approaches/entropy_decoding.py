"""Entropy decoding: each token is drawn by a law that follows the model's uncertainty.

Source: the sampler of entropix (xjdr, 2024), on logits alone; what differs is said in
`decoding.entropy_decoding`.
Cost: one call, of a local model: entropy and varentropy are those of the whole distribution, of
which other providers show 20 tokens.
"""

from optillm_hooks.context import Context
from optillm_hooks.decoding.entropy_decoding import EntropySettings
from optillm_hooks.decoding.field import Supports, by_engine
from optillm_hooks.decoding.remote.calls import check_local
from optillm_hooks.llm import LLM
from optillm_hooks.registry import Cost, Params, decoder
from optillm_hooks.types import Chat, Sampling


class EntropyDecodingParams(EntropySettings, Params):
    """The engine's own settings."""

    def check_model(self, model: str, supports: Supports) -> None:
        reason = (
            "entropy and varentropy need the whole distribution; other providers show 20 tokens"
        )
        check_local("entropy_decoding", model, supports, reason)


@decoder("entropy_decoding", EntropyDecodingParams, cost=lambda _: Cost(calls=1, depth=1))
async def entropy_decoding(
    _chat: Chat, sampling: Sampling, llm: LLM, params: EntropyDecodingParams, _ctx: Context
) -> Sampling:
    """Return the sampling by which a local model decodes so.

    Raises:
        RequestRejected: the model is not a local one.
    """
    params.check_model(llm.model, llm.facts.supports)
    return by_engine("entropy_decoding", params, sampling)
