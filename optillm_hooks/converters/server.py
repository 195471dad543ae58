"""OptiLLM's server as LiteLLM's YAML: its model, its approach and its settings."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import optillm_hooks.approaches  # noqa: F401 (registers them)
from optillm_hooks.converters.options import CEPO_FIELDS, Given
from optillm_hooks.converters.report import ENVIRON, Report
from optillm_hooks.errors import RequestRejected
from optillm_hooks.pipeline.expression import Call, parse, unparse
from optillm_hooks.pipeline.plan import PASS_THROUGH, resolve

_MODEL: Final = "gpt-4o-mini"
"""OptiLLM's default."""

_NAME: Final = re.compile(r"\w+")
_PARAMETERS: Final[Mapping[str, tuple[str, str]]] = {
    "mcts_simulations": ("mcts", "simulations"),
    "mcts_exploration": ("mcts", "exploration"),
    "mcts_depth": ("mcts", "depth"),
    "best_of_n": ("bon", "n"),
    "rstar_max_depth": ("rstar", "max_depth"),
    "rstar_num_rollouts": ("rstar", "num_rollouts"),
    "rstar_c": ("rstar", "c"),
    "return_full_response": ("cot_reflection", "show_thinking"),
    "compact_context_window": ("compact", "context_window"),
    "compact_threshold": ("compact", "threshold"),
    "compact_keep_recent": ("compact", "keep_recent"),
    **{f"cepo_{name}": ("cepo", name) for name in CEPO_FIELDS if name != "print_output"},
}
"""Options that are parameters of an approach, and which."""

_CONVERSATIONS: Final = Given("~/.optillm/conversations", "--conversation-log-dir")
"""OptiLLM's default."""

_OTHERWISE: Final[Mapping[str, str]] = {
    "n": "no default here: clients send n",
    "host": "optillm-hooks serve --host {value}",
    "port": "optillm-hooks serve --port {value}",
    "log": "set the environment variable LITELLM_LOG to {value}, in capitals",
    "launch_gui": "left out: use a client, such as Open WebUI, or the page at /optillm",
    "batch_mode": "not needed: requests run concurrently, and local models batch them",
    "batch_size": "not needed, as --batch-mode",
    "batch_wait_ms": "not needed, as --batch-mode",
    "cepo_print_output": "have optillm_settings.progress: true tell clients what is being done",
    "cepo_config_file": "its fields are parameters of cepo",
}
"""What is said of options that the YAML has no place for."""

_GENERAL: Final[Mapping[str, Any]] = {
    "master_key": f"{ENVIRON}LITELLM_MASTER_KEY",
    "cancel_on_disconnect": True,
    "health_check_skip_disabled_background_models": True,
}
_ANY: Final = "*"


def with_cepo(
    options: Mapping[str, Given], fields: Mapping[str, Any], report: Report
) -> dict[str, Given]:
    """Return `options` with those fields of a CePO configuration that no flag replaces."""
    where = options["cepo_config_file"].where
    report.rest(where, fields, CEPO_FIELDS)
    found = {
        f"cepo_{name}": Given(value, f"{where}: {name}")
        for name, value in fields.items()
        if name in CEPO_FIELDS and value is not None
    }
    return {**found, **options}


def convert(
    options: Mapping[str, Given],
    environment: Mapping[str, str],
    parts: Sequence[Mapping[str, Any]],
    report: Report,
) -> dict[str, Any]:
    """Return LiteLLM's configuration of a server with these options.

    Args:
        options: as `read_options` returns them.
        environment: names the provider by the API keys that are set.
        parts: what stands for OptiLLM's configuration files. A `model_list` in them replaces the
            provider.
        report: gets what became of each option.
    """
    model = _model(options, report)
    files = {key: value for part in parts for key, value in part.items()}
    models = files.pop("model_list", None)
    if models is None:
        models = _provider(model, options, environment, report)
    settings = _settings(options, report)
    if (default := _default(options, report)) is not None:
        settings = {"default_approach": default, **settings}
    aliases = list(_aliases(model, default, options, report))
    tls = _tls(options, report)
    _say_the_rest(options, report)
    return {
        "model_list": [*models, *aliases, _FREE_FORMS],
        **{key: value for key, value in files.items() if key != "general_settings"},
        "litellm_settings": {
            "custom_provider_map": [
                {"provider": provider, "custom_handler": f"{_PACKAGE}.{handler}"}
                for provider, handler in _HANDLERS.items()
            ],
            "callbacks": [f"{_PACKAGE}.gateway.hook"],
            **tls,
            **({"optillm_settings": settings} if settings else {}),
        },
        "general_settings": {**_GENERAL, **files.get("general_settings", {})},
    }


_PACKAGE: Final = __name__.split(".", maxsplit=1)[0]
_HANDLERS: Final = {
    "optillm": "gateway.provider",
    "optillm-local": "local_provider.provider",
    "optillm-score": "gateway.scorer",
}
_FREE_FORMS: Final[Mapping[str, Any]] = {
    "model_name": "optillm/*",
    "litellm_params": {"model": "optillm/*", "num_retries": 0},
    "model_info": {"disable_background_health_check": True},
}
"""Lets clients name approaches before the name of every model, as OptiLLM's do."""


def _model(options: Mapping[str, Given], report: Report) -> str:
    if "model" not in options:
        return _MODEL
    model = str(options["model"].value)
    report.say(options["model"].where, f"the model {model}; here, a request has to name a model")
    return model


# ---------------------------------------------------------------------------------- the provider


def _provider(
    model: str, options: Mapping[str, Given], environment: Mapping[str, str], report: Report
) -> list[dict[str, Any]]:
    """Return the models of the provider that OptiLLM chooses by the environment."""
    if environment.get("OPTILLM_API_KEY"):
        return [_local(model, options, report)]
    shared: dict[str, Any] = {}
    for key, prefix in _PROVIDERS.items():
        if environment.get(key):
            report.say(key, f"the provider {prefix.rstrip('/')}; LiteLLM reads the same variable")
            shared = {"api_key": f"{ENVIRON}{key}", **_address(key, options, report)}
            break
    else:
        prefix = ""
        report.say("provider", "no key of one is set: LiteLLM finds it by the name of the model")
        if "base_url" in options:
            report.say(options["base_url"].where, "left out: OptiLLM does not use it either")
    passed_on = {
        "model_name": _ANY,
        "litellm_params": {"model": f"{prefix}{_ANY}", **shared},
        "model_info": {"disable_background_health_check": True},
    }
    report.say(
        "models",
        f"every other model is passed on by the row {_ANY!r}: delete it to serve {model} only",
    )
    named = {"model_name": model, "litellm_params": {"model": f"{prefix}{model}", **shared}}
    return [named, passed_on]


_PROVIDERS: Final[Mapping[str, str]] = {
    "CEREBRAS_API_KEY": "cerebras/",
    "OPENAI_API_KEY": "openai/",
    "AZURE_OPENAI_API_KEY": "azure/",
}
"""The variables by which OptiLLM chooses its provider, in its order, and LiteLLM's prefixes."""


def _address(key: str, options: Mapping[str, Given], report: Report) -> dict[str, str]:
    if key == "AZURE_OPENAI_API_KEY":
        return {
            "api_base": f"{ENVIRON}AZURE_API_BASE",
            "api_version": f"{ENVIRON}AZURE_API_VERSION",
        }
    if "base_url" not in options:
        return {}
    report.say(options["base_url"].where, "api_base of the models")
    return {"api_base": str(options["base_url"].value)}


def _local(model: str, options: Mapping[str, Given], report: Report) -> dict[str, Any]:
    """Return a model that OptiLLM's own engine serves; after `+`, it has names of adapters."""
    path, *adapters = model.split("+")
    report.say(
        "OPTILLM_API_KEY",
        f"a local model, because OptiLLM takes this variable for that: {path}. It needs the extra "
        "local; each further model needs a row of its own",
    )
    params: dict[str, Any] = {"model": f"optillm-local/{model}"}
    if (most := options.get("max_tokens")) is not None:
        report.say(most.where, "max_tokens of the model")
        params["max_tokens"] = most.value
    spec: dict[str, Any] = {"path": path}
    if adapters:
        spec["adapters"] = {adapter: adapter for adapter in adapters}
    return {
        "model_name": model,
        "litellm_params": params,
        "model_info": {"optillm_local": spec},
    }


# --------------------------------------------------------------------------------- the approaches


def _default(options: Mapping[str, Given], report: Report) -> str | None:
    """Return the approach of requests that name none."""
    given = options.get("approach")
    if given is None or given.value in ("auto", PASS_THROUGH):
        return None
    if given.value == "proxy":
        report.say(given.where, "not needed: LiteLLM's router chooses among the providers")
        return None
    text = _checked(str(given.value), given.where, _parameters(options), report)
    if text is not None:
        report.say(
            given.where,
            f"optillm_settings.default_approach: {text}; here, a request that names another "
            "approach gets that one",
        )
    return text


def _aliases(
    model: str, default: str | None, options: Mapping[str, Given], report: Report
) -> Iterator[dict[str, Any]]:
    """Yield an alias for each approach with parameters, under the name that clients use for it."""
    for approach, given in _parameters(options).items():
        places = ", ".join(each.where for each in given.values())
        text = _checked(approach, places, {approach: given}, report)
        if text is None:
            continue
        name = f"{approach}-{model}"
        also = " and the default approach" if approach in _NAME.findall(default or "") else ""
        report.say(places, f"the model {name}, which is {text}{also}")
        yield {
            "model_name": name,
            "litellm_params": {"model": f"optillm/{text}/{model}", "num_retries": 0},
        }


def _parameters(options: Mapping[str, Given]) -> dict[str, dict[str, Given]]:
    """Return the parameters that are given, by approach."""
    found: dict[str, dict[str, Given]] = {}
    for option, (approach, parameter) in _PARAMETERS.items():
        if option in options:
            found.setdefault(approach, {})[parameter] = options[option]
    return found


def _checked(
    text: str, where: str, parameters: Mapping[str, Mapping[str, Given]], report: Report
) -> str | None:
    """Return an approach with its parameters; None if it cannot be used, which is reported.

    OptiLLM's expressions are names with `&` or `|` between them.
    """
    calls = {
        name: unparse(Call(name, tuple((key, each.value) for key, each in given.items())))
        for name, given in parameters.items()
    }
    try:
        return resolve(parse(re.sub(r"\w+", lambda name: calls.get(name[0], name[0]), text))).text
    except RequestRejected as exc:
        report.say(where, f"left out: {exc}")
        return None


# ----------------------------------------------------------------------------------- the settings


def _settings(options: Mapping[str, Given], report: Report) -> dict[str, Any]:
    """Return `optillm_settings` without the default approach."""
    settings: dict[str, Any] = {}
    if (folder := options.get("plugins_dir")) is not None:
        settings["plugins_dir"] = str(Path(folder.value).absolute())
        report.say(folder.where, "optillm_settings.plugins_dir (OptiLLM 0.4 does not read it)")
    if (file := options.get("memory_file")) is not None:
        settings["memory"] = {"store": True}
        report.say(
            file.where, "optillm_settings.memory.store; notes are kept in the store, for their key"
        )
    if (log := options.get("log_conversations")) is not None and log.value:
        folder = options.get("conversation_log_dir", _CONVERSATIONS)
        settings["conversation_log"] = {
            "directory": str(Path(folder.value).expanduser().absolute())
        }
        report.say(
            f"{log.where}, {folder.where}",
            "optillm_settings.conversation_log; private values in it are replaced unless you set "
            "redact",
        )
    return settings


def _tls(options: Mapping[str, Given], report: Report) -> dict[str, Any]:
    """Return LiteLLM's setting of the certificates that providers are checked by."""
    verify, file = options.get("ssl_verify"), options.get("ssl_cert_path")
    if verify is not None:
        report.say(verify.where, f"litellm_settings.ssl_verify: {str(verify.value).lower()}")
        if not verify.value:
            return {"ssl_verify": False}
    if file is not None:
        report.say(file.where, "litellm_settings.ssl_verify")
        return {"ssl_verify": file.value}
    return {}


def _say_the_rest(options: Mapping[str, Given], report: Report) -> None:
    """Report the options that the YAML has no place for."""
    for name, given in options.items():
        if name in _OTHERWISE:
            report.say(given.where, _OTHERWISE[name].format(value=given.value))
    if (key := options.get("optillm_api_key")) is not None:
        report.say(
            key.where,
            "general_settings.master_key: set the environment variable LITELLM_MASTER_KEY to its "
            "value, or give each client a virtual key",
        )
    for given in options.values():
        if not any(given.where in line for line in report.lines):
            report.say(given.where, "changes nothing")
    if "port" not in options:
        report.say("port", "OptiLLM's is 8000: optillm-hooks serve --port 8000")
