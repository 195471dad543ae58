"""What is wrong with a value, in words that say what to write instead of it."""

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_SAID: Final = {
    "missing": "is missing",
    "extra_forbidden": "is unknown",
    "json_invalid": "is not valid JSON",
    "tuple_type": "must be a list, such as [a, b]",
    "list_type": "must be a list, such as [a, b]",
    "string_type": "must be a text",
    **dict.fromkeys(
        ("dict_type", "mapping_type", "model_type", "model_attributes_type"),
        "must be an object with keys",
    ),
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false"),
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number"),
    "finite_number": "must be a finite number",
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "must be a whole number"),
}
"""By pydantic's type of the error."""

_SUBJECT: Final = re.compile(r"^(?:Input|String|Tuple|Dictionary|List|Value|Set) should")
_BY_THE_WAY: Final = re.compile(r" after validation| \(or equivalent after parsing\)")


def wrong_value(error: "ErrorDetails") -> str:
    """Return what pydantic found, to be put after the name of a field."""
    said = _SAID.get(error["type"])
    if said is not None:
        return said
    own = error["msg"].removeprefix("Value error, ")
    return _BY_THE_WAY.sub("", _SUBJECT.sub("must", own))
