"""Budgets and several requests at once: who is served, and by how much a budget is exceeded."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.proxy import PRICE, Proxy, alias, hooked_config, model_group
from tests.upstream import Billed, Call, Script, Upstream, differing

BUDGET = 0.05
FORMS: dict[str, dict[str, Any]] = {
    "plain": {"model": "base"},
    "body": {"model": "base", "optillm_approach": "bon(n=4)"},
    "prefix": {"model": "bon(n=4)-base"},
    "alias": {"model": "careful"},
}
OF_MODEL = {"single": {"budget_limit": BUDGET, "time_period": "1d"}}
OWNERS: dict[str, dict[str, object]] = {
    "key": {"max_budget": BUDGET},
    "user": {"user_id": "u", "user_max_budget": BUDGET},
    "team": {"team_id": "t", "team_max_budget": BUDGET},
    "model": {"model_max_budget": OF_MODEL},
}
KEYS: dict[str, dict[str, object]] = {
    **{
        f"sk-{form}-{number}": {"models": [], "max_budget": BUDGET}
        for form in FORMS
        for number in (2, 6)
    },
    **{f"sk-dear-{owner}": {"models": [], **fields} for owner, fields in OWNERS.items()},
    "sk-dear-together": {"models": [], "max_budget": BUDGET},
    "sk-roomy": {"models": [], "max_budget": 1000.0},
}


class Dear(Script):
    """A provider whose replies are long: each costs a fifth of the budget."""

    def bill(self, call: Call, choices: int) -> Billed:  # noqa: ARG002
        return Billed(prompt_tokens=100, completion_tokens=1250 * choices)


CALL_USD = Billed(100, 1250).cost(PRICE.prompt, PRICE.completion)


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Proxy]:
    models = [
        model_group("base", upstream.url),
        model_group("single", upstream.url, model="cerebras/single"),
        alias("careful", "bon(n=4)"),
    ]
    with Proxy(hooked_config(models), tmp_path_factory.mktemp("proxy"), keys=KEYS) as running:
        yield running


def ask(proxy: Proxy, key: str, **body: Any) -> httpx.Response:
    messages = [{"role": "user", "content": "What is 6 times 7?"}]
    url, headers = f"{proxy.url}/v1/chat/completions", {"authorization": f"Bearer {key}"}
    return httpx.post(url, json={"messages": messages, **body}, headers=headers, timeout=60)


def at_once(proxy: Proxy, key: str, number: int, **body: Any) -> list[httpx.Response]:
    with ThreadPoolExecutor(number) as pool:
        sent = [pool.submit(ask, proxy, key, **body) for _ in range(number)]
        return [each.result() for each in sent]


@pytest.mark.parametrize("number", [2, 6])
@pytest.mark.parametrize("form", FORMS)
def test_requests_at_once_do_not_refuse_each_other(
    proxy: Proxy, upstream: Upstream, form: str, number: int
) -> None:
    upstream.play(Script(latency_s=0.2))
    answers = at_once(proxy, f"sk-{form}-{number}", number, **FORMS[form])
    served = [answer for answer in answers if answer.status_code == 200]
    assert len(served) >= 1, [answer.text for answer in answers]
    if form in ("prefix", "alias"):  # LiteLLM reserves nothing for them
        assert len(served) == number
    if form != "plain":
        assert [answer.json()["optillm"]["stopped_by"] for answer in served] == [None] * len(served)


@pytest.mark.parametrize("owner", OWNERS)
def test_the_calls_of_a_plan_exceed_a_budget_by_one_call_at_most(
    proxy: Proxy, upstream: Upstream, owner: str
) -> None:
    upstream.play(Dear(reply=differing, latency_s=0.05))
    answer = ask(proxy, f"sk-dear-{owner}", model="self_consistency(n=12)-single")
    assert answer.status_code == 200, answer.text
    assert answer.json()["optillm"]["stopped_by"] == "caller_budget"
    spent = upstream.bill.cost(PRICE.prompt, PRICE.completion)
    assert BUDGET <= spent <= BUDGET + 1.01 * CALL_USD


def test_so_do_those_of_several_plans(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Dear(reply=differing, latency_s=0.05))
    answers = at_once(proxy, "sk-dear-together", 4, model="self_consistency(n=6)-single")
    assert any(answer.status_code == 200 for answer in answers)
    spent = upstream.bill.cost(PRICE.prompt, PRICE.completion)
    assert BUDGET <= spent <= BUDGET + 1.01 * CALL_USD


def test_a_budget_with_room_keeps_calls_concurrent(proxy: Proxy, upstream: Upstream) -> None:
    for latency_s in (0.5, 4.0):  # a busy machine may begin the last when the first has ended
        upstream.play(Script(reply=differing, latency_s=latency_s))
        answer = ask(proxy, "sk-roomy", model="self_consistency(n=6;confidence=1)-single")
        assert answer.status_code == 200
        if upstream.max_concurrency == 6:
            break
    assert upstream.max_concurrency == 6
