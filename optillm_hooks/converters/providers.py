"""The `proxy_config.yaml` of OptiLLM's proxy plugin as LiteLLM's models and router settings."""

import re
from typing import Any, Final

from optillm_hooks.converters.report import (
    ENVIRON,
    NotConvertible,
    Report,
    read_number,
    read_object,
    read_text,
    whole_reference,
)

_ROOT: Final = dict.fromkeys(("providers", "routing", "timeouts", "queue", "monitoring"))
_PROVIDER: Final = dict.fromkeys(
    (
        *("name", "base_url", "api_key", "weight", "fallback_only", "model_map"),
        "max_concurrent",
    )
)
_AZURE_VERSION: Final = "2024-02-01"
"""The only version that OptiLLM asks Azure for."""

_REQUEST_S: Final = 30
_INTERVAL_S: Final = 30
_MAX_FALLBACKS: Final = 5
_ANY: Final = "*"


def convert_proxy(document: Any, report: Report) -> dict[str, Any]:
    """Return the part of LiteLLM's configuration that stands for `document`."""
    config = read_object("the file", document)
    report.rest("", config, _ROOT)
    providers = _providers(config.get("providers"), report)
    routing = read_object("routing", config.get("routing"))
    report.rest("routing", routing, {"strategy": None, "health_check": None})
    strategy = _strategy(routing.get("strategy"), report)
    timeout = _timeouts(read_object("timeouts", config.get("timeouts")), report)
    health = read_object("routing.health_check", routing.get("health_check"))
    monitoring = read_object("monitoring", config.get("monitoring"))
    checks, check_s = _health(health, report)
    models = _models(providers, strategy, check_s if checks else None)
    router: dict[str, Any] = {
        "routing_strategy": "simple-shuffle",
        "enable_weighted_failover": True,
        "num_retries": max(0, len(providers) - 1),
        "timeout": timeout,
        "allowed_fails": 0,
        "cooldown_time": checks.get("health_check_interval", _INTERVAL_S),
    }
    if _monitoring(monitoring, report):
        router["disable_cooldowns"] = True
    if len(providers) > _MAX_FALLBACKS:
        router["max_fallbacks"] = len(providers)
    if any("order" in model["litellm_params"] for model in models):
        report.say(
            "providers",
            "LiteLLM calls those of the next `order` when one of the first fails or cools down",
        )
    general = checks | _queue(read_object("queue", config.get("queue")), report)
    report.say(
        "providers",
        "a model that no model_map names is passed through by the rows '*': delete them to serve "
        "named models only",
    )
    report.say(
        "providers",
        "OptiLLM falls back to its own client when all have failed; here the request fails, unless "
        "you set default_fallbacks",
    )
    return {"model_list": models, "router_settings": router, "general_settings": general}


def _providers(given: Any, report: Report) -> list[dict[str, Any]]:
    if not isinstance(given, list) or not given:
        raise NotConvertible("providers must be a list with at least one provider")
    read = [
        _provider(f"providers[{at}]", at, read_object(f"providers[{at}]", each), report)
        for at, each in enumerate(given)
    ]
    names = [provider["name"] for provider in read]
    for at, name in enumerate(names):
        if name in names[:at]:
            raise NotConvertible(f"providers[{at}].name {name!r} is there twice")
    return read


def _provider(where: str, at: int, given: dict[str, Any], report: Report) -> dict[str, Any]:
    report.rest(where, given, _PROVIDER)
    name = str(given.get("name") or f"provider_{at}")
    for key in ("base_url", "api_key"):
        if not given.get(key):
            raise NotConvertible(f"{where}.{key} is missing")
    url, key = given["base_url"], given["api_key"]
    is_azure = "azure" in str(url).lower()
    if is_azure:
        report.say(
            f"{where}.base_url", "read as Azure's, as OptiLLM does; check model and api_version"
        )
    api_key = read_text(f"{where}.api_key", f"{name}_API_KEY", key, report, secret=True)
    if not api_key.startswith(ENVIRON):
        api_key = report.variable(f"{where}.api_key", f"{name}_API_KEY", api_key, secret=True)
    weight = read_number(f"{where}.weight", given.get("weight", 1), report)
    most = given.get("max_concurrent")
    if most is not None:
        most = read_number(f"{where}.max_concurrent", most, report)
        report.say(
            f"{where}.max_concurrent",
            "LiteLLM does not wait for a free place: it calls another provider, or answers 429",
        )
    mapped = read_object(f"{where}.model_map", given.get("model_map"))
    return {
        "name": name,
        "url": read_text(f"{where}.base_url", f"{name}_BASE_URL", url, report),
        "key": api_key,
        "azure": is_azure,
        "weight": weight if weight is not None and weight > 0 else 1,
        "fallback": _flag(f"{where}.fallback_only", given.get("fallback_only", False), report),
        "most": most,
        "models": {
            asked: read_text(f"{where}.model_map.{asked}", f"{name}_{asked}", model, report)
            for asked, model in mapped.items()
        },
    }


def _models(
    providers: list[dict[str, Any]], strategy: str, check_s: float | None
) -> list[dict[str, Any]]:
    """Return a row for each model of each provider: those that a `model_map` names, and `*`."""
    named = dict.fromkeys(asked for provider in providers for asked in provider["models"])
    rows: list[dict[str, Any]] = []
    for asked in (*named, _ANY):
        for at, provider in enumerate(providers):
            params: dict[str, Any] = {
                **_named(provider["models"].get(asked, asked), azure=provider["azure"]),
                "api_base": provider["url"],
                "api_key": provider["key"],
            }
            if provider["azure"]:
                params["api_version"] = _AZURE_VERSION
            if strategy == "weighted":
                params["weight"] = provider["weight"]
            if order := _order(providers, at, strategy):
                params["order"] = order
            if provider["most"] is not None:
                params["max_parallel_requests"] = provider["most"]
            info: dict[str, Any] = {"id": f"{provider['name']}/{asked}"}
            if asked == _ANY:
                info["disable_background_health_check"] = True
            elif check_s is not None:
                info["health_check_timeout"] = check_s
            rows.append({"model_name": asked, "litellm_params": params, "model_info": info})
    return rows


def _named(model: str, *, azure: bool) -> dict[str, str]:
    """Return a model and its provider for LiteLLM: a variable holds the model's name only."""
    provider = "azure" if azure else "openai"
    if model.startswith(ENVIRON):
        return {"model": model, "custom_llm_provider": provider}
    return {"model": f"{provider}/{model}"}


def _order(providers: list[dict[str, Any]], at: int, strategy: str) -> int | None:
    """Return the place of a provider among those that are called one after the other."""
    fallback = providers[at]["fallback"]
    if strategy == "failover":
        before = [p for p in providers[:at] if p["fallback"] == fallback]
        actives = sum(not p["fallback"] for p in providers)
        return len(before) + 1 + (actives if fallback else 0)
    if not any(provider["fallback"] for provider in providers):
        return None
    return 2 if fallback else 1


def _strategy(given: Any, report: Report) -> str:
    if given not in ("weighted", "round_robin", "failover"):
        if given is not None:
            report.say("routing.strategy", f"{given!r} is none, read as round_robin")
        given = "round_robin"
    if given == "round_robin":
        report.say(
            "routing.strategy",
            "LiteLLM has no round robin: it chooses at random; least-busy is closer if requests "
            "differ in length",
        )
    return str(given)


def _timeouts(given: dict[str, Any], report: Report) -> float:
    report.rest("timeouts", given, {"request": None, "connect": None})
    if "connect" in given:
        report.say("timeouts.connect", "no setting in LiteLLM (and without effect in OptiLLM)")
    found = read_number("timeouts.request", given.get("request", _REQUEST_S), report)
    return _REQUEST_S if found is None else found


def _health(given: dict[str, Any], report: Report) -> tuple[dict[str, Any], float | None]:
    """Return the general settings of health checks, and the timeout of one."""
    where = "routing.health_check"
    report.rest(where, given, {"enabled": None, "interval": None, "timeout": None})
    if not _flag(f"{where}.enabled", given.get("enabled", True), report):
        return {}, None
    interval = read_number(f"{where}.interval", given.get("interval", _INTERVAL_S), report)
    report.say(
        where, "LiteLLM's checks are calls of each model, which cost money, not listings of models"
    )
    checks = {
        "background_health_checks": True,
        "enable_health_check_routing": True,
        "health_check_interval": max(1, round(interval or _INTERVAL_S)),
    }
    return checks, read_number(f"{where}.timeout", given.get("timeout", 5), report)


def _queue(given: dict[str, Any], report: Report) -> dict[str, Any]:
    report.rest("queue", given, {"max_concurrent": None, "timeout": None})
    if "timeout" in given:
        report.say("queue.timeout", "LiteLLM does not wait for a free place: it answers 429")
    most = read_number("queue.max_concurrent", given.get("max_concurrent", 100), report)
    return {} if most is None else {"global_max_parallel_requests": most}


def _monitoring(given: dict[str, Any], report: Report) -> bool:
    """Return whether errors are to have no effect on the choice of a provider."""
    known = dict.fromkeys(("log_level", "track_latency", "track_errors"))
    report.rest("monitoring", given, known)
    if "log_level" in given:
        report.say("monitoring.log_level", "set LITELLM_LOG in the proxy's environment instead")
    if "track_latency" in given:
        report.say("monitoring.track_latency", "use LiteLLM's callback `prometheus`")
    return not _flag("monitoring.track_errors", given.get("track_errors", True), report)


def _flag(where: str, value: Any, report: Report) -> bool:
    whole = whole_reference(value) if isinstance(value, str) else None
    if whole is not None:
        report.say(where, "a switch cannot be a variable in LiteLLM: write it into the YAML")
        value = whole[1]
    if isinstance(value, str) and re.fullmatch("(?i)true|false|yes|no|on|off", value):
        value = value.lower() in ("true", "yes", "on")
    if value is None:
        return False
    if not isinstance(value, bool):
        raise NotConvertible(f"{where} must be true or false, got {value!r}")
    return value
