"""None: a plain call, as a baseline and to switch off an alias's approach.

Good for: a single call.
Worth it when: a baseline is needed, or an alias's approach is to be switched off.
Source: the base model, unchanged.
Cost: one call. Where possible, the gateway forwards the request unchanged instead.
"""

from optillm_hooks.context import Context
from optillm_hooks.llm import LLM, FinalCall
from optillm_hooks.registry import Cost, NoParams, approach
from optillm_hooks.types import Chat


@approach("none", NoParams, cost=lambda _: Cost(calls=1, depth=1))
async def none(chat: Chat, _llm: LLM, _params: NoParams, _ctx: Context) -> FinalCall:
    """Return the client's own call."""
    return FinalCall(chat)
