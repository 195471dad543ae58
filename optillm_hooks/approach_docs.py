"""What an approach's docstring and its parameters say, for tables and pages."""

import re
from typing import Final

from pydantic.fields import FieldInfo

from optillm_hooks.registry import Approach

_GOOD_FOR: Final = re.compile(r"^Good for: (.+)\.$", re.MULTILINE)
_SIGNS: Final = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "max_length": "length ≤"}


def summary(approach: Approach) -> str:
    """Return the summary of an approach: the first paragraph of its docstring, without its name."""
    first = approach.doc.split("\n\n", 1)[0].replace("\n", " ")
    return first.split(": ", 1)[-1]


def worth(approach: Approach) -> str:
    """Return when an approach is worth its cost, as its docstring says; "" if it does not."""
    _, _, said = approach.doc.partition("\nWorth it when: ")
    return " ".join(f"{said}\n".partition(".\n")[0].split())


def good_for(approach: Approach) -> str:
    """Return the group of an approach, as its docstring says; "" if it does not."""
    said = _GOOD_FOR.search(approach.doc)
    return said[1] if said else ""


def type_name(field: FieldInfo) -> str:
    """Return the type of a parameter as words, such as "int or None"."""
    annotation = field.annotation
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    return text.replace("typing.", "").replace("|", "or").replace("NoneType", "None")


def bounds(field: FieldInfo) -> str:
    """Return the bounds of a parameter, such as "≥ 1, ≤ 64"; "" if it has none."""
    return ", ".join(
        f"{sign} {getattr(rule, name)}"
        for rule in field.metadata
        for name, sign in _SIGNS.items()
        if getattr(rule, name, None) is not None
    )
