"""OptiLLM's options: those of its command line and their variables of the environment."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from optillm_hooks.converters.report import NotConvertible

CEPO_FIELDS: Final[Mapping[str, type]] = {
    "bestofn_n": int,
    "bestofn_temperature": float,
    "bestofn_max_tokens": int,
    "bestofn_rating_type": str,
    "planning_n": int,
    "planning_m": int,
    "planning_temperature_step1": float,
    "planning_temperature_step2": float,
    "planning_temperature_direct_resp": float,
    "planning_temperature_step3": float,
    "planning_temperature_step4": float,
    "planning_max_tokens_step1": int,
    "planning_max_tokens_step2": int,
    "planning_max_tokens_direct_resp": int,
    "planning_max_tokens_step3": int,
    "planning_max_tokens_step4": int,
    "use_plan_diversity": bool,
    "use_reasoning_fallback": bool,
    "num_of_retries": int,
    "rating_model": str,
    "print_output": bool,
}
"""The fields of CePO's configuration, in its file and as `--cepo_FIELD`."""


@dataclass(frozen=True, slots=True)
class Option:
    """An option of the command line, its variable or both."""

    name: str
    kind: type
    flags: tuple[str, ...] = ()
    variable: str | None = None


@dataclass(frozen=True, slots=True)
class Given:
    """A value, and the flag or the variable that it comes from."""

    value: Any
    where: str


def _option(flag: str, kind: type, variable: str | None = None) -> Option:
    name = flag.removeprefix("--").replace("-", "_")
    spellings = dict.fromkeys((flag, f"--{name}" if name in ("best_of_n", "base_url") else flag))
    return Option(name, kind, tuple(spellings), variable)


OPTIONS: Final[Sequence[Option]] = (
    _option("--optillm-api-key", str, "OPTILLM_API_KEY"),
    _option("--approach", str, "OPTILLM_APPROACH"),
    _option("--mcts-simulations", int, "OPTILLM_SIMULATIONS"),
    _option("--mcts-exploration", float, "OPTILLM_EXPLORATION"),
    _option("--mcts-depth", int, "OPTILLM_DEPTH"),
    _option("--best-of-n", int, "OPTILLM_BEST_OF_N"),
    _option("--model", str, "OPTILLM_MODEL"),
    _option("--rstar-max-depth", int, "OPTILLM_RSTAR_MAX_DEPTH"),
    _option("--rstar-num-rollouts", int, "OPTILLM_RSTAR_NUM_ROLLOUTS"),
    _option("--rstar-c", float, "OPTILLM_RSTAR_C"),
    _option("--n", int, "OPTILLM_N"),
    _option("--return-full-response", bool, "OPTILLM_RETURN_FULL_RESPONSE"),
    _option("--host", str, "OPTILLM_HOST"),
    _option("--port", int, "OPTILLM_PORT"),
    _option("--log", str, "OPTILLM_LOG"),
    _option("--launch-gui", bool, "OPTILLM_LAUNCH_GUI"),
    _option("--plugins-dir", str, "OPTILLM_PLUGINS_DIR"),
    _option("--log-conversations", bool, "OPTILLM_LOG_CONVERSATIONS"),
    _option("--conversation-log-dir", str, "OPTILLM_CONVERSATION_LOG_DIR"),
    _option("--base-url", str, "OPTILLM_BASE_URL"),
    _option("--ssl-verify", bool, "OPTILLM_SSL_VERIFY"),
    _option("--ssl-cert-path", str, "OPTILLM_SSL_CERT_PATH"),
    _option("--batch-mode", bool, "OPTILLM_BATCH_MODE"),
    _option("--batch-size", int, "OPTILLM_BATCH_SIZE"),
    _option("--batch-wait-ms", int, "OPTILLM_BATCH_WAIT_MS"),
    _option("--cepo_config_file", str),
    Option("max_tokens", int, variable="OPTILLM_MAX_TOKENS"),
    Option("memory_file", str, variable="OPTILLM_MEMORY_FILE"),
    Option("compact_context_window", int, variable="COMPACT_CONTEXT_WINDOW"),
    Option("compact_threshold", float, variable="COMPACT_THRESHOLD"),
    Option("compact_keep_recent", int, variable="COMPACT_KEEP_RECENT"),
)
"""All but those of CePO's fields."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare OptiLLM's command line. An option that is not given is not in the namespace."""
    for option in OPTIONS:
        if option.kind is bool:
            parser.add_argument(*option.flags, action="store_true", default=argparse.SUPPRESS)
        elif option.flags:
            parser.add_argument(*option.flags, type=option.kind, default=argparse.SUPPRESS)
    parser.add_argument(
        "--no-ssl-verify", dest="ssl_verify", action="store_false", default=argparse.SUPPRESS
    )
    for name, kind in CEPO_FIELDS.items():
        of_text = read_flag if kind is bool else kind
        parser.add_argument(f"--cepo_{name}", type=of_text, default=argparse.SUPPRESS)


def read_options(arguments: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Given]:
    """Return the options that are given, by name: on the command line, or by their variables.

    Raises:
        NotConvertible: a variable has a value that OptiLLM does not read either.
    """
    found: dict[str, Given] = {}
    for option in OPTIONS:
        if option.name in arguments:
            value = arguments[option.name]
            no = option.name == "ssl_verify" and not value
            found[option.name] = Given(value, "--no-ssl-verify" if no else option.flags[0])
        elif option.variable is not None and (text := environment.get(option.variable)):
            found[option.name] = Given(_of_variable(option, text), option.variable)
    for name in CEPO_FIELDS:
        if (key := f"cepo_{name}") in arguments:
            found[key] = Given(arguments[key], f"--{key}")
    return found


def _of_variable(option: Option, text: str) -> Any:
    if option.kind is bool:
        return text.lower() in ("true", "1", "yes")
    try:
        return option.kind(text)
    except ValueError:
        raise NotConvertible(f"{option.variable} must be a number, got {text!r}") from None


def read_flag(text: str) -> bool:
    """Return a truth value as its author meant it; OptiLLM takes every text for true."""
    if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
        raise argparse.ArgumentTypeError(f"must be true or false, got {text!r}")
    return text.lower() in ("true", "1", "yes")
