"""The client's `max_tokens` limits its answer, not the plans and judgements that lead to it."""

from typing import Any

import pytest

from tests.proxy import Proxy
from tests.upstream import Call, Reply, Script, Upstream

LIMIT = 300
WORKING = f"{'step ' * 800}\n1. one\n2. two\nVERDICT: CORRECT\nRATING: 1\nBEST: 1\nANSWER: 42"
ANSWERING = (
    "Above is a worked solution",
    "Below are observations",
    "Below is a plan",
    "Now answer the conversation",
)
"""Words of the prompts that ask for the user's answer."""

NAMES = ("cepo", "fusion", "mars", "moa", "plansearch", "pvg", "rsa", "rstar")


def limit_of(call: Call) -> int | None:
    found: int | None = call.body.get("max_completion_tokens", call.body.get("max_tokens"))
    return found


def at_length(call: Call, _choice: int) -> Reply:
    """Work at length, answer shortly, and stop at the limit as a provider does."""
    short = any(words in call.text for words in ANSWERING)
    words = ("It is 42." if short else WORKING).split(" ")
    limit = limit_of(call)
    if limit is None or len(words) <= limit:
        return Reply(" ".join(words))
    return Reply(" ".join(words[:limit]), finish_reason="length")


def ask(proxy: Proxy, model: str, **fields: object) -> dict[str, Any]:
    messages = [{"role": "user", "content": "What is 6 times 7?"}]
    body = {"model": model, "messages": messages, "max_tokens": LIMIT, **fields}
    response = proxy.post("/v1/chat/completions", body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def check_nothing_is_cut_off(proxy: Proxy, upstream: Upstream, model: str) -> None:
    upstream.play(Script(reply=at_length))
    found = ask(proxy, model)
    [choice] = found["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("It is 42.", "stop")
    assert found["optillm"]["degraded"] == []
    answers = [call for call in upstream.calls if limit_of(call) == LIMIT]
    assert answers
    assert all(any(words in call.text for words in ANSWERING) for call in answers)
    limits = {limit_of(call) for call in upstream.calls if call not in answers}
    assert all(limit is None or limit > len(WORKING.split()) for limit in limits)


@pytest.mark.parametrize("name", NAMES)
def test_no_working_is_cut_off(proxy: Proxy, upstream: Upstream, name: str) -> None:
    check_nothing_is_cut_off(proxy, upstream, f"{name}-base")


def test_work_has_a_limit_of_its_own(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script(reply=at_length))
    ask(proxy, "moa-base", optillm_params={"moa": {"draft_tokens": 900}})
    *work, answer = map(limit_of, upstream.calls)
    assert (set(work), answer) == ({900}, LIMIT)
