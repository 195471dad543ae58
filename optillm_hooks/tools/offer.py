"""What is offered to a model: tools under names and with schemas that every provider takes."""

import asyncio
import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from optillm_hooks.services import Tool
from optillm_hooks.types import Fields, Json

_MAX_NAME: Final = 64
_HASH: Final = 8
_MAX_DESCRIPTION: Final = 1024
_MAX_SCHEMA: Final = 16_384
"""Characters of a schema as JSON, which is sent with every call."""

_EXAMINED: Final = 4
"""Tools whose schemas are read, for each that is offered: a server may list thousands."""

_REFUSED_AT_THE_TOP: Final = ("allOf", "anyOf", "oneOf", "not", "enum", "const", "$schema")
"""Keywords that providers refuse in the outermost schema. The server checks the arguments too."""


class Offer(NamedTuple):
    """Tools by the names under which a model sees them."""

    tools: Mapping[str, Tool]
    definitions: tuple[Json, ...]
    """The tools in the form of OpenAI's request field `tools`."""

    left_out: int
    """Tools with an unusable schema, and those beyond the maximum."""


async def make_offer(tools: Sequence[Tool], taken: Collection[str], *, at_most: int) -> Offer:
    """Return an offer of at most `at_most` of `tools`: the first ones of each server, in turn.

    Args:
        tools: as their servers describe them.
        taken: the names of the client's own tools.
        at_most: the maximum number of tools.
    """
    usable = dict[int, Fields]()
    for at in _in_turn(tools)[: at_most * _EXAMINED]:
        if len(usable) == at_most:
            break
        await asyncio.sleep(0)  # a schema that is new takes milliseconds
        schema = usable_schema(tools[at].parameters)
        if schema is not None:
            usable[at] = schema
    offered: dict[str, Tool] = {}
    definitions: list[Json] = []
    for at, schema in sorted(usable.items()):
        tool = tools[at]
        name = usable_name(tool.name, {*taken, *offered})
        offered[name] = tool
        function: Json = {
            "name": name,
            "description": tool.description[:_MAX_DESCRIPTION],
            "parameters": dict(schema),
        }
        definitions.append({"type": "function", "function": function})
    return Offer(offered, tuple(definitions), len(tools) - len(offered))


def _in_turn(tools: Sequence[Tool]) -> list[int]:
    """Return the indices of `tools`, so that one server with many does not displace the others."""
    servers = Counter[str]()
    turns = list[int]()
    for tool in tools:
        turns.append(servers[tool.server])
        servers[tool.server] += 1
    return sorted(range(len(tools)), key=turns.__getitem__)


def usable_name(name: str, taken: Collection[str]) -> str:
    """Return a name of 1 to 64 letters, digits, `_` and `-` that begins with a letter or `_`.

    It is `name` itself if that is such a name and not among `taken`. Otherwise a hash of it keeps
    it apart from others, and the same tool has the same name in every request.
    """
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", name[:_MAX_NAME])
    if not re.match(r"[A-Za-z_]", plain):
        plain = f"tool_{plain}"
    usable, tries = (plain if plain == name else _hashed(plain, name)), 0
    while usable in taken:
        tries += 1
        usable = _hashed(plain, f"{tries} {name}")
    return usable


def _hashed(plain: str, text: str) -> str:
    digest = hashlib.sha256(text.encode(errors="replace")).hexdigest()[:_HASH]
    return f"{plain[: _MAX_NAME - _HASH - 1]}_{digest}"


def usable_schema(schema: Fields) -> Fields | None:
    """Return the schema of a tool's arguments as providers take it; None if it is of no use."""
    try:
        text = json.dumps(schema)
        if len(text) > _MAX_SCHEMA or not _is_valid(text):
            return None
    except (RecursionError, TypeError, ValueError):
        return None
    kept = {name: value for name, value in schema.items() if name not in _REFUSED_AT_THE_TOP}
    return {**kept, "type": "object", "properties": kept.get("properties") or {}}


@lru_cache(maxsize=1024)
def _is_valid(text: str) -> bool:
    """Return whether a text of JSON is the schema of an object."""
    from jsonschema import Draft202012Validator as Dialect  # slow to import

    schema = json.loads(text)
    if not isinstance(schema, dict) or schema.get("type", "object") != "object":
        return False
    return bool(Dialect(Dialect.META_SCHEMA).is_valid(schema))
