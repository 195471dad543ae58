"""Every request field reaches the calls it is meant for, with `drop_params` on and off.

Where possible the expectation is taken from LiteLLM itself: an approach of one call must send the
provider every field that a plain call to the base model sends.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.gateway.shared import pairs
from tests.proxy import Proxy, hooked_config, model_group
from tests.upstream import Call, Script, Upstream, differing

QUESTION = [{"role": "user", "content": "What is 6 times 7?"}]
TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}
SCHEMA = {
    "type": "json_schema",
    "json_schema": {"name": "answer", "schema": {"type": "object", "properties": {}}},
}
CHAT_FIELDS: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 0.3},
    "temperature zero": {"temperature": 0},
    "top_p": {"top_p": 0.4},
    "max_tokens": {"max_tokens": 77},
    "max_completion_tokens": {"max_completion_tokens": 78},
    "stop": {"stop": ["END", "FIN"]},
    "stop, a text": {"stop": "END"},
    "seed": {"seed": 11},
    "presence_penalty": {"presence_penalty": 0.5},
    "frequency_penalty": {"frequency_penalty": 0.6},
    "logit_bias": {"logit_bias": {"42": 1}},
    "logprobs": {"logprobs": True, "top_logprobs": 2},
    "response_format": {"response_format": {"type": "text"}},
    "tools": {"tools": [TOOL], "tool_choice": "auto", "parallel_tool_calls": False},
    "user": {"user": "someone"},
    "reasoning_effort": {"reasoning_effort": "low"},
    "verbosity": {"verbosity": "low"},
    "thinking": {"thinking": {"type": "enabled", "budget_tokens": 1024}},
    "service_tier": {"service_tier": "flex"},
    "store": {"store": True},
    "prediction": {"prediction": {"type": "content", "content": "42"}},
    "modalities": {"modalities": ["text"]},
    "prompt_cache_key": {"prompt_cache_key": "k"},
    "safety_identifier": {"safety_identifier": "s"},
    "metadata": {"metadata": {"mine": "1"}},
    "web_search_options": {"web_search_options": {"search_context_size": "low"}},
    "extra_headers": {"extra_headers": {"x-mine": "1"}},
    "top_k, of another provider": {"top_k": 5},
    "min_p, of another provider": {"min_p": 0.1},
    "a field of nobody": {"my_field": {"a": [1, None]}},
    "many": {"temperature": 0.3, "top_p": 0.4, "seed": 1, "stop": ["X"], "max_tokens": 9},
}


DROPPED = ("temperature", "thinking", "logit_bias", "top_k, of another provider", "many")
"""Fields of `CHAT_FIELDS` that are sent with `drop_params` on too."""


@pytest.fixture(scope="module")
def dropping(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Proxy]:
    """A proxy with `drop_params` on."""
    known = "gpt-4o-mini"  # LiteLLM sends some fields only to models that it knows to take them
    groups = [model_group(name, upstream.url) for name in ("base", known)]
    config = hooked_config(groups, drop_params=True)
    with Proxy(config, tmp_path_factory.mktemp("proxy")) as running:
        yield running


def reply(_call: Call, _choice: int) -> str:
    return '{"answer": 42}'


def sent(call: Call) -> dict[str, Any]:
    """Return the fields of a call besides the conversation, equivalent forms made equal."""
    body = {
        name: value
        for name, value in call.body.items()
        if name not in {"messages", "stream", "stream_options"} and (name, value) != ("n", 1)
    }
    if "max_completion_tokens" in body:
        body["max_tokens"] = body.pop("max_completion_tokens")
    if isinstance(body.get("stop"), str):
        body["stop"] = [body["stop"]]
    return body


def ask(proxy: Proxy, route: str, model: str, fields: Mapping[str, Any]) -> int:
    return proxy.post(route, {"model": model, **fields}).status_code


def assert_carries_the_same(
    proxy: Proxy, upstream: Upstream, fields: Mapping[str, Any], *, stream: bool
) -> None:
    """Assert that an approach of one call sends what a plain call sends."""
    upstream.play(Script(reply=reply))
    request = {"messages": QUESTION, "stream": stream, **fields}
    plain = ask(proxy, "/v1/chat/completions", "base", request)
    carried = [sent(call) for call in upstream.calls]
    upstream.play(Script(reply=reply))
    assert ask(proxy, "/v1/chat/completions", "re2-base", request) == plain
    assert [sent(call) for call in upstream.calls] == carried


@pytest.mark.parametrize(("name", "stream"), [*pairs(CHAT_FIELDS, [True, False]), ("many", False)])
def test_a_single_inner_call_carries_what_a_plain_call_carries(
    proxy: Proxy, upstream: Upstream, name: str, stream: bool
) -> None:
    assert_carries_the_same(proxy, upstream, CHAT_FIELDS[name], stream=stream)


@pytest.mark.parametrize(("name", "stream"), pairs(DROPPED, [False, True]))
def test_so_where_litellm_drops_what_a_model_does_not_take(
    dropping: Proxy, upstream: Upstream, name: str, stream: bool
) -> None:
    assert_carries_the_same(dropping, upstream, CHAT_FIELDS[name], stream=stream)


def assert_taken_as_by_a_plain_call(
    proxy: Proxy, upstream: Upstream, model: str, fields: Mapping[str, Any]
) -> None:
    upstream.play(Script(reply=reply))
    request = {"messages": QUESTION, **fields}
    plain = ask(proxy, "/v1/chat/completions", "base", request)
    assert ask(proxy, "/v1/chat/completions", model, request) == plain


SEVERAL_CALLS = ("bon-base", "moa-base", "self_consistency-base")


@pytest.mark.parametrize(("model", "name"), pairs(SEVERAL_CALLS, CHAT_FIELDS))
def test_no_field_that_a_plain_call_takes_is_refused(
    proxy: Proxy, upstream: Upstream, model: str, name: str
) -> None:
    assert_taken_as_by_a_plain_call(proxy, upstream, model, CHAT_FIELDS[name])


@pytest.mark.parametrize(("model", "name"), pairs(SEVERAL_CALLS, DROPPED))
def test_nor_where_litellm_drops_fields(
    dropping: Proxy, upstream: Upstream, model: str, name: str
) -> None:
    assert_taken_as_by_a_plain_call(dropping, upstream, model, CHAT_FIELDS[name])


SHAPING = {"stop": ["END"], "seed": 5, "top_p": 0.4, "logit_bias": {"42": 1}, "max_tokens": 999}


@pytest.mark.parametrize(("model", "judges"), [("bon-base", 5), ("moa-base", 1)])
def test_judges_get_no_field_of_the_clients_sampling(
    proxy: Proxy, upstream: Upstream, model: str, judges: int
) -> None:
    upstream.play(Script(reply=differing))
    assert ask(proxy, "/v1/chat/completions", model, {"messages": QUESTION, **SHAPING}) == 200
    judging = [call for call in upstream.calls if not set(call.body) & {"logit_bias", "top_p"}]
    assert len(judging) == judges
    assert all(not set(call.body) & {"stop", "logit_bias", "top_p"} for call in judging)
    answering = [call for call in upstream.calls if "stop" in call.body]
    assert answering
    assert all(call.body.get("max_tokens") == 999 for call in answering)
    assert all("max_tokens" not in call.body for call in upstream.calls if call not in answering)


def test_the_format_of_the_answer_goes_to_the_call_that_makes_it(
    proxy: Proxy, upstream: Upstream
) -> None:
    upstream.play(
        Script(reply=lambda call, choice: f'{{"answer": {42 + 10 * call.index + choice}}}')
    )
    request = {"messages": QUESTION, "response_format": SCHEMA}
    assert ask(proxy, "/v1/chat/completions", "moa-base", request) == 200
    assert [("response_format" in call.body) for call in upstream.calls] == [False, False, True]
    assert upstream.calls[-1].body["response_format"] == SCHEMA


OTHER_ROUTES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "messages: sampling": (
        "/v1/messages",
        {"temperature": 0.3, "top_p": 0.4, "stop_sequences": ["END"]},
        {"temperature": 0.3, "top_p": 0.4, "stop": ["END"], "max_tokens": 555},
    ),
    "messages: top_k": ("/v1/messages", {"top_k": 5}, {"top_k": 5}),
    "messages: user": ("/v1/messages", {"metadata": {"user_id": "someone"}}, {"user": "someone"}),
    "messages: thinking": (
        "/v1/messages",
        {"thinking": {"type": "enabled", "budget_tokens": 1024}},
        {},
    ),
    "messages: tools": (
        "/v1/messages",
        {
            "tools": [{"name": "weather", "input_schema": {"type": "object", "properties": {}}}],
            "tool_choice": {"type": "auto"},
        },
        {"tool_choice": "auto"},
    ),
    "responses: sampling": (
        "/v1/responses",
        {"temperature": 0.3, "top_p": 0.4, "max_output_tokens": 66},
        {"temperature": 0.3, "top_p": 0.4, "max_tokens": 66},
    ),
    "responses: reasoning": ("/v1/responses", {"reasoning": {"effort": "low"}}, {}),
    "responses: user": ("/v1/responses", {"user": "someone"}, {"user": "someone"}),
    "responses: metadata": ("/v1/responses", {"metadata": {"mine": "1"}}, {}),
    "responses: tools": (
        "/v1/responses",
        {
            "tools": [
                {
                    "type": "function",
                    "name": "weather",
                    "parameters": {"type": "object", "properties": {}},
                }
            ],
            "tool_choice": "auto",
            "parallel_tool_calls": False,
        },
        {"tool_choice": "auto", "parallel_tool_calls": False},
    ),
    "completions: sampling": (
        "/v1/completions",
        {"temperature": 0.3, "top_p": 0.4, "max_tokens": 55, "stop": ["END"], "seed": 3},
        {"temperature": 0.3, "top_p": 0.4, "max_tokens": 55, "stop": ["END"], "seed": 3},
    ),
    "completions: user": ("/v1/completions", {"user": "someone"}, {"user": "someone"}),
}
NEEDED: dict[str, dict[str, Any]] = {
    "/v1/messages": {"messages": QUESTION, "max_tokens": 555},
    "/v1/responses": {"input": "What is 6 times 7?"},
    "/v1/completions": {"prompt": "What is 6 times 7?"},
}


def assert_arrives(proxy: Proxy, upstream: Upstream, case: str, *, stream: bool) -> None:
    route, fields, arrives = OTHER_ROUTES[case]
    upstream.play(Script(reply=reply))
    model = "re2-gpt-4o-mini" if "user" in arrives else "re2-base"
    body = {"model": model, "stream": stream, **NEEDED[route], **fields}
    answer = proxy.post(route, body)
    assert answer.status_code == 200, answer.text[:500]
    [call] = upstream.calls
    assert {name: call.body.get(name) for name in arrives} == arrives


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("case", OTHER_ROUTES)
def test_the_fields_of_the_other_routes(
    proxy: Proxy, upstream: Upstream, case: str, stream: bool
) -> None:
    assert_arrives(proxy, upstream, case, stream=stream)


@pytest.mark.parametrize(
    ("case", "stream"),
    pairs(("messages: user", "responses: sampling", "completions: user"), [False, True]),
)
def test_so_where_litellm_drops_fields(
    dropping: Proxy, upstream: Upstream, case: str, stream: bool
) -> None:
    assert_arrives(dropping, upstream, case, stream=stream)


def test_an_effort_of_reasoning_arrives_on_every_route(proxy: Proxy, upstream: Upstream) -> None:
    """Agents send these; a reasoning model must receive them in the form that it takes."""
    requests: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {"messages": QUESTION, "reasoning_effort": "low"},
        "/v1/responses": {"input": "6 * 7?", "reasoning": {"effort": "low"}},
    }
    for route, request in requests.items():
        upstream.play(Script(reply=reply))
        plain_is_refused = (
            route == "/v1/chat/completions" and ask(proxy, route, "base", request) != 200
        )
        upstream.play(Script(reply=reply))
        if not plain_is_refused:
            assert ask(proxy, route, "re2-base", request) == 200
            assert [call.body.get("reasoning_effort") for call in upstream.calls] == ["low"]
