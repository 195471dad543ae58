"""Which of an approach's own sampling fields a call is sent with.

An approach chooses a temperature, say, because it needs samples that differ; a model that refuses
the field answers as well without it. What the client sent is never left out here.
"""

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Final

from optillm_hooks.llm import ModelFacts
from optillm_hooks.types import Sampling

OPTIONAL: Final = ("reasoning_effort", "temperature", "tool_choice", "response_format", "top_p")
"""Fields of an approach that a call can do without, the most wanted first."""

Filled = Callable[[Sampling], Sampling]
"""Returns an approach's sampling with the client's fields where the approach has none."""


def chosen(own: Sampling) -> tuple[str, ...]:
    """Return the names of the optional fields that `own` has."""
    return tuple(
        name
        for name in OPTIONAL
        if own.fields.get(name) is not None or getattr(own, name, None) is not None
    )


def without(own: Sampling, names: Collection[str]) -> Sampling:
    """Return `own` without its optional fields `names`.

    A `response_format` becomes None: the client's, which is for another text, does not take its
    place.
    """
    fields = {name: value for name, value in own.fields.items() if name not in names}
    if "response_format" in names and "response_format" in own.fields:
        fields["response_format"] = None
    return replace(
        own,
        temperature=None if "temperature" in names else own.temperature,
        top_p=None if "top_p" in names else own.top_p,
        fields=fields,
    )


def sendable(own: Sampling, filled: Filled, facts: Callable[[], ModelFacts]) -> Sampling:
    """Return `own` without the optional fields that the model is known to refuse.

    It refuses some only in company: a temperature next to `top_p`, or while it reasons. Then the
    most wanted that it takes, together with what the client sent, are kept. The client's own
    `response_format` is no reason to leave any out: none of them takes its place.
    """

    def taken(own: Sampling) -> bool:
        sampling = filled(own)
        fields = {k: v for k, v in sampling.fields.items() if k != "response_format"}
        is_own = "response_format" in own.fields
        return facts().takes(sampling if is_own else replace(sampling, fields=fields))

    names = chosen(own)
    if not names or taken(own):
        return own
    refused = set(names)
    for name in names:
        if taken(without(own, refused - {name})):
            refused.remove(name)
    return without(own, refused)


def after_refusal(own: Sampling, refused: Collection[str]) -> Sampling | None:
    """Return `own` without the least wanted of its fields that are among `refused`.

    None if it has none of them: then the model refuses the request itself.
    """
    names = [name for name in chosen(own) if name in refused]
    return without(own, names[-1:]) if names else None


def with_room(own: Sampling, filled: Sampling, facts: Callable[[], ModelFacts]) -> Sampling:
    """Return `filled` with `max_tokens` for the thinking that it asks for, beside the reply's own.

    What a client or a limit allows stays as it is, and so does the model's maximum.
    """
    is_ours = filled.purpose != "answer" or filled.max_tokens == own.max_tokens
    if filled.max_tokens is None or not is_ours:
        return filled
    known = facts()
    needed = filled.max_tokens + known.thinking_tokens(filled)
    return replace(filled, max_tokens=min(needed, known.max_output_tokens or needed))
