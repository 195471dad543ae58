"""Which sampling fields a deployment takes together: by LiteLLM's transformation of these very
fields, and by what providers are known to refuse although LiteLLM sends it."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import litellm

from optillm_hooks.gateway.convert import write_sampling
from optillm_hooks.types import Sampling

T = TypeVar("T")

_FIELDS = (
    "temperature", "top_p", "max_tokens", "reasoning_effort", "thinking", "tool_choice",
)  # fmt: skip
"""The sampling fields that rules are about."""

_REASONING = ("reasoning_effort", "thinking")

_OPTIONS = ("drop_params", "additional_drop_params", "allowed_openai_params")
"""LiteLLM's options of a deployment that decide what becomes of a field."""

_LEAST_TOP_P = 0.95
"""The minimum `top_p` of Claude while it thinks."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """What is known about one deployment of a group."""

    name: str
    """The name of its model, or the one that the operator says it has."""

    model: str
    """The name that its provider gets."""

    provider: str | None
    base_model: str | None
    params: Mapping[str, Any]
    """The operator's `litellm_params`."""

    supported: frozenset[str]
    info: Mapping[str, Any]
    """The entry of LiteLLM's model map, with the operator's settings in place of the map's."""

    @property
    def is_claude(self) -> bool:
        return "claude" in self.name.lower()

    def written(self, fields: Mapping[str, Any], **options: bool) -> dict[str, Any]:
        """Return what LiteLLM makes of request fields for this provider.

        `options`: the request's own, in place of the deployment's.

        Raises:
            litellm.BadRequestError: it refuses them, as it would refuse a call with them.
        """
        made: dict[str, Any] = litellm.get_optional_params(
            model=self.model,
            custom_llm_provider=self.provider,
            base_model=self.base_model,
            **{name: self.params[name] for name in _OPTIONS if self.params.get(name) is not None}
            | options,
            **copy.deepcopy(dict(fields)),  # it may change them
        )
        return made


def all_take(deployments: Sequence[Deployment]) -> Callable[[Sampling], bool]:
    """Return a function that says whether no deployment is known to refuse a call's fields."""
    return lambda sampling: all(_takes(each, sampling) for each in deployments)


def max_thinking(deployments: Sequence[Deployment]) -> Callable[[Sampling], int]:
    """Return a function of the most tokens of thinking that a call asks a deployment for."""
    return lambda sampling: max((_thinking(each, sampling) for each in deployments), default=0)


def check_client(
    deployments: Sequence[Deployment], client: Sampling, *, drop_params: bool = False
) -> None:
    """Refuse a client's fields that every deployment is known to refuse.

    The plain model would refuse them before anything is paid; an approach may first make calls
    that do not have them all. `drop_params`: whether the request tells LiteLLM to leave out what is
    refused.

    Raises:
        litellm.BadRequestError: LiteLLM's own refusal, or in the words of the model's provider.
    """
    refusals = [
        refusal
        for each in deployments
        if (refusal := _refusal(each, client, drop_params)) is not None
    ]
    if refusals and len(refusals) == len(deployments):
        raise refusals[0]


def _refusal(
    deployment: Deployment, client: Sampling, drop_params: bool
) -> litellm.BadRequestError | None:
    fields = {**_of_deployment(deployment), **write_sampling(client)}
    try:
        made = deployment.written(fields, **({"drop_params": True} if drop_params else {}))
    except litellm.BadRequestError as exc:
        return exc
    except Exception:  # as in `_takes`
        return None
    if deployment.is_claude and _thinks({**fields, **made}):
        wrong = next(_wrong_with_thinking(made, client), None)
        if wrong is not None:
            model, provider = deployment.model, deployment.provider or ""
            return litellm.BadRequestError(wrong, model=model, llm_provider=provider)
    return None


def _wrong_with_thinking(made: Mapping[str, Any], client: Sampling) -> Iterator[str]:
    """Yield what Claude refuses of a client's fields while it thinks."""
    if made.get("temperature") not in (None, 1):
        yield "`temperature` may only be set to 1 when thinking is enabled"
    if (made.get("top_p") or made.get("topP") or 1) < _LEAST_TOP_P:
        yield f"`top_p` must be at least {_LEAST_TOP_P} or unset when thinking is enabled"
    choice = made.get("tool_choice")
    if isinstance(choice, dict) and choice.get("type") in ("any", "tool"):
        yield "thinking may not be enabled when `tool_choice` forces tool use"
    interleaved = "interleaved-thinking" in repr(client.fields.get("extra_headers"))
    limit, budget = client.max_tokens, _budget(made)
    if limit is not None and limit <= budget and not interleaved:
        yield f"`max_tokens` must be greater than `thinking.budget_tokens`, which is {budget}"


def by_sampling(rule: Callable[[Sampling], T]) -> Callable[[Sampling], T]:
    """Return `rule`, asked once for calls that do not differ in the fields that rules are about."""
    known: dict[str, T] = {}

    def remembered(sampling: Sampling) -> T:
        given = write_sampling(sampling)
        key = repr([given.get(name) for name in _FIELDS])
        if key not in known:
            known[key] = rule(sampling)
        return known[key]

    return remembered


def _takes(deployment: Deployment, sampling: Sampling) -> bool:
    fields = _sent(deployment, sampling)
    try:
        made = deployment.written(fields)
    except litellm.BadRequestError:
        return False
    except Exception:  # it needs more than the fields, such as credentials
        made = fields
    temperature, top_p = made.get("temperature"), made.get("top_p", made.get("topP"))
    if deployment.info.get("supports_sampling_params") is False:
        return temperature in (None, 1) and top_p is None
    if deployment.is_claude:
        return _claude_takes(temperature, top_p, made, thinks=_thinks({**fields, **made}))
    return True


def _claude_takes(
    temperature: float | None, top_p: float | None, made: Mapping[str, Any], *, thinks: bool
) -> bool:
    if temperature is not None and (temperature > 1 or top_p is not None):
        return False
    if not thinks:
        return True
    limit = made.get("max_tokens", made.get("maxTokens"))
    return (
        temperature in (None, 1)
        and (top_p is None or top_p >= _LEAST_TOP_P)
        and (limit is None or limit > _budget(made))
    )


def _thinking(deployment: Deployment, sampling: Sampling) -> int:
    fields = _sent(deployment, sampling)
    asked = {name: value for name, value in fields.items() if name in _REASONING}
    if not asked:
        return 0
    try:
        return _budget(deployment.written(asked))
    except Exception:  # as in `_takes`
        return 0


def _sent(deployment: Deployment, sampling: Sampling) -> dict[str, Any]:
    """Return the sampling fields of a call: the request's, and the deployment's for the others."""
    given = write_sampling(sampling)
    return {**_of_deployment(deployment), **{n: given[n] for n in _FIELDS if n in given}}


def _of_deployment(deployment: Deployment) -> dict[str, Any]:
    """Return the sampling fields that the operator has set for a deployment."""
    return {n: v for n in _FIELDS if (v := deployment.params.get(n)) is not None}


def _thinks(fields: Mapping[str, Any]) -> bool:
    thinking = fields.get("thinking")
    if isinstance(thinking, dict):
        return thinking.get("type") != "disabled"
    return fields.get("reasoning_effort") not in (None, "none", "disable")


def _budget(made: Mapping[str, Any]) -> int:
    thinking, gemini = made.get("thinking"), made.get("thinkingConfig")
    budget = None
    if isinstance(thinking, dict) and thinking.get("type") == "enabled":
        budget = thinking.get("budget_tokens")
    elif isinstance(gemini, dict):
        budget = gemini.get("thinkingBudget")
    return max(0, budget) if isinstance(budget, int) else 0
