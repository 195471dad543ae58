"""Scoring routes as LiteLLM's SDK calls them: what the replies of hosts mean, and bad ones."""

import asyncio
from collections.abc import Iterator
from typing import Any

import litellm
import pytest
from litellm.utils import custom_llm_setup

from optillm_hooks.errors import ProviderFailed
from optillm_hooks.gateway import scorer
from optillm_hooks.gateway.caller import Caller
from optillm_hooks.gateway.model_facts import cached_model_facts
from optillm_hooks.gateway.router_scorer import RouterScorer, as_text
from optillm_hooks.types import Message
from tests.json_host import json_host

CHAT = (Message("user", "Which?"),)


@pytest.fixture(autouse=True)
def _provider(monkeypatch: pytest.MonkeyPatch) -> None:
    handler = {"provider": "optillm-score", "custom_handler": scorer}
    monkeypatch.setattr(litellm, "custom_provider_map", [handler])
    custom_llm_setup()


@pytest.fixture
def reply() -> dict[str, Any]:
    """What the host answers: its status and its document."""
    return {"status": 200}


@pytest.fixture
def router(reply: dict[str, Any]) -> Iterator[litellm.Router]:
    def answer(_path: str, _body: Any) -> tuple[int, Any]:
        return reply["status"], reply["document"]

    with json_host(answer) as url:
        groups = [
            {
                "model_name": route,
                "litellm_params": {"model": "optillm-score/m", "api_base": f"{url}/{route}/"},
            }
            for route in ("score", "pooling", "rerank")
        ]
        yield litellm.Router(model_list=groups, num_retries=0)


def scores(router: litellm.Router, route: str, count: int) -> list[float]:
    found = RouterScorer(route, router, Caller(), cached_model_facts(router))
    texts = [f"answer {number}" for number in range(count)]
    return list(asyncio.run(found.score(CHAT, texts)).values)


@pytest.mark.parametrize(
    ("pooled", "reward"),
    [
        pytest.param([-3.25], -3.25, id="a sequence"),
        pytest.param([0.2, 0.8], 0.8, id="classes, of which the last is good"),
        pytest.param([[9.0], [1.0], [2.5]], 2.5, id="tokens: the last one's"),
        pytest.param([[0.1, 0.9], [0.6, 0.4], [0.2, 0.8]], 0.4, id="steps: the worst one's"),
    ],
)
def test_what_a_model_pools(
    router: litellm.Router, reply: dict[str, Any], pooled: Any, reward: float
) -> None:
    reply["document"] = {"data": [{"index": 0, "object": "pooling", "data": pooled}]}
    assert scores(router, "pooling", 1) == [reward]


def test_scores_are_in_the_order_of_the_texts(
    router: litellm.Router, reply: dict[str, Any]
) -> None:
    entries = [{"index": 2, "score": 0.9}, {"index": 0, "score": 0.5}, {"index": 1, "score": 0.1}]
    reply["document"] = entries
    assert scores(router, "rerank", 3) == [0.5, 0.1, 0.9]
    reply["document"] = {"data": entries}
    assert scores(router, "score", 3) == [0.5, 0.1, 0.9]


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"data": None},
        {"data": []},
        {"data": [{"index": 0}]},
        {"data": [{"index": 0, "score": "high"}]},
        {"error": "no"},
        [],
        None,
        "text",
    ],
)
@pytest.mark.parametrize("route", ["score", "rerank", "pooling"])
def test_a_reply_without_scores_is_a_failed_call(
    router: litellm.Router, reply: dict[str, Any], route: str, document: Any
) -> None:
    reply["document"] = document
    with pytest.raises(ProviderFailed, match="no scores"):
        scores(router, route, 1)


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422, 429, 500, 503])
def test_a_refusal_keeps_its_status(
    router: litellm.Router, reply: dict[str, Any], status: int
) -> None:
    reply |= {"status": status, "document": {"error": "the host says no"}}
    with pytest.raises(ProviderFailed, match="the host says no") as failed:
        scores(router, "score", 1)
    assert failed.value.status == (400 if status in (413, 422) else status)  # as LiteLLM has it


def test_a_conversation_as_one_text() -> None:
    system, user = Message("system", "Be terse."), Message("user", "Hi?")
    assert as_text((user,)) == "Hi?"
    assert as_text((system, user)) == "Be terse.\n\nHi?"
    called = Message("assistant", None, {"tool_calls": []})
    result = Message("tool", "42", {"tool_call_id": "1"})
    assert as_text((user, called, result)) == "user: Hi?\n\ntool: 42"
