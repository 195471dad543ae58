"""The fields that every call of an approach sets itself, by whatever name a client sends them.

Providers have many names for the length of a reply and for the number of choices. LiteLLM merges
objects such as `extra_body` and `generationConfig` into what it sends, over a call's own fields.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from optillm_hooks.errors import RequestRejected

_EXTRA: Final = "extra_body"

_LONGEST_NAME: Final = 64
"""Longer names than this are no provider's."""

_MOST_ENTRIES: Final = 20_000
_MOST_LEVELS: Final = 16
"""Bounds of what is searched in a client's objects."""

_LENGTHS: Final = frozenset(
    {
        "numoutputtokens", "numpredict", "numtokenstogenerate", "numtokenstopredict", "npredict",
        "ntokens", "numtokens", "tokenlimit", "tokenstogenerate",
    }
)  # fmt: skip
"""Names of a reply's length that do not begin with `max`."""

_MEASURES: Final = ("gen", "length", "maxlen", "output", "token")
_OTHER_LENGTHS: Final = (
    "context", "image", "input", "model", "perdoc", "perpage", "prompt", "reason", "soft", "think",
    "tool", "total",
)  # fmt: skip
"""Parts of names that limit something else than a reply."""

_COUNTED: Final = (
    "beams", "candidates", "choices", "completions", "generations", "outputs", "responses",
    "results", "returnsequences", "samples", "sequences",
)  # fmt: skip
_CHOICES: Final = frozenset(
    {
        "n", "bestof", "bestofsequences", "nbest",
        *(f"{prefix}{noun}" for prefix in ("n", "num", "numberof") for noun in _COUNTED),
        *(f"{noun.removesuffix('s')}count" for noun in _COUNTED),
    }
)  # fmt: skip

_CONTENT: Final = frozenset(
    {
        "audio", "cachecontrol", "chattemplatekwargs", "contents", "documents", "formatschema",
        "functioncall", "functions", "guidedjson", "input", "inputschema", "jsonschema",
        "logitbias", "mediaiokwargs", "messages", "metadata", "mmprocessorkwargs", "prediction",
        "reasoning", "responseformat", "responsejsonschema", "responseschema", "schema",
        "structuredoutputs", "systeminstruction", "text", "thinking", "thinkingconfig",
        "toolchoice", "toolconfig", "tools", "websearchoptions",
    }
)  # fmt: skip
"""Objects in which such a name means something else: schemas, tools, texts, budgets of thinking."""


def _bare(name: str) -> str:
    """Return a name without what its spellings differ in: case, and characters between words."""
    return "".join(filter(str.isalnum, name.lower())) if len(name) <= _LONGEST_NAME else ""


def limits_length(name: str) -> bool:
    """Return whether a field of this name limits the length of a reply."""
    bare = _bare(name)
    return bare in _LENGTHS or (
        bare.startswith("max")
        and any(part in bare for part in _MEASURES)
        and not any(part in bare for part in _OTHER_LENGTHS)
    )


def counts_choices(name: str) -> bool:
    """Return whether a field of this name is the number of choices or candidates."""
    return _bare(name) in _CHOICES


def check_call_fields(params: Mapping[str, Any]) -> None:
    """Refuse fields that would change the number of choices, the length or the model of a call.

    A length at the top, or in `extra_body`, is left to the caller, which reads it.

    Raises:
        RequestRejected: the message names the field.
    """
    several = (0, 1, params.get("n"))
    for name, value in params.items():
        if name != "n" and counts_choices(name) and _number(value) not in (None, *several):
            raise RequestRejected(
                f"{name}: ask for several choices with n; the approach bon returns the best of "
                "several answers",
                param=name,
            )
        for place, key, number in _numbers_in(name, value):
            is_length = limits_length(key) and place != f"{_EXTRA}.{key}"
            if is_length or (counts_choices(key) and number not in several):
                raise RequestRejected(
                    f"{place}: an approach sets this for each call; send "
                    f"{'max_tokens' if is_length else 'n'} as a field of the request itself",
                    param=place,
                )
    nested = params.get(_EXTRA)
    for where, fields in (("", params), (f"{_EXTRA}.", nested if nested else {})):
        if isinstance(fields, Mapping) and fields.get("models") is not None:
            raise RequestRejected(
                f"{where}models: an approach calls its base model", param=f"{where}models"
            )


def _numbers_in(name: str, value: object) -> Iterator[tuple[str, str, float]]:
    """Yield place, name and value of each number in an object that is sent to the provider.

    Raises:
        RequestRejected: it is too large to be searched.
    """
    found, left = [(name, 1, value)], _MOST_ENTRIES
    if _bare(name) in _CONTENT:
        return
    while found:
        where, level, at = found.pop()
        if not isinstance(at, Mapping | list):
            continue
        left -= len(at)
        if left < 0 or level > _MOST_LEVELS:
            raise RequestRejected(
                f"{name}: a model with an approach takes an object of at most {_MOST_ENTRIES} "
                f"entries on {_MOST_LEVELS} levels here",
                param=name,
            )
        items = at.items() if isinstance(at, Mapping) else enumerate(at)
        for key, item in items:
            place = f"{where}.{str(key)[:_LONGEST_NAME]}"
            if isinstance(key, str) and (number := _number(item)) is not None:
                yield place, key, number
            elif isinstance(item, Mapping | list) and _bare(str(key)) not in _CONTENT:
                found.append((place, level + 1, item))


def _number(value: object) -> float | None:
    """Return the number that a provider would read, also from a string; None if it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value[:_LONGEST_NAME] if isinstance(value, str) else value)
    except (ValueError, OverflowError):
        return None if isinstance(value, str) else float("inf")
