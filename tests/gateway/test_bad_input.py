"""Requests that cannot be served: an OpenAI error object, the right status, and no call paid."""

import json
from typing import Any

import httpx
import pytest

from tests.gateway.shared import shared_config
from tests.proxy import Proxy
from tests.upstream import Script, Upstream

QUESTION = [{"role": "user", "content": "What is 6 times 7?"}]
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module", autouse=True)
def log_before(proxy: Proxy) -> int:
    """Return how long the log is before the tests of this module."""
    return len(proxy.log)


def request(model: str = "bon-base", **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": QUESTION, **fields}


def tagged(inside: str) -> dict[str, Any]:
    text = f"<optillm_approach>{inside}</optillm_approach> hi"
    return request("base", messages=[{"role": "user", "content": text}])


# Name: request, status, what the message says. Forms first, then parameters, then the rest.
BAD: dict[str, tuple[object, int, str]] = {
    "malformed JSON": (b'{"model": "bon-base", "messages": [', 400, ""),
    "empty body": (b"", 400, ""),
    "not UTF-8": (b'{"model": "bon-base\xff", "messages": []}', 400, ""),
    "no messages": ({"model": "bon-base"}, 400, "messages"),
    "empty messages": (request(messages=[]), 400, "messages"),
    "messages null": (request(messages=None), 400, "messages"),
    "messages a text": (request(messages="hi"), 400, "messages"),
    "a message that is a text": (request(messages=["hi"]), 400, "messages"),
    "a message without a role": (request(messages=[{"content": "hi"}]), 400, "role"),
    "an unknown role": (request(messages=[{"role": "robot", "content": "hi"}]), 400, "role"),
    "content a number": (request(messages=[{"role": "user", "content": 7}]), 400, "content"),
    "unknown approach before a model": (request("foo-base"), 400, "foo"),
    "unknown approach in a combination": (request("foo|bon-base"), 400, "foo"),
    "unknown approach in a chain": (request("bon&foo-base"), 400, "foo"),
    "a misspelt approach": (request("mao-base"), 400, "mao"),
    "no base model": (request("bon-"), 400, "base model"),
    "nothing but an approach": (request("bon"), 400, "base model"),
    "an unknown base model": (request("bon-no-such-model"), 400, "no-such-model"),
    "two approaches with a dash": (request("re2-bon-base"), 400, "&"),
    "an approach of itself": (request("moa-moa-base"), 400, "moa"),
    "a prefix on an alias": (request("bon-careful"), 400, "alias"),
    "an alias of an alias": (request("nested"), 400, "alias"),
    "an alias of nothing": (request("lost"), 400, "no-such-model"),
    "an alias that does not parse": (request("broken"), 400, "re2("),
    "an alias of an unknown approach": (request("unknown"), 400, "no_such_approach"),
    "an alias out of range": (request("wrong"), 400, "n"),
    "an alias with a misspelt setting": (request("typo"), 400, "dead_line"),
    "a cost limit on an unpriced model": (request("metered"), 400, "price"),
    "a comma between approaches": (request("bon,moa-base"), 400, "bon,moa"),
    "a comma between parameters": (request("bon(n=2,temperature=1)-base"), 400, "comma"),
    "a comma between models": (request("bon-base,bon-a-b"), 400, "comma"),
    "an open parenthesis": (request("bon(n=3-base"), 400, ""),
    "a parenthesis too many": (request("bon(n=3))-base"), 400, "column"),
    "empty parentheses around nothing": (request("()-base"), 400, ""),
    "an operator without a right side": (request("bon&-base"), 400, "column"),
    "an operator without a left side": (request("|bon-base"), 400, ""),
    "two operators in a row": (request("bon&&moa-base"), 400, "column"),
    "an unknown operator": (request("bon+moa-base"), 400, ""),
    "none in a chain": (request("none&bon-base"), 400, "none"),
    "a name of two slashes": (request("optillm/bon"), 400, ""),
    "an unknown parameter": (request("bon(samples=3)-base"), 400, "samples"),
    "a parameter below its range": (request("bon(n=0)-base"), 400, "n"),
    "a parameter above its range": (request("bon(n=100000)-base"), 400, "n"),
    "a parameter of the wrong type": (request("bon(n=many)-base"), 400, "n"),
    "a parameter not a number": (request("bon(temperature=nan)-base"), 400, "temperature"),
    "a parameter twice": (request("bon(n=2;n=3)-base"), 400, "n"),
    "parameters of an approach that takes none": (request("none(n=2)-base"), 400, "n"),
    "an approach in the body that is a number": (request("base", optillm_approach=3), 400, ""),
    "an approach in the body that is unknown": (
        request("base", optillm_approach="foo"),
        400,
        "foo",
    ),
    "an approach in the body that is empty": (request("base", optillm_approach=""), 400, ""),
    "a body field on a locked alias": (request("fixed", optillm_approach="moa"), 400, "locked"),
    "parameters without an approach": (
        request("base", optillm_params={"bon": {}}),
        400,
        "approach",
    ),
    "parameters that are a list": (request(optillm_params=[1]), 400, "optillm_params"),
    "parameters of another approach": (request(optillm_params={"moa": {"n": 2}}), 400, "moa"),
    "parameters out of range in the body": (request(optillm_params={"bon": {"n": 0}}), 400, "n"),
    "unknown limits": (request(optillm_limits={"money": 1}), 400, "money"),
    "limits below zero": (request(optillm_limits={"deadline_s": -1}), 400, "deadline_s"),
    "infinite limits": (request(optillm_limits={"deadline_s": "Infinity"}), 400, "deadline_s"),
    "n zero": (request(n=0), 400, "n"),
    "n below zero": (request(n=-3), 400, "n"),
    "n a text": (request(n="two"), 400, "n"),
    "n a fraction": (request(n=1.5), 400, "n"),
    "n too large": (request(n=100_000), 400, "n"),
    "a plan of a thousand calls": (request("bon(n=64;ratings=16)-base"), 400, "1088 model calls"),
    "such a plan in the body": (
        request("base", optillm_approach="bon(n=64,ratings=16)"),
        400,
        "but the maximum is 64",
    ),
    "such a plan by parameters of an alias": (
        request("careful", optillm_params={"self_consistency": {"n": 64}}, n=2),
        400,
        "plan_calls.client",
    ),
    "such a plan by n": (request("moa-base", n=64), 400, "(n)"),
    "such a plan in an alias": (request("dear"), 400, "plan_calls.alias"),
    "model null": ({"model": None, "messages": QUESTION}, 400, ""),
    "model a number": ({"model": 7, "messages": QUESTION}, 400, ""),
    "a very long model name": (request(f"bon({'n=1;' * 5000})-base"), 400, ""),
    "a deeply nested expression": (request(f"{'(' * 500}bon{')' * 500}-base"), 400, ""),
    "a surrogate in the model name": (rb'{"model": "bon-\ud800", "messages": []}', 400, ""),
}
CLIENT_ERRORS = frozenset({400, 413, 422})


def assert_is_openai_error(answer: httpx.Response, status: int, said: str) -> None:
    assert answer.status_code == status, answer.text[:500]
    error = answer.json()["error"]
    assert isinstance(error["message"], str)
    assert said in error["message"]
    assert {"type", "param", "code"} <= set(error)
    for forbidden in ("Traceback", "site-packages", 'File "', "upstream-key", "What is 6 times 7"):
        assert forbidden not in answer.text


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(("body", "status", "said"), BAD.values(), ids=BAD)
def test_a_bad_request_is_refused_before_any_call(
    proxy: Proxy, upstream: Upstream, body: object, status: int, said: str, stream: bool
) -> None:
    upstream.play(Script())
    if isinstance(body, dict):
        body = body | {"stream": stream}
    answer = proxy.post(CHAT, body)
    assert_is_openai_error(answer, status, said)
    assert upstream.calls == []


ROUTES: dict[str, dict[str, Any]] = {
    "/v1/messages": {"messages": QUESTION, "max_tokens": 50},
    "/v1/responses": {"input": "What is 6 times 7?"},
    "/v1/completions": {"prompt": "What is 6 times 7?"},
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("model", ["foo|bon-base", "bon(n=0)-base", "bon-careful", "bon-nothing"])
@pytest.mark.parametrize("route", ROUTES)
def test_so_on_every_route(
    proxy: Proxy, upstream: Upstream, route: str, model: str, stream: bool
) -> None:
    upstream.play(Script())
    answer = proxy.post(route, {"model": model, "stream": stream, **ROUTES[route]})
    assert answer.status_code == 400, answer.text[:500]
    assert answer.json()["error"]["message"]
    assert "Traceback" not in answer.text
    assert upstream.calls == []


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": [{"type": "text", "text": "<optillm_approach>bon"}]}],
        [{"role": "user", "content": "</optillm_approach> <optillm_approach> hi"}],
        [
            {"role": "user", "content": "<optillm_approach>moa</optillm_approach> hi"},
            {"role": "assistant", "content": "<optillm_approach>foo</optillm_approach> ho"},
            {"role": "user", "content": "And now?"},
        ],
        [
            {"role": "user", "content": "hi"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
                ],
            },
            {
                "role": "tool",
                "tool_call_id": "c",
                "content": "<optillm_approach>moa</optillm_approach>",
            },
        ],
    ],
    ids=["unclosed", "wrong way round", "in earlier turns", "in a tool's result"],
)
def test_a_tag_elsewhere_is_text(
    proxy: Proxy, upstream: Upstream, messages: list[dict[str, Any]]
) -> None:
    upstream.play(Script())
    assert proxy.post(CHAT, request("base", messages=messages)).status_code == 200
    [call] = upstream.calls
    assert [m.get("content") for m in call.messages] == [m.get("content") for m in messages]


@pytest.mark.parametrize(
    "fields",
    [
        {"model_info": {"optillm": {"max_calls": 1000, "on_error": "plain"}}},
        {"optillm": {"locked": False}},
        {"optillm_settings": {"forms": {"tag": "all"}}},
        {"prepared": {"plan": "moa"}},
        {"metadata": {"user_api_key": "sk-x", "optillm": {"plan": "moa"}, "model_group": "x"}},
        {"litellm_metadata": {"user_api_key_alias": "root"}},
        {"response_cost": 0, "_hidden_params": {"response_cost": 0}},
        {"num_retries": 5},
        {"mock_response": "free"},
        {"fallbacks": ["base"]},
    ],
    ids=",".join,
)
def test_an_operators_field_from_a_client_changes_nothing(
    proxy: Proxy, upstream: Upstream, fields: dict[str, Any]
) -> None:
    upstream.play(Script())
    answer = proxy.post(CHAT, request("re2-base", **fields))
    assert answer.status_code in {200, *CLIENT_ERRORS, 401, 403}, answer.text
    assert len(upstream.calls) == (1 if answer.status_code == 200 else 0)
    for call in upstream.calls:
        assert call.headers["authorization"] == "Bearer upstream-key"
        assert "metadata" not in call.body


@pytest.mark.parametrize("field", ["metadata", "litellm_metadata"])
@pytest.mark.parametrize(
    "forged",
    [
        {"optillm_call": {"tried": ["base"]}},
        {"optillm_request": {"plan": "moa"}},
        {"optillm_request": "moa"},
    ],
    ids=str,
)
def test_a_forged_plan_in_the_metadata_changes_nothing(
    proxy: Proxy, upstream: Upstream, field: str, forged: dict[str, Any]
) -> None:
    upstream.play(Script())
    answer = proxy.post(CHAT, request("re2-base", **{field: forged}))
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-optillm-approach"] == "re2"
    assert answer.headers["x-optillm-calls"] == "1"
    assert len(upstream.calls) == 1


@pytest.mark.parametrize("body", [b"[]", b'"bon-base"', b"7"])
@pytest.mark.parametrize("path", [CHAT, "/v1/messages", "/v1/responses"])
def test_a_body_that_is_no_object_is_refused(
    proxy: Proxy, upstream: Upstream, path: str, body: bytes
) -> None:
    """LiteLLM alone answers a bare 500."""
    upstream.play(Script())
    answer = proxy.post(path, body)
    assert answer.status_code == 400
    assert "the body must be a JSON object" in answer.text
    assert upstream.calls == []


def test_another_providers_address_is_refused(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script())
    answer = proxy.post(CHAT, request(api_base="http://127.0.0.1:1"))
    assert answer.status_code == 401
    assert "api_base" in answer.text
    assert upstream.calls == []


def test_nothing_is_learnt_unless_the_operator_says_so(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script())
    answer = proxy.post(CHAT, request("spl-base", spl_learning=True))
    assert answer.status_code == 400
    assert "optillm_settings.spl.learning" in answer.json()["error"]["message"]
    assert upstream.calls == []


def test_a_prompt_of_a_megabyte_is_answered(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script())
    text = "word " * 200_000 + "end"
    answer = proxy.post(CHAT, request("moa-base", messages=[{"role": "user", "content": text}]))
    assert answer.status_code == 200, answer.text[:500]
    assert all("word end" in call.text for call in upstream.calls)


@pytest.mark.parametrize("model", ["re2-base", "moa-base", "base"])
def test_half_a_character_is_an_error_or_an_answer_and_never_a_traceback(
    proxy: Proxy, upstream: Upstream, model: str
) -> None:
    upstream.play(Script())
    body = json.dumps(request(model, messages=[{"role": "user", "content": "half: \ud83d"}]))
    answer = proxy.post(CHAT, body.encode())
    assert answer.status_code in {200, *CLIENT_ERRORS}, answer.text[:500]
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("broken", "re2("),
        ("unknown", "no_such_approach"),
        ("wrong", "bon: n"),
        ("typo", "model_info.optillm.dead_line"),
        ("dear", "plan_calls.alias"),
    ],
)
def test_an_alias_that_cannot_be_served_is_in_the_log_from_the_start(
    proxy: Proxy, upstream: Upstream, model: str, said: str
) -> None:
    names = [entry["model_name"] for entry in shared_config(upstream)["model_list"]]
    path = f"optillm: model_list[{names.index(model)}]."
    [line] = [line for line in proxy.log.splitlines() if path in line]
    assert said in line


def test_the_proxy_logs_no_traceback_of_ours(proxy: Proxy, log_before: int) -> None:
    log = proxy.log[log_before:]
    assert "optillm_hooks/" not in log, log[-3000:]
