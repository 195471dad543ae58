"""The limits that apply to a request, each with its value and with who has set it."""

from dataclasses import asdict
from typing import Final, NamedTuple

from optillm_hooks.budget import Limits
from optillm_hooks.errors import BudgetExceeded, DeadlineExceeded, OptiLLMError
from optillm_hooks.gateway.prepared import Prepared

_OF_LIMITS: Final = (BudgetExceeded.code, DeadlineExceeded.code)

_PLACES: Final = {
    "alias": "model_info.optillm of the alias",
    "optillm_settings": "optillm_settings.limits",
    "key or team": "the metadata of the key or its team",
    "request": "optillm_limits of the request",
}


class AppliedLimit(NamedTuple):
    value: float
    source: str | None
    """None for a limit that no setting of ours has."""


def applied_limits(prepared: Prepared) -> dict[str, AppliedLimit]:
    """Return each limit that applies, by its name."""
    selection = prepared.selection
    operators = "alias" if selection.on_alias else "optillm_settings"
    sources: list[tuple[str, Limits]] = [
        (operators, selection.settings.limits()),
        ("key or team", selection.of_key),
        ("request", selection.asked),
        (selection.calls.setting, Limits(max_calls=selection.calls.max_calls)),
    ]
    return {
        name: AppliedLimit(
            value, next((of for of, limits in sources if getattr(limits, name) == value), None)
        )
        for name, value in asdict(selection.limits).items()
        if value is not None
    }


def tell_limit(exc: OptiLLMError, prepared: Prepared) -> None:
    """Add to an error of a limit which one it is, its value, and where it can be raised."""
    stopped_by = prepared.trace.stopped_by
    if exc.code in _OF_LIMITS and stopped_by is not None:
        told = _told("deadline_s" if stopped_by == "deadline" else stopped_by, prepared)
        exc.args = (f"{exc}{told}",)


def _told(name: str, prepared: Prepared) -> str:
    limit = applied_limits(prepared).get(name)
    host_s = prepared.host_s if name == "deadline_s" else None
    if host_s is not None and (limit is None or host_s < limit.value):
        return f" (LiteLLM's own timeouts left {host_s:.3g} s)"
    if limit is None:
        return ""
    place = _PLACES.get(limit.source or "", limit.source)
    return f" ({name} is {limit.value:g}" + (f"; it is set by {place})" if place else ")")
