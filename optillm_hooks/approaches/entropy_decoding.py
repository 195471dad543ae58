"""Entropy decoding: each token is drawn by a law that follows the model's uncertainty.

Source: the sampler of entropix (xjdr, 2024), on logits alone; what differs is said in
`local_provider.decoding.entropy_decoding`.
Cost: one call; the local engine runs its branches in one batch from one reading of the prompt.
"""

from optillm_hooks.context import Context
from optillm_hooks.errors import RequestRejected
from optillm_hooks.llm import LLM
from optillm_hooks.local_provider.decoding import FIELD, by_engine
from optillm_hooks.local_provider.decoding.entropy_decoding import EntropySettings
from optillm_hooks.registry import Cost, Params, decoder
from optillm_hooks.types import Chat, Sampling


class EntropyDecodingParams(EntropySettings, Params):
    """The engine's own settings."""


@decoder("entropy_decoding", EntropyDecodingParams, cost=lambda _: Cost(calls=1, depth=1))
async def entropy_decoding(
    _chat: Chat, sampling: Sampling, llm: LLM, params: EntropyDecodingParams, _ctx: Context
) -> Sampling:
    """Return the sampling by which a local model decodes so.

    Raises:
        RequestRejected: the model is not a local one.
    """
    if not llm.supports(FIELD):
        raise RequestRejected(
            "entropy_decoding needs a local model (optillm-local/...): it sees whole distributions"
        )
    return by_engine("entropy_decoding", params, sampling)
