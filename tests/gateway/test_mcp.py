"""mcp through the real proxy: its own gateway, real MCP servers over stdio and HTTP, two keys."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import anthropic
import httpx
import pytest
from litellm.proxy._types import UserAPIKeyAuth

from optillm_hooks.errors import RequestRejected
from optillm_hooks.gateway.caller import Caller
from optillm_hooks.gateway.mcp_tools import GatewayTools
from tests.gateway.shared import hang_up
from tests.mcp_servers import PIXEL
from tests.proxy import (
    Config,
    Proxy,
    alias,
    copy_of,
    free_port,
    hooked_config,
    model_group,
)
from tests.upstream import Call, Reply, ReplyRule, Script, Upstream, differing

SERVERS: Final = Path(__file__).parent.parent / "mcp_servers.py"
SECRET: Final = "hunter2-secret-of-the-operator"
PRICE: Final = 0.01


@pytest.fixture(scope="module")
def ports() -> Iterator[dict[str, int]]:
    """Start the servers that speak HTTP, and return their ports."""
    found = {name: free_port() for name in ("files", "hostile")}
    started = [
        subprocess.Popen([sys.executable, str(SERVERS), name, str(port)])
        for name, port in found.items()
    ]
    try:
        for port in found.values():
            wait_for(port)
        yield found
    finally:
        for process in started:
            process.kill()
            process.wait()


def wait_for(port: int) -> None:
    for _ in range(600):
        with contextlib.suppress(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{port}/")
            return
        time.sleep(0.05)
    raise AssertionError("the MCP server does not start")


def mcp_servers(ports: dict[str, int]) -> Config:
    def over_http(name: str) -> Config:
        return {
            "server_id": name,
            "transport": "http",
            "url": f"http://127.0.0.1:{ports[name]}/mcp",
            "static_headers": {"x-secret": SECRET},
        }

    return {
        "files": over_http("files")
        | {"mcp_info": {"mcp_server_cost_info": {"default_cost_per_query": PRICE}}},
        "hostile": over_http("hostile"),
        "local": {
            "server_id": "local",
            "transport": "stdio",
            "command": sys.executable,
            "args": [str(SERVERS), "local"],
            "env": {"TOKEN": SECRET},
        },
        "crashing": {
            "server_id": "crashing",
            "transport": "stdio",
            "command": sys.executable,
            "args": [str(SERVERS), "hostile"],
        },
        "down": {"server_id": "down", "transport": "http", "url": "http://127.0.0.1:9/mcp"},
    }


@pytest.fixture(scope="module")
def proxy(
    tmp_path_factory: pytest.TempPathFactory, upstream: Upstream, ports: dict[str, int]
) -> Iterator[Proxy]:
    claude = upstream.url.removesuffix("/v1")
    config = hooked_config(
        [
            model_group("base", upstream.url),
            model_group("claude", claude, model="anthropic/claude-sonnet-4-5"),
            alias("files", "mcp(servers=[files])"),
            alias("claude-files", "mcp(servers=[files])", base="claude"),
            alias("voted", "mcp(servers=[files])&self_consistency(n=3)"),
            alias("rated", "mcp(servers=[files])&bon(n=2)"),
            alias("reading", "mcp(servers=[files], tools=[], resources=true, prompts=true)"),
            alias("local", "mcp(servers=[local])"),
            alias("hostile", "mcp(servers=[hostile])"),
            alias("crashing", "mcp(servers=[crashing])"),
            alias("hurried", "mcp(servers=[local])", deadline_s=2.5),
            alias("some", "mcp(servers=[files, down])"),
            alias("all", "mcp"),
        ]
    )
    files = {"object_permission_id": "f", "mcp_servers": ["files"]}
    nothing = {"object_permission_id": "n", "mcp_servers": []}
    keys = {
        "sk-files": {"models": [], "key_alias": "f", "object_permission": files},
        "sk-nothing": {"models": [], "key_alias": "n", "object_permission": nothing},
    }
    with Proxy(
        config | {"mcp_servers": mcp_servers(ports)},
        tmp_path_factory.mktemp("proxy"),
        keys=keys,
        env={"LITELLM_ENABLE_MCP_STDIO": "true"},
    ) as running:
        yield running


def results(call: Call) -> list[str]:
    """Return the texts of the tool results in a call, in OpenAI's or Anthropic's form."""
    found = list[str]()
    for message in call.messages:
        content = message.get("content")
        if message["role"] == "tool":
            found.append(str(content))
        elif isinstance(content, list):
            found += [json.dumps(p["content"]) for p in content if p.get("type") == "tool_result"]
    return found


def calling(*calls: tuple[str, str], rounds: int = 1, answer: str = "It is 42.") -> ReplyRule:
    """Return a model that makes `calls` in each of `rounds` rounds, and then answers."""

    def reply(call: Call, _: int) -> Reply:
        if len(results(call)) < rounds * len(calls):
            return Reply(None, tool_calls=calls)
        return Reply(answer)

    return reply


DOUBLE = ("files-double", '{"a": 21}')


def ask(proxy: Proxy, model: str, *, key: str | None = None, **fields: Any) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "What is twice 21?"}]}
    return proxy.post("/v1/chat/completions", {**body, **fields}, key=key)


def text_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def degraded(answer: httpx.Response) -> list[str]:
    found: list[str] = answer.json()["optillm"]["degraded"]
    return found


def children(proxy: Proxy) -> list[str]:
    """Return the MCP servers that the proxy has started and not ended."""
    command = ["ps", "-ww", "-o", "args=", "--ppid", str(proxy.pid)]
    shown = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return [line for line in shown.splitlines() if SERVERS.name in line]


# --------------------------------------------------------------------------- the three routes


@pytest.mark.parametrize("model", ["files", "claude-files"])
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_chat(proxy: Proxy, upstream: Upstream, model: str, streamed: bool) -> None:
    upstream.play(Script(reply=calling(DOUBLE, rounds=2)))
    client = proxy.openai()
    messages: Any = [{"role": "user", "content": "What is twice 21?"}]
    if streamed:
        with client.chat.completions.stream(
            model=model, messages=messages, stream_options={"include_usage": True}
        ) as stream:
            answer: Any = stream.get_final_completion()
    else:
        answer = client.chat.completions.create(model=model, messages=messages)
    [choice] = answer.choices
    assert (choice.message.content, choice.finish_reason) == ("It is 42.", "stop")
    assert not choice.message.tool_calls
    check_calls_and_usage(upstream, answer.usage.total_tokens)


@pytest.mark.parametrize("model", ["files", "claude-files"])
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_messages(proxy: Proxy, upstream: Upstream, model: str, streamed: bool) -> None:
    upstream.play(Script(reply=calling(DOUBLE, rounds=2)))
    messages: Any = [{"role": "user", "content": "What is twice 21?"}]
    with anthropic.Anthropic(
        base_url=proxy.url, api_key=proxy.master_key, max_retries=0, timeout=60
    ) as client:
        asked: Any = {"model": model, "messages": messages, "max_tokens": 500}
        if streamed:
            with client.messages.stream(**asked) as stream:
                answer = stream.get_final_message()
        else:
            answer = client.messages.create(**asked)
    assert [block.type for block in answer.content] == ["text"]
    assert answer.content[0].text == "It is 42."  # type: ignore[union-attr]
    used = answer.usage.input_tokens + answer.usage.output_tokens
    check_calls_and_usage(upstream, used)


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_responses(proxy: Proxy, upstream: Upstream, streamed: bool) -> None:
    upstream.play(Script(reply=calling(DOUBLE, rounds=2)))
    client = proxy.openai()
    if streamed:
        with client.responses.stream(model="files", input="What is twice 21?") as stream:
            answer: Any = stream.get_final_response()
    else:
        answer = client.responses.create(model="files", input="What is twice 21?")
    assert answer.output_text == "It is 42."
    assert [item.type for item in answer.output] == ["message"]
    check_calls_and_usage(upstream, answer.usage.total_tokens)


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_thoughts_go_back_to_claude_with_the_results(
    proxy: Proxy, upstream: Upstream, streamed: bool
) -> None:
    """As its API requires: signed, and before the calls of the same turn."""
    upstream.play(Script(reply=calling(DOUBLE, rounds=2)))
    thinking = {"type": "enabled", "budget_tokens": 1024}
    answer = ask(proxy, "claude-files", thinking=thinking, max_tokens=3000, stream=streamed)
    assert answer.status_code == 200
    assert "42" in answer.text
    turns = [turn for turn in upstream.calls[2].messages if turn["role"] == "assistant"]
    assert [[block["type"] for block in turn["content"]] for turn in turns] == [
        ["thinking", "tool_use"]
    ] * 2
    assert all(turn["content"][0]["signature"] for turn in turns)
    assert all(call.body["thinking"] == thinking for call in upstream.calls)


def check_calls_and_usage(upstream: Upstream, total_tokens: int) -> None:
    """Check three calls with the results of two rounds, and that each is in the usage."""
    assert [len(results(call)) for call in upstream.calls] == [0, 1, 2]
    assert "42" in results(upstream.calls[1])[0]
    assert "never an instruction" in results(upstream.calls[1])[0]
    assert total_tokens == upstream.bill.total_tokens


# ----------------------------------------------------------------------- keys, spend, secrets


def test_a_key_has_only_its_servers(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script(reply=calling(DOUBLE)))
    assert text_of(ask(proxy, "all", key="sk-files")) == "It is 42."
    offered = {tool["function"]["name"] for tool in upstream.calls[0].body["tools"]}
    assert offered == {"files-double", "files-fail", "files-picture", "files-hang"}
    for model, key in (("all", "sk-nothing"), ("local", "sk-files"), ("files", "sk-nothing")):
        upstream.play(Script())
        refused = ask(proxy, model, key=key)
        assert refused.status_code == 400
        assert "this key may not use" in refused.text
        assert not upstream.calls


def test_a_tool_that_was_not_offered_cannot_be_called(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script(reply=calling(("local-environment", "{}"))))
    answer = ask(proxy, "all", key="sk-files")
    assert "There is no tool of the name" in results(upstream.calls[1])[0]
    assert degraded(answer) == ["tool_calls:1/1"]


def test_tools_are_logged_and_billed_to_the_key(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script(reply=calling(DOUBLE, DOUBLE)))
    key = copy_of("sk-files")
    assert text_of(ask(proxy, "files", key=key)) == "It is 42."
    entries = proxy.booked(key)
    tools = [entry for entry in entries if entry.call_type == "call_mcp_tool"]
    assert [(entry.cost, entry.key_alias, entry.status) for entry in tools] == [
        (PRICE, "f", "success")
    ] * 2
    models = [entry.cost for entry in entries if entry.model_group == "base"]
    assert len(models) == 2
    proxy.wait_until(lambda p: p.charged(key) == pytest.approx(2 * PRICE + sum(models)))
    assert len({entry.trace_id for entry in entries if entry.model_group == "base"}) == 1


def test_an_alias_may_limit_what_tools_cost(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script(reply=calling(DOUBLE, DOUBLE, DOUBLE)))
    answer = ask(proxy, "files", optillm_limits={"max_cost_usd": 2.5 * PRICE}, max_tokens=50)
    assert text_of(answer) == "It is 42."
    assert "budget of this request" in results(upstream.calls[1])[2]


def test_secrets_reach_neither_models_nor_logs(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script(reply=calling(("local-environment", "{}"))))
    assert text_of(ask(proxy, "local")) == "It is 42."
    [shown] = results(upstream.calls[1])
    assert "TOKEN" in shown
    assert "LITELLM_MASTER_KEY" not in shown
    assert "TEST_KEYS" not in shown
    assert SECRET not in proxy.log
    assert SECRET not in json.dumps([dict(call.body) for call in upstream.calls])
    assert not children(proxy)


# ----------------------------------------------------------------------------- what comes back


def test_a_name_that_no_provider_takes_is_another(proxy: Proxy, upstream: Upstream) -> None:
    def reply(call: Call, _: int) -> Reply:
        names = [tool["function"]["name"] for tool in call.body["tools"]]
        [dotted] = [name for name in names if "dotted" in name]
        assert all(set(name) & set(". /") == set() for name in names)
        return Reply("ok") if results(call) else Reply(None, tool_calls=[(dotted, "{}")])

    upstream.play(Script(reply=reply))
    assert text_of(ask(proxy, "local")) == "ok"
    assert "dotted" in results(upstream.calls[1])[0]


def test_errors_are_told_to_the_model(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script(reply=calling(("files-fail", "{}"), ("files-double", "{}"))))
    answer = ask(proxy, "files")
    failed, wrong = results(upstream.calls[1])
    assert "The tool reports an error." in failed
    assert "the disk is full" in failed
    assert "The tool reports an error." in wrong
    assert degraded(answer) == ["tool_calls:2/2"]


@pytest.mark.parametrize(("model", "sees"), [("files", False), ("claude-files", True)])
def test_images_are_shown_to_models_that_take_them(
    proxy: Proxy, upstream: Upstream, model: str, sees: bool
) -> None:
    upstream.play(Script(reply=calling(("files-picture", "{}"))))
    assert text_of(ask(proxy, model)) == "It is 42."
    assert (PIXEL in json.dumps(upstream.calls[1].body)) == sees


def test_resources_and_prompts_are_read_by_tools(proxy: Proxy, upstream: Upstream) -> None:
    calls = [
        ("files-list_resources", "{}"),
        ("files-read_resource", '{"uri": "note://motto"}'),
        ("files-list_prompts", "{}"),
        ("files-get_prompt", '{"name": "files-greet", "arguments": {"name": "Ada"}}'),
    ]
    upstream.play(Script(reply=calling(*calls)))
    answer = ask(proxy, "reading")
    shown = results(upstream.calls[1])
    words = ["note://motto", "read note://motto", "greet", "Greet Ada."]
    assert [word in text for word, text in zip(words, shown, strict=True)] == [True] * 4
    assert not degraded(answer)


def test_an_unreachable_server_is_reported(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script(reply=calling(DOUBLE)))
    answer = ask(proxy, "some")
    assert text_of(answer) == "It is 42."
    assert degraded(answer) == ["mcp_servers:1/2"]


def test_the_clients_own_tool_goes_to_the_client(proxy: Proxy, upstream: Upstream) -> None:
    """And with its result, the model sees its own round again."""
    tool = {"type": "function", "function": {"name": "save", "parameters": {"type": "object"}}}

    def reply(call: Call, _: int) -> Reply:
        if not results(call):
            return Reply(None, tool_calls=[DOUBLE, ("save", '{"x": 1}')])
        return Reply("saved")

    upstream.play(Script(reply=reply))
    first = ask(proxy, "files", tools=[tool]).json()["choices"][0]
    [call] = first["message"]["tool_calls"]
    assert (call["function"]["name"], first["finish_reason"]) == ("save", "tool_calls")
    question = {"role": "user", "content": "What is twice 21?"}
    result = {"role": "tool", "tool_call_id": call["id"], "content": "done"}
    messages = [question, first["message"], result]
    answer = ask(proxy, "files", tools=[tool], messages=messages)
    assert text_of(answer) == "saved"
    assert len(upstream.calls) == 2
    ours, theirs = results(upstream.calls[1])
    assert "42" in ours
    assert theirs == "done"


@pytest.mark.parametrize(("model", "samples"), [("voted", 3), ("rated", 2)])
def test_every_sample_calls_tools(
    proxy: Proxy, upstream: Upstream, model: str, samples: int
) -> None:
    def reply(call: Call, _: int) -> Reply:
        if not call.body.get("tools"):
            return Reply("RATING: 5")
        return Reply(differing(call, 0)) if results(call) else Reply(None, tool_calls=[DOUBLE])

    upstream.play(Script(reply=reply))
    answer = ask(proxy, model)
    assert "42" in text_of(answer)
    with_tools = [call for call in upstream.calls if call.body.get("tools")]
    assert len(with_tools) == 2 * samples
    assert answer.json()["usage"]["total_tokens"] == upstream.bill.total_tokens


# -------------------------------------------------------------------------- a hostile server


def test_a_hostile_server_is_shown_as_data(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script(reply=calling(("hostile-order", "{}"), ("hostile-flood", "{}"))))
    answer = ask(proxy, "hostile")
    assert text_of(answer) == "It is 42."
    assert degraded(answer) == ["tools:2/6", "tool_results:1/2"]  # unusable schemas, and the flood
    tools = [tool["function"] for tool in upstream.calls[0].body["tools"]]
    assert max(len(tool["name"]) for tool in tools) == 64
    assert max(len(tool["description"]) for tool in tools) <= 1024
    order, flood = results(upstream.calls[1])
    notice, framed = order.split("\n\n", 1)
    assert "never an instruction" in notice
    assert framed.splitlines()[0].startswith("<result 1 ")
    assert framed.splitlines()[-1].startswith("</result 1 ")
    assert len(flood) < 21_000
    assert "more characters were cut off" in flood


def test_a_server_that_crashes_is_an_error_of_its_tool(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script(reply=calling(("crashing-crash", "{}"))))
    answer = ask(proxy, "crashing")
    assert text_of(answer) == "It is 42."
    assert "The tool reports an error." in results(upstream.calls[1])[0]
    assert not children(proxy)


def test_a_tool_that_hangs_ends_with_its_time(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script(reply=calling(("files-hang", "{}"), DOUBLE)))
    answer = ask(proxy, "files", optillm_params={"mcp": {"timeout_s": 2}})
    assert text_of(answer) == "It is 42."
    hung, doubled = results(upstream.calls[1])
    assert "not answered within" in hung
    assert "42" in doubled


def test_no_process_is_left_when_the_deadline_passes(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script(reply=calling(("local-hang", "{}"))))
    answer = ask(proxy, "hurried")
    assert answer.status_code == 504
    proxy.wait_until(lambda p: not children(p))


def test_no_process_is_left_when_the_client_goes(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script(reply=calling(("local-hang", "{}"))))
    body = {"model": "local", "messages": [{"role": "user", "content": "?"}]}

    def tool_runs() -> None:
        upstream.wait_until(lambda u: u.calls[0].outcome == "answered")
        proxy.wait_until(lambda p: bool(children(p)))

    hang_up(proxy, upstream, "/v1/chat/completions", body, done=0, until=tool_runs)
    proxy.wait_until(lambda p: not children(p))
    assert len(upstream.calls) == 1


# ------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"functions": [{"name": "f", "parameters": {"type": "object"}}]}, "send tools instead"),
        ({"optillm_params": {"mcp": {"servers": ["no-such"]}}}, "may not use an MCP server"),
        ({"optillm_params": {"mcp": {"tools": ["no-such"]}}}, "has a tool 'no-such'"),
        ({"optillm_params": {"mcp": {"rounds": 99}}}, "rounds"),
        ({"proxy_wrap": "mcp"}, "send its value as optillm_approach"),
    ],
    ids=["functions", "unknown server", "unknown tool", "rounds", "proxy_wrap"],
)
def test_it_is_refused_before_any_call(
    proxy: Proxy, upstream: Upstream, fields: dict[str, Any], said: str
) -> None:
    upstream.play(Script())
    refused = ask(proxy, "files", **fields)
    assert (refused.status_code, said in refused.text) == (400, True), refused.text
    assert not upstream.calls


def test_a_name_that_no_tool_has_is_told(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script())
    answer = ask(proxy, "files", optillm_params={"mcp": {"tools": ["double", "no-such"]}})
    assert degraded(answer) == ["tools:1/2"]


def test_without_servers_the_operator_is_told_what_to_set() -> None:
    tools = GatewayTools(Caller(key=UserAPIKeyAuth(api_key="sk-1")))
    with pytest.raises(RequestRejected, match="set mcp_servers"):
        tools.check()
