"""An alias that answers a call of another plan, by one call of its base model.

A router's fallback may lead from a model that a plan calls to an alias. If the alias ran its own
plan, each call of the request could become many, past all of its limits.
"""

import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Self

from litellm import Router
from litellm.proxy._types import UserAPIKeyAuth
from litellm.types.utils import ModelResponse, ModelResponseStream

from optillm_hooks.errors import RequestRejected
from optillm_hooks.gateway.admission import admit_base
from optillm_hooks.gateway.caller import metadata_of, read_caller
from optillm_hooks.gateway.convert import read_sampling, write_chunk, write_response, write_usage
from optillm_hooks.gateway.failures import as_sample_errors
from optillm_hooks.gateway.inner_call import InnerCall
from optillm_hooks.gateway.model_facts import cached_model_facts
from optillm_hooks.gateway.operator_settings import read_settings
from optillm_hooks.gateway.router_llm import RouterLLM
from optillm_hooks.gateway.selection import select_deployment
from optillm_hooks.messages import read_chat
from optillm_hooks.trace import Trace
from optillm_hooks.types import Chat, Delta, Sampling, Usage


@dataclass(frozen=True, slots=True)
class PlainBase:
    """The base model of an alias, and the call of a plan that it answers."""

    alias: str
    llm: RouterLLM
    chat: Chat
    sampling: Sampling
    call: InnerCall

    @classmethod
    async def read(cls, call: Mapping[str, Any], inner: InnerCall, router: Router | None) -> Self:
        """Return the base model for a call of LiteLLM's to our provider, after all checks.

        Raises:
            RequestRejected, SampleError: the alias cannot stand in; see `admission.admit_base`.
        """
        params = call.get("litellm_params") or {}
        metadata, model, optional = metadata_of(params), str(call["model"]), call["optional_params"]
        group, found = str(metadata.get("model_group") or model), metadata.get("user_api_key_auth")
        key = found if isinstance(found, UserAPIKeyAuth) else None
        try:
            selection = select_deployment(model, group, params, read_settings(), None)
            with as_sample_errors():
                base = await admit_base(selection, router, key, inner)
        except RequestRejected:
            inner.refused = True
            raise
        user = optional.get("user")
        caller = read_caller(
            params, user if isinstance(user, str) else None, {}, needs_price=inner.needs_price
        )
        llm = RouterLLM(base, router, caller, cached_model_facts(router, key), Trace())
        return cls(group, llm, read_chat(call["messages"]), read_sampling(optional), inner)

    async def reply(self, response: ModelResponse, n: int) -> ModelResponse:
        """Return LiteLLM's `response`, filled with the model's reply of up to `n` choices."""
        completions = await self.llm.complete_n(
            self.chat, self.sampling, min(n, self.llm.facts.max_n)
        )
        usage = completions[0].usage
        self._answered(usage)
        made = write_response(response, completions, usage, self.alias)
        made._hidden_params["response_cost"] = 0.0  # LiteLLM bills the call of the base
        return made

    async def chunks(self) -> AsyncGenerator[ModelResponseStream, None]:
        """Yield the chunks of the model's reply, with the usage before the finish reason."""
        end, usage, begun = Delta(finish_reason="stop"), Usage(), False
        stream_id = f"chatcmpl-{uuid.uuid4().hex}"

        def chunk(piece: Delta) -> ModelResponseStream:
            role = not begun
            return write_chunk({0: piece}, stream_id=stream_id, model=self.alias, role=role)

        async with aclosing(self.llm.stream(self.chat, self.sampling)) as pieces:
            async for delta in pieces:
                usage = delta.usage or usage
                end = replace(end, finish_reason=delta.finish_reason or end.finish_reason)
                piece = replace(delta, finish_reason=None, usage=None)
                if piece != Delta():
                    yield chunk(piece)
                    begun = True
        self._answered(usage)
        last = chunk(Delta())
        last.usage = write_usage(usage)
        last.provider_specific_fields = {}  # or LiteLLM may drop a chunk without text
        yield last
        yield chunk(end)

    def _answered(self, usage: Usage) -> None:
        self.call.answered_by_alias = True
        self.call.cost_usd += usage.cost_usd
