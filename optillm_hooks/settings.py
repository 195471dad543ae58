"""What the operator sets, in YAML. Frozen models; an unknown key is an error that names it."""

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from optillm_hooks.budget import Limits
from optillm_hooks.code_execution.runner import RunnerName
from optillm_hooks.registry import Approach


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class LimitSettings(_Settings):
    """What one request may spend."""

    deadline_s: float | None = Field(default=None, gt=0, description="Seconds until the answer.")
    max_calls: int | None = Field(default=None, ge=1, description="Model calls.")
    max_tokens_total: int | None = Field(
        default=None, ge=1, description="Prompt and completion tokens of all calls."
    )
    max_cost_usd: float | None = Field(default=None, gt=0, description="US dollars of all calls.")
    max_parallel: int | None = Field(default=None, ge=1, description="Calls under way at once.")

    def limits(self) -> Limits:
        return Limits(
            deadline_s=self.deadline_s,
            max_calls=self.max_calls,
            max_tokens_total=self.max_tokens_total,
            max_cost_usd=self.max_cost_usd,
            max_parallel=self.max_parallel,
        )


class RunSettings(LimitSettings):
    """How requests are run, besides their approach."""

    on_error: Literal["error", "plain"] = Field(
        default="error",
        description="What follows when an approach fails: its error, or a plain call.",
    )
    progress: bool = Field(
        default=False, description="Tell streaming clients what is being done, as reasoning deltas."
    )
    # YAML reads a bare off as false.
    code_runner: Annotated[RunnerName, BeforeValidator(lambda v: v or "off")] = Field(
        default="off",
        description="Where programs that a model wrote are run, for approaches that test them.",
    )


class AliasSettings(RunSettings):
    """`model_info.optillm` of a deployment that is an alias."""

    locked: bool = Field(
        default=False, description="Whether body field and tag may not replace the approach."
    )
    inherit_access: bool = Field(
        default=False,
        description="Whether a key that may call the alias may so reach its base model.",
    )


class DeploymentSettings(_Settings):
    """`model_info.optillm` of an ordinary deployment: what LiteLLM does not know of it."""

    continues_prefix: bool = Field(
        default=False,
        description="Whether it goes on with an assistant's message that ends the conversation "
        "(continue_final_message, as vLLM and SGLang do) and returns top_logprobs.",
    )


NamedApproaches = Literal["all", "safe", "none"] | tuple[str, ...]
"""Which approaches a form may name; "safe" are those that only ask models."""


class Forms(_Settings):
    """Which approaches each form of choosing one may name."""

    body: NamedApproaches = "all"
    tag: NamedApproaches = "safe"
    prefix: NamedApproaches = "all"


class PlanCalls(_Settings):
    """Most model calls that a plan may be estimated at, by who has spelt it."""

    alias: int = Field(default=256, ge=1, description="In an alias, or the default approach.")
    client: int = Field(default=64, ge=1, description="In a request: prefix, tag or body field.")


class Settings(RunSettings):
    """`litellm_settings.optillm_settings`: what holds for requests that name no alias."""

    default_approach: str | None = Field(
        default=None, description="The approach of requests that choose none; unset, none at all."
    )
    forms: Forms = Field(
        default_factory=Forms, description="Which approaches each form of choosing may name."
    )
    plan_calls: PlanCalls = Field(
        default_factory=PlanCalls, description="Most model calls that a plan may be estimated at."
    )
    max_choices: int = Field(default=64, ge=1, description="Most choices of one request (n).")


def forbidden(approaches: Iterable[Approach], allowed: NamedApproaches) -> list[str]:
    """Return the names of those of `approaches` that a form with `allowed` may not name."""
    if allowed == "all":
        return []
    return [
        approach.name
        for approach in approaches
        if not (
            not approach.needs
            if allowed == "safe"
            else isinstance(allowed, tuple) and approach.name in allowed
        )
    ]
