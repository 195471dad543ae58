"""The ceilings of a virtual key and of its team: `optillm` in their metadata."""

import logging
from functools import cache

from litellm.proxy._types import UserAPIKeyAuth

from optillm_hooks.budget import Limits
from optillm_hooks.errors import RequestRejected
from optillm_hooks.gateway.operator_settings import valid_limits

_log = logging.getLogger(__name__)


def key_limits(key: UserAPIKeyAuth) -> Limits:
    """Return the stricter of the limits of a key and of its team, one by one.

    Raises:
        RequestRejected: they are not valid. The message names the metadata and the setting.
    """
    limits = Limits()
    for metadata, of in ((key.metadata, "key"), (key.team_metadata, "team")):
        given = (metadata or {}).get("optillm")
        if given is None:
            continue
        try:
            limits = limits.lowered(valid_limits(given, f"metadata.optillm of the {of}").limits())
        except RequestRejected as exc:
            _log_once(str(exc))
            raise
    return limits


@cache
def _log_once(problem: str) -> None:
    _log.error("%s", problem)
