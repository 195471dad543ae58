"""What an error of a limit says: which limit, its value, and who has set it."""

from typing import Any

import pytest

from tests.proxy import Proxy
from tests.upstream import HANG, Script, Upstream

ASKED = {"messages": [{"role": "user", "content": "What is 6 times 7?"}]}


@pytest.mark.parametrize(
    ("model", "fields", "told"),
    [
        (
            "bon-base",
            {"optillm_limits": {"max_tokens_total": 1}},
            "no room left under max_tokens_total (max_tokens_total is 1; it is set by "
            "optillm_limits of the request)",
        ),
        (
            "bon-base",
            {"optillm_limits": {"deadline_s": 0.05}},
            "(deadline_s is 0.05; it is set by optillm_limits of the request)",
        ),
        (
            "hasty",
            {},
            "(deadline_s is 0.5; it is set by model_info.optillm of the alias)",
        ),
        ("bon-base", {"timeout": 0.2}, "(LiteLLM's own timeouts left 0.2 s)"),
    ],
    ids=["tokens of the request", "deadline of the request", "alias", "LiteLLM's timeout"],
)
def test_an_error_names_the_limit_its_value_and_its_place(
    proxy: Proxy, upstream: Upstream, model: str, fields: dict[str, Any], told: str
) -> None:
    upstream.play(Script(fault=lambda _: HANG))
    answer = proxy.post("/v1/chat/completions", {"model": model, **ASKED, **fields})
    assert told in answer.json()["error"]["message"]
