"""What providers refuse of a call's sampling fields: read from their errors, and remembered."""

import re
from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import Final

from optillm_hooks.errors import ProviderFailed
from optillm_hooks.types import Chat, Json, Sampling

_STATUSES = frozenset({400, 422})

_REASONING = re.compile(r"\breasoning|\bthinking\b", re.IGNORECASE)
_NAMES: Final[Mapping[str, re.Pattern[str]]] = {
    "temperature": re.compile(r"\btemperature\b", re.IGNORECASE),
    "top_p": re.compile(r"\btop[_-]?p\b", re.IGNORECASE),
    "tool_choice": re.compile(r"\btool[_ ]?choice\b", re.IGNORECASE),
    "reasoning_effort": _REASONING,
    "thinking": _REASONING,
    "response_format": re.compile(
        r"response[_ ]?format|output[_ ]format|response[_ ]mime|\bjson\b|json_|\bschema\b"
        r"|structured[_ ]output|\bgrammar\b",
        re.IGNORECASE,
    ),
}
"""How providers name the fields."""

_REFUSES = re.compile(
    r"support|deprecat|can ?not|can't|permitted|allowed|\bonly\b|\bmust\b|invalid|incompatible"
    r"|unrecognized|unknown|unexpected|available|removed|exclusive|range|less than|greater than"
    r"|should be|enabled|reject|extra|failed to (?:generate|validate)"
    r"|too (?:many|complex|large|deep)|参数|不支持|非法|无效",
    re.IGNORECASE,
)
_OF_VALUE = re.compile(r"\brange\b|between|(?:less|greater) than|at (?:most|least)", re.IGNORECASE)
"""Words of a refusal of a value, where another value may do."""

_N = re.compile(
    r"""[`'"]n[`'"] | \bn\ ?(?:must|should|>|=|:|参数) | \bn\ (?:value|parameter|is\b)
    | (?:invalid|parameter|argument|field|model:|参数)\ ?n\b | candidate_?count
    | multiple\ (?:choice|completion|candidate|response)s
    | (?:one|single)\ (?:\w+\ )?(?:choice|completion|candidate)
    """,
    re.IGNORECASE | re.VERBOSE,
)

_WHOLE = re.compile(
    r"non-?stream|only supports? stream|stream=.?false|非流式|stream(?:ing)? (?:is required|only)",
    re.IGNORECASE,
)

_MAX_CHARS = 10_000
_MAX_MODELS = 1000
_MAX_REFUSALS = 32


def refused_fields(error: ProviderFailed, sampling: Sampling) -> frozenset[str]:
    """Return the fields of a call's `sampling` that `error` says are refused.

    Empty if it is about something else. If only their values are refused, they are in the set too,
    as in `temperature=1.5`; of a `response_format`, its type always is.
    """
    text = _said(error)
    if error.status not in _STATUSES or not _REFUSES.search(text):
        return frozenset()
    refused = {name: value for name, value in _sent(sampling).items() if _NAMES[name].search(text)}
    values = [
        f"{name}={value}"
        for name, value in refused.items()
        if name == "response_format" or _OF_VALUE.search(text)
    ]
    return frozenset((*refused, *values))


def may_be_quoted(refused: Collection[str], request: Mapping[str, Json]) -> bool:
    """Return whether the messages or tools of `request` have the name of a field of `refused`.

    An error about them may quote them, and so seem to be about the field.
    """
    text = repr([request.get("messages"), request.get("tools")])
    return any(_NAMES[name].search(text) for name in refused if name in _NAMES)


def refuses_n(error: ProviderFailed) -> bool:
    """Return whether `error` says that a model gives one choice per call only."""
    text = _said(error)
    return error.status in _STATUSES and bool(_N.search(text) and _REFUSES.search(text))


def refuses_whole(error: ProviderFailed, chat: Chat) -> bool:
    """Return whether `error` says that a model gives its replies as streams only.

    Not if it may quote the messages.
    """
    told = _WHOLE.search(_said(error))
    return error.status in _STATUSES and told is not None and not _WHOLE.search(repr(chat))


def _said(error: ProviderFailed) -> str:
    """Return the beginning of what `error` and its cause say."""
    return f"{error} {str(error.__cause__ or '')[:_MAX_CHARS]}"


def _sent(sampling: Sampling) -> dict[str, object]:
    sent = {"temperature": sampling.temperature, "top_p": sampling.top_p, **sampling.fields}
    wanted = sampling.fields.get("response_format")
    if isinstance(wanted, dict):  # a host may know JSON mode only
        sent["response_format"] = wanted.get("type")
    return {name: sent[name] for name in _NAMES if sent.get(name) is not None}


SEVERAL: Final = frozenset({"n"})
"""The refusal of several choices per call."""

WHOLE: Final = frozenset({"whole"})
"""The refusal of replies that are not streamed."""


class Refusals:
    """The refusals of each model group. They last as long as the process.

    A refusal is a set of fields that a group does not take together; other fields do not matter.
    """

    def __init__(self) -> None:
        self._of: OrderedDict[str, list[frozenset[str]]] = OrderedDict()

    def add(self, model: str, refused: frozenset[str]) -> None:
        known = self._of.setdefault(model, [])
        self._of.move_to_end(model)
        if refused not in known:
            known.append(refused)
            del known[:-_MAX_REFUSALS]
        while len(self._of) > _MAX_MODELS:
            self._of.popitem(last=False)

    def takes_n(self, model: str) -> bool:
        """Return whether the group has not refused a call for several choices."""
        return SEVERAL not in self._of.get(model, ())

    def only_streams(self, model: str) -> bool:
        """Return whether the group has refused a call because it was not streamed."""
        return WHOLE in self._of.get(model, ())

    def takes(self, model: str, sampling: Sampling) -> bool:
        """Return whether no refusal is about `sampling`."""
        known = self._of.get(model)
        if not known:
            return True
        sent = _sent(sampling)
        present = sent.keys() | {f"{name}={value}" for name, value in sent.items()}
        return not any(refused <= present for refused in known)


REFUSALS: Final = Refusals()
"""Those of this process."""
