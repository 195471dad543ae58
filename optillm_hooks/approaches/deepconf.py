"""DeepConf: samples that lose confidence are stopped, the rest vote with their confidence.

Source: Fu et al. 2025, "Deep Think with Confidence", arXiv:2508.15260, online form; what differs is
said in `local_provider.decoding.deepconf`.
Cost: one call; the local engine runs its branches in one batch from one reading of the prompt.
"""

from collections.abc import Mapping
from typing import ClassVar

from optillm_hooks.context import Context
from optillm_hooks.errors import RequestRejected
from optillm_hooks.llm import LLM
from optillm_hooks.local_provider.decoding import FIELD, by_engine
from optillm_hooks.local_provider.decoding.deepconf import DeepConfSettings
from optillm_hooks.registry import Cost, Params, decoder
from optillm_hooks.types import Chat, Sampling


class DeepConfParams(DeepConfSettings, Params):
    """The engine's own settings."""

    body_fields: ClassVar[Mapping[str, str]] = {
        "variant": "variant",
        "warmup_samples": "warmup_samples",
        "max_traces": "max_traces",
        "consensus_threshold": "consensus_threshold",
        "window_size": "window_size",
    }


@decoder("deepconf", DeepConfParams, cost=lambda _: Cost(calls=1, depth=1))
async def deepconf(
    _chat: Chat, sampling: Sampling, llm: LLM, params: DeepConfParams, _ctx: Context
) -> Sampling:
    """Return the sampling by which a local model decodes so.

    Raises:
        RequestRejected: the model is not a local one.
    """
    if not llm.supports(FIELD):
        raise RequestRejected(
            "deepconf needs a local model (optillm-local/...): it stops samples under way"
        )
    return by_engine("deepconf", params, sampling)
