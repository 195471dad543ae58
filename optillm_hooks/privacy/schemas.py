"""Schemas of a request without what a pseudonym does not match: the form of a text, its length."""

from typing import Final

from optillm_hooks.types import Fields, Json

_FIELDS: Final = frozenset({"functions", "response_format", "tools"})
_FORMS: Final = frozenset({"format", "maxLength", "minLength", "pattern"})
_OF_NAMES: Final = frozenset({"$defs", "definitions", "properties"})
"""Objects whose keys are names of the client's own."""


def without_forms(fields: Fields) -> Fields:
    """Return the fields of a request, in whose schemas a text may have any form and length."""
    return {
        name: _without_forms(value, name) if name in _FIELDS else value
        for name, value in fields.items()
    }


def _without_forms(value: Json, name: str) -> Json:
    if isinstance(value, list):
        return [_without_forms(item, "") for item in value]
    if not isinstance(value, dict):
        return value
    if name in _OF_NAMES:
        return {key: _without_forms(item, "") for key, item in value.items()}
    return {
        key: _without_forms(item, key)
        for key, item in value.items()
        if key not in _FORMS or isinstance(item, dict | list)
    }
