"""Helpers of several test modules: proxy configurations, pairs of cases, a disconnecting client."""

import json
import socket
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from tests.proxy import ROOT, Config, Proxy, alias, hooked_config, model_group
from tests.upstream import Upstream

A = TypeVar("A")
B = TypeVar("B")

MANY = ("bon", "moa", "self_consistency", "moa|bon", "re2&moa")
"""Approaches of several calls, each behind an alias `hurried-...` with a deadline."""

DEADLINE_S = 6.0

POLICY = ROOT / "tests" / "golden" / "auto_policy.yaml"
THRIFTY_USD = 7e-4
"""The `max_cost_usd` of the alias `auto-thrifty`."""

STOCK_KEYS: dict[str, dict[str, object]] = {
    "sk-all": {"models": [], "key_alias": "all"},
    "sk-base-only": {"models": ["base"], "key_alias": "base-only"},
    "sk-poor": {"models": [], "max_budget": 1e-9, "key_alias": "poor"},
    "sk-slow": {"models": [], "rpm_limit": 1, "key_alias": "slow"},
}
"""Fields of virtual keys of the proxy without our hook."""


def shared_config(upstream: Upstream) -> Config:
    """Return the configuration of the proxy for modules that need no keys and no settings."""
    config = hooked_config(
        [
            model_group("base", upstream.url),
            model_group("a-b", upstream.url),
            model_group("gpt-4o-mini", upstream.url),  # LiteLLM knows which fields it takes
            model_group(
                "claude",
                upstream.url.removesuffix("/v1"),
                model="anthropic/claude-sonnet-4-5",
            ),
            model_group("single", upstream.url, model="cerebras/single"),  # known not to take n
            {
                "model_name": "unpriced",
                "litellm_params": {
                    "model": "openai/x",
                    "api_base": upstream.url,
                    "api_key": "none",
                },
            },
            alias("careful", "self_consistency(n=3)"),
            alias("voted", "self_consistency(n=3)", base="gpt-4o-mini"),
            alias("reread", "re2"),
            alias("shown", "moa", progress=True),
            alias("fixed", "re2", locked=True),
            *(alias(f"hurried-{name}", name, deadline_s=DEADLINE_S) for name in MANY),
            alias("hasty", "moa", deadline_s=0.5),
            alias("plainly", "moa", on_error="plain", deadline_s=DEADLINE_S),
            alias("metered", "re2", max_cost_usd=1.0, base="unpriced"),
            alias("nested", "re2", base="careful"),
            alias("lost", "re2", base="no-such-model"),
            alias("broken", "re2("),
            alias("unknown", "no_such_approach"),
            alias("wrong", "bon(n=0)"),
            alias("typo", "re2", dead_line=3),
            alias("dear", "bon(n=64;ratings=16)"),
            alias("tested", "plansearch", code_runner="monty"),
            alias("auto-few-calls", "auto(policy=mine)", max_calls=3),
            alias("auto-thrifty", "auto(policy=mine)", max_cost_usd=THRIFTY_USD),
        ],
        optillm_settings={"auto": {"policies": {"mine": str(POLICY)}}},
    )
    config["router_settings"]["model_group_alias"] = {"mapped": "voted"}
    return config


def pairs(first: Iterable[A], second: Iterable[B]) -> list[tuple[A, B]]:
    """Return pairs in which each of `first` and each of `second` occurs at least once.

    For cases whose whole product is tested at a lower level.
    """
    ones, others = list(first), list(second)
    number = max(len(ones), len(others))
    return [(ones[i % len(ones)], others[i % len(others)]) for i in range(number)]


def hang_up(
    proxy: Proxy,
    upstream: Upstream,
    route: str,
    body: Mapping[str, object],
    *,
    done: int,
    key: str | None = None,
    headers: Mapping[str, str] | None = None,
    until: Callable[[], None] = lambda: None,
) -> None:
    """Send a request, and close the connection once a call beyond the first `done` hangs.

    Before that, wait for `until` too.
    """
    content = json.dumps(body)
    more = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    head = (
        f"POST {route} HTTP/1.1\r\nhost: proxy\r\n"
        f"authorization: Bearer {key or proxy.master_key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(content)}\r\n{more}\r\n"
    )
    with socket.create_connection(("127.0.0.1", proxy.port)) as connection:
        connection.sendall(f"{head}{content}".encode())
        upstream.wait_until(lambda u: len(u.calls) > done, within_s=30)
        until()
