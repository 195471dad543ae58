"""Cooldowns of LiteLLM's router: a request counts at most one failure of each model group.

The router counts every failed call towards the cooldown of its deployment. A plan makes many calls
at once, so one client's request could take a model away from all the others. Therefore only the
first failure of a model group counts in a request. The later ones are marked in the way in which
LiteLLM marks failures that say nothing about a deployment's health. Retries and fallbacks do not
look at the mark.
"""

from collections.abc import Mapping
from typing import Any

try:
    from litellm.router_utils.cooldown_handlers import (
        mark_advisor_orchestration_failure as do_not_count,
    )
except ImportError as exc:
    raise ImportError(
        "this version of LiteLLM cannot leave a failure out of a deployment's cooldown: "
        "optillm-hooks needs litellm>=1.106.2"
    ) from exc

__all__ = ["CountedFailures", "do_not_count"]


class CountedFailures:
    """The model groups of which a request has already counted a failure.

    An instance is a failure callback for LiteLLM's `failure_callback` argument. LiteLLM runs the
    callbacks of a call before the router's own, which counts.
    """

    def __init__(self) -> None:
        self._first: dict[str, object] = {}

    def __call__(self, call: Mapping[str, Any], *_: object) -> None:
        """Mark the failure of `call`, unless it is the first one of its model group."""
        failure = call.get("exception")
        params = call.get("litellm_params") or {}
        group = (params.get("metadata") or {}).get("model_group")
        if not isinstance(failure, Exception) or group is None:
            return
        this = object()
        # One step, since LiteLLM reports a broken stream from another thread.
        if self._first.setdefault(str(group), this) is not this:
            do_not_count(failure)
