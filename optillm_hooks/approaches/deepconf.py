"""DeepConf: low-confidence traces are stopped early; the others vote, weighted by confidence.

Good for: local models and hosts with logprobs.
Worth it when: the model's confidence tells right from wrong; otherwise a plain vote is as good.
Source: Fu et al. 2025, "Deep Think with Confidence", arXiv:2508.15260, sections 3.1 to 3.3: online,
and offline with as many traces as warm-up samples.
Deviations: the paper's window of 2,048 tokens shrinks to a quarter of the median warm-up trace,
with at least 16 tokens, so that short traces fill one. Answers that are equivalent (1/2 and 0.5)
are one answer. A consensus needs at least 5 votes, or as many as half of the warm-up. By default
nine tenths of the warm-up traces vote (`high`): with one tenth (`low`) the method loses to a plain
vote where confidence tells nothing. On a remote model confidence covers the 20 alternatives that
the provider returns, and at most as many streams are open concurrently as there were warm-up
samples.
Cost: one call on a local model, which decodes its traces in one batch after one prefill of the
prompt. On a remote model one call per trace, at most `max_traces`; the model must return
`top_logprobs`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from pydantic import BaseModel, Field

from optillm_hooks.context import Context
from optillm_hooks.decoding.deepconf import DeepConfSettings
from optillm_hooks.decoding.field import FIELD, Supports, settings_of, with_decoding
from optillm_hooks.decoding.remote.calls import check_top_logprobs
from optillm_hooks.decoding.remote.deepconf import deepconf_decode
from optillm_hooks.llm import LLM
from optillm_hooks.registry import Cost, Params, decoder
from optillm_hooks.types import Chat, Completion, Sampling


class StatsSwitch(BaseModel):
    """OptiLLM's field for statistics, which are always reported."""

    include_stats: bool = False


class DeepConfParams(DeepConfSettings, Params):
    """The method's own settings, and the maximum length of a trace."""

    max_tokens_per_trace: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="Maximum tokens of a trace; unset: the request's max_tokens.",
    )

    body_fields: ClassVar[Mapping[str, str]] = {
        "variant": "variant",
        "warmup_samples": "warmup_samples",
        "max_traces": "max_traces",
        "consensus_threshold": "consensus_threshold",
        "window_size": "window_size",
        "min_trace_length": "min_trace_length",
        "max_tokens_per_trace": "max_tokens_per_trace",
        "confidence_metric": "confidence_metric",
    }
    ignored = StatsSwitch
    samples_field: ClassVar[str] = "max_traces"
    width_fields: ClassVar[tuple[str, ...]] = ("warmup_samples",)

    def check_model(self, model: str, supports: Supports) -> None:
        check_top_logprobs("deepconf", model, supports, "confidence is computed from them")


def _cost(params: DeepConfParams) -> Cost:
    return Cost(calls=1, depth=1, remote_calls=params.max_traces)


@decoder("deepconf", DeepConfParams, cost=_cost)
async def deepconf(
    chat: Chat, sampling: Sampling, llm: LLM, params: DeepConfParams, ctx: Context
) -> Completion | Sampling:
    """Return sampling parameters that select the method on a local model, or a remote reply.

    Raises:
        RequestRejected: the model is remote and returns no log-probabilities.
    """
    params.check_model(llm.model, llm.facts.supports)
    settings = settings_of(DeepConfSettings, params)
    limit = params.max_tokens_per_trace
    if limit is not None and (sampling.max_tokens is None or limit < sampling.max_tokens):
        sampling = replace(sampling, max_tokens=limit)
    if llm.facts.supports(FIELD):
        return with_decoding("deepconf", settings, sampling)
    return await deepconf_decode(chat, sampling, llm, settings, ctx)
