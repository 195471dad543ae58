"""The configuration of the proxy that the modules share which need no keys and no settings."""

from tests.proxy import Config, alias, hooked_config, model_group
from tests.upstream import Upstream

MANY = ("bon", "moa", "self_consistency", "moa|bon", "re2&moa")
"""Approaches of several calls, each behind an alias `hurried-...` with a deadline."""

DEADLINE_S = 6.0


def shared_config(upstream: Upstream) -> Config:
    """Return models, right aliases and wrong ones over the scripted provider."""
    return hooked_config(
        [
            model_group("base", upstream.url),
            model_group("a-b", upstream.url),
            model_group("gpt-4o-mini", upstream.url),  # LiteLLM knows which fields it takes
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
            alias("reread", "re2"),
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
        ]
    )
