"""What a command loads before it looks at a configuration as the proxy does."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from optillm_hooks.config_files import our_settings
from optillm_hooks.serve import read_env

_LOCAL_PRICES: Final = "LITELLM_LOCAL_MODEL_COST_MAP"


def load_extensions_of(config: Mapping[str, Any]) -> list[str]:
    """Register all approaches, with those that `config` allows; return what is wrong with those."""
    import optillm_hooks.approaches  # noqa: F401 (registers them)
    from optillm_hooks.extensions import extension_settings, load_extensions

    return load_extensions(extension_settings(our_settings(config)))


def take_installed_prices() -> None:
    """Let LiteLLM take the prices that it is installed with, once it is loaded: not the network's.

    Without a network it would wait ten seconds, and print warnings.
    """
    os.environ.setdefault(_LOCAL_PRICES, "True")


def load_gateway(config: Mapping[str, Any]) -> list[str]:
    """Load LiteLLM and the gateway too, with the variables that `serve` gives a proxy.

    Prices are those that LiteLLM is installed with.
    """
    for name, value in read_env(Path(".env")).items():
        os.environ.setdefault(name, value)
    take_installed_prices()
    # The extensions are first: the gateway would load those of no configuration.
    problems = load_extensions_of(config)
    from optillm_hooks.gateway.without_proxy import prepare

    prepare()
    return problems
