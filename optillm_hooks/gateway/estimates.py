"""What a request is estimated at before its first call: calls, tokens and dollars.

The dollars are those of LiteLLM's prices. Replies are not known yet, so there is a low estimate,
with replies of usual length, and a high one, with the longest that the models write.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import litellm

from optillm_hooks.gateway.applied_limits import applied_limits
from optillm_hooks.gateway.prepared import Prepared
from optillm_hooks.llm import Price
from optillm_hooks.pipeline.events import Outcome, Report
from optillm_hooks.types import Answer, Json, Usage

_PROMPT_FIELDS: Final = ("system", "instructions", "messages", "input", "prompt", "tools")
_NO_TEXT: Final = frozenset(
    {"type", "role", "id", "data", "file_data", "file_id", "url", "image_url"}
)
"""Entries that are names, or media, whose characters are no tokens."""

_USUAL_REPLY: Final = 400
"""Tokens; the default of `optillm-hooks estimate` too."""

_LONGEST_REPLY: Final = 16_384
"""Tokens of a reply of a model whose maximum is not known."""

_COUNTED_CHARACTERS: Final = 20_000
"""The part of a long prompt that is counted; more would hold up the event loop."""


@dataclass(frozen=True, slots=True)
class Range:
    """A low and a high estimate."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Estimate:
    calls: int
    depth: int
    tokens: Range
    cost_usd: Range | None
    """None if the price of a model is not known."""


def count_prompt(data: Mapping[str, Any]) -> int:
    """Return about how many tokens the text of a request has, by LiteLLM's default tokenizer."""
    text = "\n".join(_texts([data.get(name) for name in _PROMPT_FIELDS]))
    if not text:
        return 0
    part = text[:_COUNTED_CHARACTERS]
    tokens: int = litellm.token_counter(model="", text=part)
    return tokens * len(text) // len(part)


def _texts(value: object) -> Iterator[str]:
    found = [value]
    while found:
        at = found.pop()
        if isinstance(at, str):
            yield at
        elif isinstance(at, Mapping):
            found += [item for name, item in at.items() if name not in _NO_TEXT]
        elif isinstance(at, list):
            found += at


def estimate(prepared: Prepared) -> Estimate:
    """Return the estimate of an admitted request; each call at the price of its dearest model."""
    calls, prompt = prepared.estimated_calls, prepared.prompt_tokens
    facts = [prepared.facts_of(model) for model in prepared.selection.models]
    longest = max(each.max_output_tokens or _LONGEST_REPLY for each in facts)
    usual = min(_USUAL_REPLY, longest)
    limits = prepared.limits
    prices = [each.price for each in facts]
    low, high = (dollars(calls, prices, prompt, reply) for reply in (usual, longest))
    cost = None
    if low is not None and high is not None:
        cost = _within(low, high, limits.max_cost_usd)
    return Estimate(
        calls=calls,
        depth=prepared.plan.depth(decoded_remotely=prepared.is_decoded_remotely),
        tokens=_within(
            calls * (prompt + usual), calls * (prompt + longest), limits.max_tokens_total
        ),
        cost_usd=cost,
    )


def dollars(
    calls: int, prices: Sequence[Price | None], prompt_tokens: int, reply_tokens: int
) -> float | None:
    """Return what `calls` cost at the dearest of `prices`, for prompts and replies of this length.

    None if a price is not known, or there are none.
    """
    known = [price for price in prices if price is not None]
    if not known or len(known) < len(prices):
        return None
    return calls * max(
        price.prompt * prompt_tokens + price.completion * reply_tokens for price in known
    )


def _within(low: float, high: float, limit: float | None) -> Range:
    return Range(low, high) if limit is None else Range(min(low, limit), min(high, limit))


def dry_outcome(prepared: Prepared) -> Outcome:
    """Return the outcome of a dry run: the plan, in words as the answer and in the report."""
    found = estimate(prepared)
    usd = found.cost_usd
    price = "unknown cost" if usd is None else f"${usd.low:.4f} to ${usd.high:.4f}"
    text = (
        f"Dry run: {prepared.plan.text} on {prepared.base} would make about {found.calls} calls, "
        f"at {price}. No model was called."
    )
    report = Report(
        approach=prepared.plan.text,
        base=prepared.base,
        calls=0,
        calls_saved=0,
        depth=0,
        usage=Usage(),
        seconds=0.0,
        stopped_by=None,
        degraded=(),
        choices=(),
        notes=(),
        trace=(),
        plan=_plan_object(prepared, found),
    )
    return Outcome((Answer(text),), report)


def _plan_object(prepared: Prepared, found: Estimate) -> dict[str, Json]:
    return {
        "approach": prepared.plan.text,
        "base_model": prepared.base,
        "models": [*prepared.selection.models],
        "estimated_calls": found.calls,
        "depth": found.depth,
        "prompt_tokens": prepared.prompt_tokens,
        "tokens": _rounded(found.tokens, 0),
        "cost_usd": None if found.cost_usd is None else _rounded(found.cost_usd, 8),
        "limits": {
            name: {"value": limit.value, "from": limit.source}
            for name, limit in applied_limits(prepared).items()
        },
    }


def _rounded(found: Range, digits: int) -> dict[str, Json]:
    low, high = round(found.low, digits), round(found.high, digits)
    return {"low": low, "high": high} if digits else {"low": int(low), "high": int(high)}
