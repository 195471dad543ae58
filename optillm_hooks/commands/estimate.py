"""Estimate what an approach costs: calls, and money if a model is given.

APPROACH is an expression such as 'bon(n=5)', a model name such as bon-gpt-4o-mini, or an alias of
the configuration. The calls are those if nothing fails and no sample turns out to be unnecessary.
Each counts as much as a plain call of the dearest model that takes part.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from optillm_hooks.commands.arguments import positive
from optillm_hooks.commands.loading import load_gateway
from optillm_hooks.config_files import CannotRun, our_settings, read_if_there


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("approach", metavar="APPROACH")
    parser.add_argument("--model", help="the base model: a name of the configuration or LiteLLM's")
    parser.add_argument(
        "--config", type=Path, help="LiteLLM's YAML; by default litellm_config.yaml, if it is here"
    )
    parser.add_argument("--prompt-tokens", type=positive, default=500, help="(default: 500)")
    parser.add_argument("--answer-tokens", type=positive, default=400, help="(default: 400)")
    parser.add_argument("--json", action="store_true", help="print JSON")


class _Asked(NamedTuple):
    expression: str
    base: str | None
    by_operator: bool
    """Whether it is an alias of the configuration."""


def run(given: argparse.Namespace) -> int:
    config = read_if_there(given.config)
    load_gateway(config)
    from optillm_hooks.errors import RequestRejected
    from optillm_hooks.gateway.config_check import malformed

    if (wrong := next(iter(malformed(config)), None)) is not None:
        raise CannotRun(f"{wrong} (optillm-hooks check names all problems)")
    try:
        facts = _estimate(given, config)
    except RequestRejected as exc:
        raise CannotRun(_told(exc, given.approach, config)) from None
    if given.json:
        sys.stdout.write(f"{json.dumps(facts, indent=1)}\n")
        return 0
    width = max(map(len, facts))
    for name, value in facts.items():
        if value is not None:
            sys.stdout.write(f"{name:{width}}  {_shown(value)}\n")
    return 0


def _told(exc: Exception, text: str, config: Mapping[str, Any]) -> str:
    """Return why `text` cannot be estimated, by the models of the configuration first."""
    from optillm_hooks.gateway.deployments import is_alias
    from optillm_hooks.settings import meant

    entries = _entries(text, config)
    if any(map(is_alias, entries)):
        return str(exc)
    if entries:
        return f"{text!r} is a plain model: put an approach before it, such as bon-{text}"
    hint = meant(text, [entry["model_name"] for entry in config.get("model_list") or ()])
    return f"there is no approach or alias {text!r}{hint}" if hint else str(exc)


def _shown(value: object) -> str:
    return f"{value:.6f}" if isinstance(value, float) else str(value)


def _estimate(given: argparse.Namespace, config: Mapping[str, Any]) -> dict[str, Any]:
    from optillm_hooks.gateway.operator_settings import call_limit, valid_settings
    from optillm_hooks.pipeline.expression import parse
    from optillm_hooks.pipeline.plan import resolve

    settings = valid_settings(our_settings(config))
    asked = _asked(given.approach, given.model, config)
    plan = resolve(parse(asked.expression), presets=settings.presets)
    remotely = plan.has_remote_decoder and not _is_local(asked.base, config)
    calls = plan.calls(decoded_remotely=remotely)
    limit = call_limit(settings, by_operator=asked.by_operator)
    models = sorted(plan.model_groups | ({asked.base} if asked.base else set()))
    plain, unpriced = _plain_call(models, given.prompt_tokens, given.answer_tokens, config)
    return {
        "approach": plan.text,
        "models": ", ".join(models) or None,
        "calls": calls,
        "depth": plan.depth(decoded_remotely=remotely),
        "plain_call_usd": plain,
        "cost_usd": None if plain is None else calls * plain,
        "unknown_prices": ", ".join(unpriced) or None,
        "refused": _refusal(partial(limit.check, plan, 1, decoded_remotely=remotely)),
    }


def _refusal(check: Callable[[], None]) -> str | None:
    """Return why a proxy with this configuration would refuse it; None if it would not."""
    from optillm_hooks.errors import RequestRejected

    try:
        check()
    except RequestRejected as exc:
        return str(exc)
    return None


def _asked(text: str, model: str | None, config: Mapping[str, Any]) -> _Asked:
    """Return what is to be estimated: of an alias, its model, a model name or an expression."""
    from optillm_hooks.gateway.deployments import alias_model
    from optillm_hooks.gateway.model_names import from_deployment, from_prefix

    aliases = (alias_model({"litellm_params": params}) for params, _ in _deployments(text, config))
    if (alias := next(filter(None, aliases), None)) is not None:
        named = from_deployment(alias)
        return _Asked(named.expression, model or named.base, by_operator=True)
    named_in = None if _parses(text) else from_prefix(text)
    if named_in is None:
        return _Asked(text, model, by_operator=False)
    return _Asked(named_in.expression, model or named_in.base, by_operator=False)


def _parses(text: str) -> bool:
    """Return whether it is an expression, without a base model."""
    from optillm_hooks.errors import RequestRejected
    from optillm_hooks.pipeline.expression import parse

    try:
        parse(text)
    except RequestRejected:
        return False
    return True


def _entries(name: str, config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the deployments of a configuration that have this name."""
    return [e for e in config.get("model_list") or () if e.get("model_name") == name]


def _deployments(name: str, config: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Yield parameters and information of a model; one that is not configured is LiteLLM's."""
    for entry in _entries(name, config) or [{"litellm_params": {"model": name}}]:
        yield entry.get("litellm_params") or {}, entry.get("model_info") or {}


def _is_local(base: str | None, config: Mapping[str, Any]) -> bool:
    from optillm_hooks.gateway.local_models import LOCAL_PROVIDER

    found = [params.get("model") for params, _ in _deployments(base or "", config)]
    return all(str(model).startswith(f"{LOCAL_PROVIDER}/") for model in found)


def _plain_call(
    models: Sequence[str], prompt_tokens: int, answer_tokens: int, config: Mapping[str, Any]
) -> tuple[float | None, list[str]]:
    """Return the dollars of a call of the dearest of `models`, and those without a known price.

    The dollars are None if a price is not known, or there are no models.
    """
    from optillm_hooks.gateway.estimates import dollars
    from optillm_hooks.gateway.model_facts import price_of_deployment

    prices = [
        (model, price_of_deployment(params, info))
        for model in models
        for params, info in _deployments(model, config)
    ]
    unknown = [model for model, price in prices if price is None]
    return dollars(1, [price for _, price in prices], prompt_tokens, answer_tokens), unknown
