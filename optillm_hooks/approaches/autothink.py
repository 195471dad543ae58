"""AutoThink: how long a reply thinks depends on how hard its question looks.

Source: Sharma 2025, "AutoThink: efficient inference for reasoning LLMs", SSRN 5253327; what differs
is said in `local_provider.decoding.autothink`.
Cost: one call; the local engine runs its branches in one batch from one reading of the prompt.
"""

from optillm_hooks.context import Context
from optillm_hooks.errors import RequestRejected
from optillm_hooks.llm import LLM
from optillm_hooks.local_provider.decoding import FIELD, by_engine
from optillm_hooks.local_provider.decoding.autothink import AutoThinkSettings
from optillm_hooks.registry import Cost, Params, decoder
from optillm_hooks.types import Chat, Sampling


class AutoThinkParams(AutoThinkSettings, Params):
    """The engine's own settings."""


@decoder("autothink", AutoThinkParams, cost=lambda _: Cost(calls=1, depth=1))
async def autothink(
    _chat: Chat, sampling: Sampling, llm: LLM, params: AutoThinkParams, _ctx: Context
) -> Sampling:
    """Return the sampling by which a local model decodes so.

    Raises:
        RequestRejected: the model is not a local one.
    """
    if not llm.supports(FIELD):
        raise RequestRejected(
            "autothink needs a local model (optillm-local/...): it replaces tokens"
        )
    return by_engine("autothink", params, sampling)
