"""Names of OptiLLM's that have no meaning here, and what to use instead.

OptiLLM's users send them in requests. Each is refused with a hint before any call is paid for. An
entry is removed when an approach of that name, or one that reads that field, is added.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final

from optillm_hooks.errors import RequestRejected
from optillm_hooks.registry import all_approaches
from optillm_hooks.settings import meant

AUTO: Final = "auto"
"""OptiLLM's default approach: the one in the model name."""

_WRAPPED: Final = (
    "send its value as optillm_approach: every approach calls models through LiteLLM's router"
)

PLUGINS: Final[Mapping[str, str]] = {
    "proxy": "leave it out. LiteLLM balances the load between deployments of one model_name "
    "(`optillm-hooks convert --proxy-config FILE` converts OptiLLM's configuration)",
}
"""What to use instead of a plugin."""

FIELDS: Final[Mapping[str, str]] = {
    "bestofn_n": "send cepo_bestofn_n",
    "cepo_config": "send cepo's parameter preset in optillm_params",
    "cepo_config_file": "send cepo's parameter preset in optillm_params",
    "cepo_print_output": "have the operator switch on progress",
    "cepo_use_reasoning": "send reasoning_effort",
    "proxy_wrap": _WRAPPED,
    "selection_temperature": "remove it: judges have a fixed temperature",
    "wrap": _WRAPPED,
    "wrapped_approach": _WRAPPED,
}
"""What to do instead of sending a field that only OptiLLM reads."""

OWN_FIELDS: Final = (
    "optillm_approach",
    "optillm_decoding",
    "optillm_limits",
    "optillm_params",
)
"""All fields whose names begin with `optillm_`."""

_SHARED: Final = frozenset(
    {
        "early_stopping", "include_reasoning", "k", "length_penalty", "no_repeat_ngram_size",
        "num_beams", "prefill", "reasoning_effort", "variant", "window_size",
    }
)  # fmt: skip
"""Fields of an approach that a provider may read too: without the approach, they are its own."""

_PREFIXES: Final = ("cepo_", "mcts_", "rstar_")
"""OptiLLM's options of an approach."""


def unwrap_own_fields(request: dict[str, Any]) -> None:
    """Move our own fields from `extra_body` into the request itself, in place.

    OpenAI's SDK does so with the argument of this name; other clients send it as a field, whose
    content LiteLLM passes on to the provider.
    """
    _unwrap(request, lambda name: name.startswith("optillm_") or name == "decoding")


def unwrap_optillm_fields(request: dict[str, Any]) -> None:
    """Move OptiLLM's fields from `extra_body` into the request itself, in place."""
    if request.get("extra_body"):
        names = {*FIELDS, *_readers()}
        _unwrap(request, lambda name: name in names or name.startswith(_PREFIXES))


def _unwrap(request: dict[str, Any], is_moved: Callable[[str], bool]) -> None:
    nested = request.get("extra_body")
    if not isinstance(nested, dict):
        return
    moved = {k: v for k, v in nested.items() if is_moved(k)}
    if moved:
        request["extra_body"] = {k: v for k, v in nested.items() if k not in moved}
        request.update({k: v for k, v in moved.items() if request.get(k) is None})


def unknown_approach(name: str) -> str:
    """Return the message about an approach that does not exist."""
    if name in PLUGINS:
        return f"{name!r} is a plugin of OptiLLM that does not exist here: {PLUGINS[name]}"
    known = [approach.name for approach in all_approaches()]
    hint = meant(name, known) or f"; known: {', '.join(known)}"
    return f"unknown approach {name!r}{hint}"


def is_optillm_field(name: str) -> bool:
    """Return whether only OptiLLM's approaches read the request field `name`."""
    return name in FIELDS or name in _readers() or name.startswith(_PREFIXES)


def check_own_fields(request: Iterable[str]) -> None:
    """Refuse a misspelt field of ours, which would otherwise go to the provider.

    Raises:
        RequestRejected: the message names it.
    """
    for field in request:
        if field.startswith("optillm_") and field not in OWN_FIELDS:
            raise RequestRejected(f"unknown field {field!r}{meant(field, OWN_FIELDS)}", param=field)


def check_foreign_fields(request: Mapping[str, object], called: Collection[str]) -> None:
    """Refuse fields of OptiLLM that no approach of the request reads.

    Args:
        request: the request, without the fields that its approaches have read.
        called: the names of its approaches.

    Raises:
        RequestRejected: the message names the field, and says what to send instead.
    """
    readers = {field: name for field, name in _readers().items() if name not in called}
    for field, value in request.items():
        if value is None:
            continue
        if field in FIELDS:
            raise RequestRejected(
                f"{field!r} is a field of OptiLLM without effect here: {FIELDS[field]}",
                param=field,
            )
        if field in readers:
            raise RequestRejected(
                f"{field!r} is a parameter of {readers[field]}, which is not among the approaches "
                f"of this request: {', '.join(called)}",
                param=field,
            )
        if field.startswith(_PREFIXES):
            raise RequestRejected(
                f"unknown parameter {field!r}{meant(field, readers)}", param=field
            )


def _readers() -> dict[str, str]:
    """Return the approach that reads each field, without fields that providers read too."""
    return {
        field: approach.name
        for approach in all_approaches()
        for field in approach.params.request_fields()
        if field not in _SHARED
    }
