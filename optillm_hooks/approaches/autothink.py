"""AutoThink: the thinking budget of a reply grows with the estimated difficulty of its question.

Good for: local models and hosts with logprobs.
Worth it when: a reasoning model spends many tokens on easy questions, and cost matters.
Source: Sharma 2025, "AutoThink: efficient inference for reasoning LLMs", SSRN 5253327.
Deviations: there a trained classifier chooses between two budgets; here the question's own words
are scored, and the share of the reply for thinking grows with the score. The score counts words of
tasks that take several steps, in eight languages, and notation, numbers and length in any. It tells
exercises from greetings and plain questions; a short riddle looks easy to it. `thinkdeeper`
enforces the budget. Steering vectors are made by the operator, and selected with their strengths by
the request instead of a classifier.
Cost: one call on a local model. On a remote model as `thinkdeeper`, without steering vectors.
"""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import BaseModel, field_validator

from optillm_hooks.context import Context
from optillm_hooks.decoding.autothink import AutoThinkSettings, complexity, thinking_settings
from optillm_hooks.decoding.field import FIELD, Supports, settings_of, with_decoding
from optillm_hooks.decoding.remote.calls import check_continues, reply_limit_or_default
from optillm_hooks.decoding.remote.thinking import think
from optillm_hooks.errors import RequestRejected
from optillm_hooks.llm import LLM
from optillm_hooks.prompts import question
from optillm_hooks.registry import Cost, Params, decoder
from optillm_hooks.types import Chat, Completion, Sampling


class NoClientVectors(BaseModel):
    """OptiLLM's fields for steering vectors of the client's own, which must be null."""

    steering_dataset: None = None
    target_layer: None = None

    @field_validator("steering_dataset", "target_layer", mode="before")
    @classmethod
    def _must_be_null(cls, value: object) -> None:
        if value is not None:
            raise ValueError(
                "steering vectors are configured by the operator, in the model's settings: select "
                "them by name, each with its strength, in pattern_strengths"
            )


class AutoThinkParams(AutoThinkSettings, Params):
    """The method's own settings."""

    body_fields: ClassVar[Mapping[str, str]] = {"pattern_strengths": "pattern_strengths"}
    ignored = NoClientVectors

    def check_model(self, model: str, supports: Supports) -> None:
        check_continues("autothink", model, supports, "it writes into the reply")
        if self.pattern_strengths and not supports(FIELD):
            raise RequestRejected(
                f"autothink: pattern_strengths needs a local model (optillm-local/...), which "
                f"{model!r} is not: steering changes the activations between a model's layers"
            )


@decoder("autothink", AutoThinkParams, cost=lambda _: Cost(calls=1, depth=1, remote_calls=2))
async def autothink(
    chat: Chat, sampling: Sampling, llm: LLM, params: AutoThinkParams, ctx: Context
) -> Completion | Sampling:
    """Return sampling parameters that select the method on a local model, or a remote reply.

    Raises:
        RequestRejected: the model is remote and cannot continue a prefix, or cannot be steered.
    """
    params.check_model(llm.model, llm.facts.supports)
    settings = settings_of(AutoThinkSettings, params)
    if llm.facts.supports(FIELD):
        return with_decoding("autothink", settings, sampling)
    asked = question(chat)
    budgets = thinking_settings(asked, settings, reply_limit_or_default(sampling, ctx))
    reply, facts = await think(chat, sampling, llm, budgets, ctx)
    ctx.trace.note("autothink", complexity=round(complexity(asked), 3), **facts)
    return reply
