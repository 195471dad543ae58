"""Fields of local models through the proxy: on every route, and with an approach in between."""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import httpx
import pytest

from tests.local_provider import tiny
from tests.proxy import Proxy, hooked_config

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking %}<think>\n{% endif %}{% endif %}"
)
OPENED = 2
"""Tokens that the template adds if thinking is switched on."""

END_OF_THOUGHT = tiny.tokenizer().convert_tokens_to_ids("</think>")
ROUTES = {
    "chat": "/v1/chat/completions",
    "messages": "/v1/messages",
    "responses": "/v1/responses",
}
MODELS = ("mine", "none-mine", "re2-mine")


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    folder = tmp_path_factory.mktemp("tiny")
    tiny.model(4096).save_pretrained(folder)
    tiny.tokenizer(TEMPLATE).save_pretrained(folder)
    spec = {"path": str(folder), "device": "cpu", "threads": 1}
    allowed = ["reasoning_effort", "thinking"]
    models = [
        {
            "model_name": "mine",
            "litellm_params": {"model": "optillm-local/mine"},
            "model_info": {"optillm_local": spec},
        },
        {
            "model_name": "by-hand",
            "litellm_params": {"model": "optillm-local/mine", "allowed_openai_params": allowed},
            "model_info": {"optillm_local": spec},
        },
    ]
    with Proxy(hooked_config(models), tmp_path_factory.mktemp("proxy"), ledger=False) as running:
        yield running


def post(proxy: Proxy, route: str, model: str, fields: Mapping[str, Any]) -> httpx.Response:
    begun = {"model": model, "ignore_eos": True, "temperature": 0}
    chat = [{"role": "user", "content": "Hi"}]
    if route == "responses":
        body = {**begun, "input": "Hi", "max_output_tokens": 9, **fields}
    else:
        body = {**begun, "messages": chat, "max_tokens": 9, **fields}
    return proxy.post(ROUTES[route], body)


@cache
def plain(proxy: Proxy, route: str, model: str) -> int:
    """Return the tokens of the prompt of a request without further fields."""
    return usage(post(proxy, route, model, {}))[0]


def usage(response: httpx.Response) -> tuple[int, int]:
    """Return the tokens of the prompt and of the completion."""
    assert response.status_code == 200, response.text
    counted = response.json()["usage"]
    names = [("prompt_tokens", "completion_tokens"), ("input_tokens", "output_tokens")]
    prompt, completion = next(pair for pair in names if pair[0] in counted)
    cached = counted.get("cache_read_input_tokens", 0)
    return counted[prompt] + cached, counted[completion]


KWARGS = {"chat_template_kwargs": {"enable_thinking": True}}
SWITCHES: list[tuple[str, dict[str, Any], int]] = [
    *((route, KWARGS, OPENED) for route in ROUTES),
    *((route, {"extra_body": KWARGS}, OPENED) for route in ROUTES),
    ("chat", {"reasoning_effort": "low"}, OPENED),
    ("chat", {"reasoning_effort": "none"}, 0),
    ("responses", {"reasoning": {"effort": "high", "summary": "auto"}}, OPENED),
    ("chat", {"thinking": {"type": "enabled", "budget_tokens": 1024}}, OPENED),
    ("messages", {"thinking": {"type": "enabled", "budget_tokens": 1024}}, OPENED),
    ("messages", {"thinking": {"type": "disabled"}}, 0),
]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("route", "fields", "tokens"), SWITCHES)
def test_thinking_is_switched_on_every_route(
    proxy: Proxy, model: str, route: str, fields: dict[str, Any], tokens: int
) -> None:
    prompt, _ = usage(post(proxy, route, model, fields))
    assert prompt - plain(proxy, route, model) == tokens


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("route", ["chat", "messages"])
def test_a_budget_of_thinking_arrives(proxy: Proxy, model: str, route: str) -> None:
    endless = {"extra_body": {"logit_bias": {END_OF_THOUGHT: -100}}, "max_tokens": 24}
    for budget, answers in ((2, True), (1024, False)):
        thinking = {"type": "enabled", "budget_tokens": budget}
        reply = post(proxy, route, model, {**endless, "thinking": thinking}).json()
        if route == "chat":
            text = reply["choices"][0]["message"]["content"]
        else:
            text = "".join(block.get("text", "") for block in reply["content"])
        assert bool(text) == answers


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("route", ROUTES)
def test_other_fields_arrive(proxy: Proxy, model: str, route: str) -> None:
    every = list(range(len(tiny.tokenizer())))
    _, written = usage(post(proxy, route, model, {"stop_token_ids": every[1:129]}))
    _, least = usage(post(proxy, route, model, {"stop_token_ids": every[:128], "min_tokens": 9}))
    assert written < least == 9


def test_a_deployment_can_allow_the_fields_itself(proxy: Proxy) -> None:
    effort = {"reasoning_effort": "low"}
    prompt, _ = usage(post(proxy, "chat", "by-hand", effort))
    assert prompt - plain(proxy, "chat", "mine") == OPENED


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"chat_template_kwargs": 3}, "chat_template_kwargs: must be an object with keys"),
        ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs.tools: a request cannot"),
        ({"extra_body": {"min_tokens": "many"}}, "min_tokens: must be a whole number"),
    ],
    ids=["type", "reserved", "extra_body"],
)
def test_a_wrong_field_is_a_400_that_names_it(
    proxy: Proxy, model: str, route: str, fields: dict[str, Any], message: str
) -> None:
    refusal = post(proxy, route, model, fields)
    assert refusal.status_code == 400, refusal.text
    assert message in refusal.text


@pytest.mark.parametrize("model", MODELS[:2])
@pytest.mark.parametrize(
    ("route", "fields"),
    [
        ("chat", {"continue_final_message": True, "add_generation_prompt": False}),
        ("messages", {}),
    ],
)
def test_a_message_is_continued(
    proxy: Proxy, model: str, route: str, fields: dict[str, Any]
) -> None:
    begun = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "x"}]
    prompt, written = usage(post(proxy, route, model, {"messages": begun, **fields}))
    assert (prompt - plain(proxy, route, model), written) == (1, 9)
