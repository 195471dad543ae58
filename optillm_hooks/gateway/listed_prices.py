"""Prices that LiteLLM need not enter into its price list anew for every call, or must not book.

The router enters the prices of `litellm_params` when it reads the configuration. LiteLLM enters
them again for each call that has them, and forgets what it has derived from the list, which takes
an eighth of a plan's CPU time. It does not for prices in `model_info`.
"""

from collections.abc import Mapping
from typing import Any, Final

import litellm
from litellm.types.utils import CustomPricingLiteLLMParams

from optillm_hooks.gateway.caller import metadata_of

_PRICES: Final = frozenset(CustomPricingLiteLLMParams.model_fields)
_OF_ALIASES: Final = _PRICES | {"off_peak_pricing"}  # which LiteLLM takes from model_info only


def without_prices(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return a call of an alias without the alias's own prices.

    LiteLLM would book a stream at them, on top of the plan's calls. The metadata is changed in
    place.
    """
    metadata = metadata_of(kwargs)
    info = metadata.get("model_info")
    if isinstance(metadata, dict) and isinstance(info, Mapping):
        metadata["model_info"] = {name: info[name] for name in info.keys() - _OF_ALIASES}
    return {name: value for name, value in kwargs.items() if name not in _OF_ALIASES}


def without_listed_prices(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return a call with its prices in `model_info`, if they are its deployment's in the list.

    A call with other prices, such as a client's own, is returned as it is. The metadata is changed
    in place, since the router reads there what a call has noted.
    """
    prices = {name: kwargs[name] for name in _PRICES & kwargs.keys() if kwargs[name] is not None}
    metadata = metadata_of(kwargs)
    info = metadata.get("model_info")
    if not prices or not isinstance(metadata, dict) or not isinstance(info, Mapping):
        return kwargs
    listed = litellm.model_cost.get(str(info.get("id"))) or {}
    if any(listed.get(name) != price for name, price in prices.items()):
        return kwargs
    metadata["model_info"] = {**info, **prices}
    return {name: value for name, value in kwargs.items() if name not in prices}
