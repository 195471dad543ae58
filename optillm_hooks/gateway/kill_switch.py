"""The kill switch: every approach becomes a plain call of its base model.

The operator turns it for the whole proxy (`OPTILLM_DISABLED` in the environment), or for a virtual
key or a team (`optillm: off` in its metadata).
"""

from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from typing import Final

from litellm.proxy._types import UserAPIKeyAuth

from optillm_hooks.budget import Limits
from optillm_hooks.errors import RequestRejected
from optillm_hooks.gateway.selection import Selection
from optillm_hooks.pipeline.expression import Call
from optillm_hooks.pipeline.plan import PASS_THROUGH, Plan, resolve
from optillm_hooks.settings import approaches_disabled

SWITCHED_OFF: Final = "switched_off"
"""How reports, headers and metrics call a plain answer in place of an approach."""


def is_off(key: UserAPIKeyAuth | None) -> bool:
    """Return whether approaches are switched off for requests of `key`; None is outside a proxy."""
    if approaches_disabled():
        return True
    given = () if key is None else (key.metadata, key.team_metadata)
    return any(_says_off((metadata or {}).get("optillm")) for metadata in given)


def _says_off(value: object) -> bool:
    """Return whether metadata says off, which YAML reads as false."""
    return value is False or (isinstance(value, str) and value.strip().lower() == "off")


def as_plain(selection: Selection) -> Selection:
    """Return the plain call of the base model in place of what a request has selected.

    Raises:
        RequestRejected: it asks for a dry run, and the call would be a real one.
    """
    if selection.dry_run:
        raise RequestRejected(
            "approaches are switched off here, so there is no plan for a dry run to show",
            param="optillm_params",
        )
    return replace(
        selection,
        plan=_plain_plan(),
        limits=Limits(),
        asked=Limits(),
        named=(),
        given={},
        on_alias=False,
    )


@cache
def _plain_plan() -> Plan:
    return resolve(Call(PASS_THROUGH))


def check_one_base(requested: object, bases: Iterable[str]) -> None:
    """Refuse an alias whose deployments have several base models: none of them is its plain form.

    Raises:
        RequestRejected: the message names the base models.
    """
    named = sorted(set(bases))
    if len(named) > 1:
        raise RequestRejected(
            f"approaches are switched off here, and {requested!r} has several base models: "
            f"request one of {', '.join(map(repr, named))} instead",
            param="model",
        )
