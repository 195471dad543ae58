"""Whether the Redis servers and databases that the YAML names can be reached."""

import logging
import socket
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from optillm_hooks.gateway.config_check.problem import Problem
from optillm_hooks.gateway.config_check.sections import Sections
from optillm_hooks.settings import variable

_TIMEOUT_S: Final = 2.0
_PORTS: Final = {"redis": 6379, "rediss": 6379, "postgres": 5432, "postgresql": 5432}


class _Service(NamedTuple):
    path: str
    host: str
    port: int


def unreachable(config: Sections) -> Iterator[Problem]:
    """Yield the services that accept no connection. It blocks, for seconds at most each."""
    for service in _services(config):
        try:
            socket.create_connection((service.host, service.port), _TIMEOUT_S).close()
        except OSError as exc:
            reason = exc.strerror or str(exc)
            yield Problem(
                service.path,
                f"no connection to {service.host}:{service.port} ({reason}): start it, or correct "
                "the address",
                logging.WARNING,
            )


def _services(config: Sections) -> Iterator[_Service]:
    cached = config.litellm.get("cache_params")
    if config.litellm.get("cache") is True and isinstance(cached, Mapping):
        yield from _of_redis("litellm_settings.cache_params.", cached)
    shared = config.general.get("coordination_redis")
    if isinstance(shared, Mapping):
        yield from _of_redis("general_settings.coordination_redis.", shared)
    yield from _of_redis("router_settings.redis_", _without_prefix(config.router, "redis_"))
    if "database_url" in config.general:
        yield from _of_url("general_settings.database_url", config.general["database_url"])
    else:
        yield from _of_url("DATABASE_URL", variable("DATABASE_URL"))
    ours = config.litellm.get("optillm_settings")
    store = ours.get("store") if isinstance(ours, Mapping) else None
    if isinstance(store, Mapping):
        yield from _of_url("litellm_settings.optillm_settings.store.url", store.get("url"))


def _without_prefix(settings: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {k.removeprefix(prefix): v for k, v in settings.items() if k.startswith(prefix)}


def _of_redis(path: str, given: Mapping[str, Any]) -> Iterator[_Service]:
    """Yield the server that `url`, or `host` and `port`, name; the path ends before their names."""
    if given.get("url"):
        yield from _of_url(f"{path}url", given["url"])
    elif isinstance(host := given.get("host"), str):
        port = str(given.get("port") or _PORTS["redis"])
        if port.isdecimal():
            yield _Service(f"{path}host", host, int(port))


def _of_url(path: str, url: object) -> Iterator[_Service]:
    try:
        parts = urlsplit(url if isinstance(url, str) else "")
        port = parts.port or _PORTS.get(parts.scheme.partition("+")[0])
    except ValueError:
        return
    if parts.hostname and port:
        yield _Service(path, parts.hostname, port)
