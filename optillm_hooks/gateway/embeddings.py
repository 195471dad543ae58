"""Embeddings by a model group of LiteLLM's router, on a caller's account."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from litellm import Router

from optillm_hooks.errors import SampleError
from optillm_hooks.gateway.budgets import paying
from optillm_hooks.gateway.caller import Caller, span_metadata
from optillm_hooks.gateway.failures import as_sample_errors, budgets_as_sample_errors
from optillm_hooks.services import ServiceFailed
from optillm_hooks.settings import MemorySettings
from optillm_hooks.types import Usage

_BATCH: Final = 64
"""Texts of one call. Providers take at least so many."""


def router_embed(
    settings: MemorySettings, router: Router | None, caller: Caller
) -> "RouterEmbed | None":
    """Return the operator's embedding model, or None if none is set."""
    if settings.embedding_model is None or router is None:
        return None
    return RouterEmbed(router, settings.embedding_model, caller)


@dataclass(frozen=True, slots=True)
class RouterEmbed:
    """A model group of embeddings: an `Embed`."""

    router: Any
    model: str
    caller: Caller

    async def __call__(self, texts: Sequence[str], /) -> tuple[Sequence[Sequence[float]], Usage]:
        vectors = list[Sequence[float]]()
        usage = Usage()
        for start in range(0, len(texts), _BATCH):
            batch = [text or " " for text in texts[start : start + _BATCH]]
            found, used = await self._batch(batch)
            vectors += found
            usage += used
        return vectors, usage

    async def _batch(self, texts: list[str]) -> tuple[list[Sequence[float]], Usage]:
        caller = self.caller
        account = (caller.key, self.router, caller.account, caller.reservation)
        try:
            with as_sample_errors(), budgets_as_sample_errors():
                async with paying(self.model, *account, lambda: 0.0) as payment:
                    response = await self.router.aembedding(
                        model=self.model,
                        input=texts,
                        metadata={**caller.metadata, **span_metadata()},
                        **caller.logged,
                    )
                    usage = _usage(response)
                    payment.settle(usage.cost_usd)
        except SampleError as exc:
            raise ServiceFailed(f"the embeddings failed with status {exc.status}") from exc
        vectors = [_vector(each) for each in response.data]
        if len(vectors) != len(texts) or not all(vectors):
            raise ServiceFailed("the embeddings do not match the texts")
        return vectors, usage


def _usage(response: Any) -> Usage:
    hidden = getattr(response, "_hidden_params", None) or {}
    told = getattr(response, "usage", None)
    return Usage(
        calls=1,
        prompt_tokens=int(getattr(told, "prompt_tokens", 0) or 0),
        cost_usd=float(hidden.get("response_cost") or 0.0),
    )


def _vector(item: Any) -> Sequence[float]:
    found = item.get("embedding") if isinstance(item, dict) else getattr(item, "embedding", None)
    return [float(x) for x in found] if isinstance(found, list) else []
