"""A request without a valid key gets a clear 401 from the shipped proxy, which has no database."""

from typing import Any

import httpx
import openai
import pytest

from tests.proxy import Proxy

ROUTES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "base", "messages": [{"role": "user", "content": "Hi"}]},
    "/v1/messages": {
        "model": "base",
        "max_tokens": 9,
        "messages": [{"role": "user", "content": "Hi"}],
    },
    "/v1/responses": {"model": "base", "input": "Hi"},
    "/v1/completions": {"model": "base", "prompt": "Hi"},
}
WITHOUT = {
    "none": {},
    "empty": {"authorization": "Bearer"},
    "no scheme": {"authorization": ""},
}
WRONG = {
    "wrong": {"authorization": "Bearer sk-wrong"},
    "not LiteLLM's": {"authorization": "Bearer wrong"},
    "Anthropic's header": {"x-api-key": "sk-ant-wrong"},
}


def refused(proxy: Proxy, route: str, headers: dict[str, str]) -> str:
    given = httpx.post(f"{proxy.url}{route}", json=ROUTES[route], headers=headers, timeout=60)
    assert given.status_code == 401, given.text
    message = given.json()["error"]["message"]
    assert "Traceback" not in message
    return str(message)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("headers", WITHOUT.values(), ids=WITHOUT)
def test_a_missing_key_is_asked_for(proxy: Proxy, route: str, headers: dict[str, str]) -> None:
    assert "Authorization: Bearer" in refused(proxy, route, headers)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("headers", WRONG.values(), ids=WRONG)
def test_an_unknown_key_is_called_so(proxy: Proxy, route: str, headers: dict[str, str]) -> None:
    message = refused(proxy, route, headers)
    assert "key" in message.lower()
    assert "db" not in message.lower().split()


def test_the_models_page_says_so_too(proxy: Proxy) -> None:
    for headers in ({}, {"authorization": "Bearer sk-wrong"}):
        assert httpx.get(f"{proxy.url}/v1/models", headers=headers, timeout=60).status_code == 401


def test_an_sdk_raises_its_error_of_authentication(proxy: Proxy) -> None:
    with (
        openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="sk-wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError, match="not valid"),
    ):
        client.models.list()


def test_the_log_has_no_traceback_of_them(proxy: Proxy) -> None:
    assert "No module named 'prisma'" not in proxy.log


def test_the_master_key_is_still_taken(proxy: Proxy) -> None:
    headers = {"authorization": f"Bearer {proxy.master_key}"}
    assert httpx.get(f"{proxy.url}/v1/models", headers=headers, timeout=60).status_code == 200
