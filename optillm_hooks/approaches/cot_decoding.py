"""CoT decoding: k greedy branches, one per likely first token; the surest answer wins.

Source: Wang and Zhou 2024, "Chain-of-Thought Reasoning Without Prompting", arXiv:2402.10200; what
differs is said in `local_provider.decoding.cot_decoding`.
Cost: one call; the local engine runs its branches in one batch from one reading of the prompt.
"""

from collections.abc import Mapping
from typing import ClassVar

from optillm_hooks.context import Context
from optillm_hooks.errors import RequestRejected
from optillm_hooks.llm import LLM
from optillm_hooks.local_provider.decoding import FIELD, by_engine
from optillm_hooks.local_provider.decoding.cot_decoding import CotSettings
from optillm_hooks.registry import Cost, Params, decoder
from optillm_hooks.types import Chat, Sampling


class CotDecodingParams(CotSettings, Params):
    """The engine's own settings."""

    body_fields: ClassVar[Mapping[str, str]] = {"k": "k", "aggregate_paths": "aggregate_paths"}


@decoder("cot_decoding", CotDecodingParams, cost=lambda _: Cost(calls=1, depth=1))
async def cot_decoding(
    _chat: Chat, sampling: Sampling, llm: LLM, params: CotDecodingParams, _ctx: Context
) -> Sampling:
    """Return the sampling by which a local model decodes so.

    Raises:
        RequestRejected: the model is not a local one.
    """
    if not llm.supports(FIELD):
        raise RequestRejected(
            "cot_decoding needs a local model (optillm-local/...): it chooses first tokens"
        )
    return by_engine("cot_decoding", params, sampling)
