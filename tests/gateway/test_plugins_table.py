"""Each plugin, alone and composed, on every route: what the provider bills is what is told and
booked, limits hold and leave an answer, and failures are told as such."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Final

import httpx
import pytest

from tests.gateway.services import PAGES, with_services
from tests.gateway.test_kinds_of_models import answering
from tests.gateway.test_mcp import SERVERS, wait_for
from tests.plugin_files.written import GOOD, write
from tests.proxy import Proxy, alias, free_port, hooked_config, model_group, new_trace, traceparent
from tests.upstream import CUT, Call, Reply, Script, Status, Upstream, always, at
from tests.web_world import WebWorld

WINDOW: Final = 2048
PARAMS: Final[Mapping[str, dict[str, Any]]] = {
    "memory": {"context_window": WINDOW},
    "longcepo": {"context_window": 2 * WINDOW},
    "compact": {"context_window": 2 * WINDOW},
}
ALONE: Final = (
    "memory", "longcepo", "compact", "privacy", "json", "executecode", "coc", "readurls",
    "web_search", "deep_research", "mcp", "router", "spl", "deepthink", "votes",
)  # fmt: skip
COMPOSED: Final = (
    "readurls&memory", "privacy&moa", "json&bon", "mcp&self_consistency", "privacy&mcp",
    "json&deep_research", "memory&json", "privacy&readurls&memory&json", "memory&memory",
    "web_search&longcepo", "json&router",
)  # fmt: skip
PLUGINS: Final = (*ALONE, *COMPOSED)
WITHOUT_TOOLS: Final = ("deep_research", "json&deep_research", "votes")
"""A report calls no tools, and a plugin file sends none."""

WHOLE: Final = ("json", "router", "votes")
"""Their answers are complete before the first piece is shown."""

SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"value": {"type": "integer"}},
    "required": ["value"],
    "additionalProperties": False,
}
FORMAT: Final = {"type": "json_schema", "json_schema": {"name": "sum", "schema": SCHEMA}}
ROUTES: Final = {
    "chat": "/v1/chat/completions",
    "messages": "/v1/messages",
    "responses": "/v1/responses",
}
STREAMS: Final = [
    *((name, "chat") for name in PLUGINS),
    *((name, "responses" if place % 2 else "messages") for place, name in enumerate(PLUGINS)),
]
NAME: Final = "Alice Johnson"
TOOL: Final = {"name": "lookup", "input_schema": {"type": "object", "properties": {}}}
DOCUMENT: Final = "\n\n".join(
    "The ledger lists crates of tea, rope and lamp oil. " * 8 for _ in "x" * 30
)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    found = free_port()
    server = subprocess.Popen([sys.executable, str(SERVERS), "files", str(found)])
    try:
        wait_for(found)
        yield found
    finally:
        server.kill()
        server.wait()


@pytest.fixture(scope="module")
def proxy(
    tmp_path_factory: pytest.TempPathFactory, upstream: Upstream, port: int
) -> Iterator[Proxy]:
    folder = tmp_path_factory.mktemp("proxy")
    models = [
        model_group("gpt-4o-mini", upstream.url),
        *(
            alias(f"plain-{name}", name, "gpt-4o-mini", on_error="plain", code_runner="monty")
            for name in ALONE
        ),
    ]
    with WebWorld(PAGES) as world:
        config = with_services(hooked_config(models), world)
        config["litellm_settings"]["optillm_settings"] |= {
            "plugins_dir": str(write(folder / "plugins", GOOD)),
            "plan_calls": {"client": 250},
        }
        url = f"http://127.0.0.1:{port}/mcp"
        config["mcp_servers"] = {"files": {"transport": "http", "url": url}}
        with Proxy(config, folder) as running:
            yield running


def reply(call: Call, choice: int) -> Reply | str:
    """Reply as each stage asks; call a tool of MCP once, and the client's whenever there is one."""
    names = [str(tool["function"]["name"]) for tool in call.body.get("tools") or []]
    called = any(message["role"] == "tool" for message in call.messages)
    if call.body.get("tool_choice") != "none" and not called:
        if "lookup" in names:
            return Reply(tool_calls=[("lookup", "{}")])
        for name in names:
            if name.endswith("double"):
                return Reply(tool_calls=[(name, '{"a": 21}')])
    made = answering(call, choice)
    is_answer = "ANSWER:" in str(made)
    if is_answer and (call.body.get("response_format") or '"additionalProperties"' in call.text):
        return '{"value": 42}'
    return f"{made}\nIt is 42." if is_answer else made


def body_of(route: str, name: str, *, model: str = "", **fields: Any) -> dict[str, Any]:
    long = "memory" in name or "longcepo" in name or "compact" in name
    asked = f"{DOCUMENT if long else ''}\n\nMy name is {NAME}. What is 6 times 7?"
    message = {"role": "user", "content": asked}
    body: dict[str, Any] = {"model": model or f"{name}-gpt-4o-mini", "messages": [message]}
    if "json" in name:
        body["response_format"] = FORMAT
    if route == "messages":
        body = {"model": body["model"], "messages": [message], "max_tokens": 900}
        if "json" in name:
            body["output_format"] = {"type": "json_schema", "schema": SCHEMA}
    if route == "responses":
        body = {"model": body["model"], "input": [message]}
        if "json" in name:
            body["text"] = {"format": {"type": "json_schema", "name": "sum", "schema": SCHEMA}}
    given = {stage: PARAMS[stage] for stage in name.split("&") if stage in PARAMS}
    return body | ({"optillm_params": given} if given else {}) | fields


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    lines = answer.text.splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


def told(answer: httpx.Response, route: str) -> tuple[int, int]:
    """Return the tokens of prompts and completions in the usage of a stream."""
    if route == "chat":
        [usage] = [event["usage"] for event in events(answer) if event.get("usage")]
        return usage["prompt_tokens"], usage["completion_tokens"]
    if route == "messages":
        [usage] = [event["usage"] for event in events(answer) if event["type"] == "message_delta"]
    else:
        [ended] = [e["response"] for e in events(answer) if e["type"] == "response.completed"]
        usage = ended["usage"]
    return usage["input_tokens"], usage["output_tokens"]


def check_booked(proxy: Proxy, upstream: Upstream, trace: str) -> None:
    booked = [entry for entry in proxy.booked(trace) if entry.origin == "optillm"]
    bill = upstream.bill
    assert sum(entry.prompt_tokens for entry in booked) == bill.prompt_tokens
    assert sum(entry.completion_tokens for entry in booked) == bill.completion_tokens


@pytest.mark.parametrize(("name", "route"), STREAMS)
def test_a_stream_tells_and_books_what_is_billed(
    proxy: Proxy, upstream: Upstream, name: str, route: str
) -> None:
    upstream.play(Script(reply=reply))
    trace = new_trace()
    counted = {"stream_options": {"include_usage": True}}
    options: dict[str, Any] = counted if route == "chat" else {}
    body = body_of(route, name, stream=True, **options)
    answer = proxy.post(ROUTES[route], body, headers=traceparent(trace))
    assert answer.status_code == 200, answer.text
    assert "42" in answer.text
    bill = upstream.bill
    assert told(answer, route) == (bill.prompt_tokens, bill.completion_tokens)
    check_booked(proxy, upstream, trace)
    if name.startswith("privacy"):
        assert not [call for call in upstream.calls if NAME in json.dumps(dict(call.body))]


@pytest.mark.parametrize("name", [name for name in PLUGINS if name not in WITHOUT_TOOLS])
def test_a_call_of_the_clients_tool_reaches_the_client(
    proxy: Proxy, upstream: Upstream, name: str
) -> None:
    upstream.play(Script(reply=reply))
    answer = proxy.post("/v1/messages", body_of("messages", name, tools=[TOOL], stream=True))
    assert '"lookup"' in answer.text, answer.text
    assert "tool_use" in answer.text


@pytest.mark.parametrize(
    ("name", "calls"), [*((name, 1) for name in PLUGINS), *((name, 2) for name in ALONE)]
)
def test_few_calls_leave_an_answer(proxy: Proxy, upstream: Upstream, name: str, calls: int) -> None:
    upstream.play(Script(reply=reply))
    body = body_of("chat", name, optillm_limits={"max_calls": calls})
    answer = proxy.post(ROUTES["chat"], body)
    assert answer.status_code == 200, answer.text
    assert "42" in answer.text
    assert len(upstream.calls) <= calls


@pytest.mark.parametrize("name", ALONE)
def test_failures_are_told(proxy: Proxy, upstream: Upstream, name: str) -> None:
    upstream.play(Script(reply=reply, fault=always(Status(503))))
    answer = proxy.post(ROUTES["chat"], body_of("chat", name))
    assert (answer.status_code, "Traceback" in answer.text) == (503, False), answer.text
    assert "provider says no" in answer.text


@pytest.mark.parametrize("name", [name for name in ALONE if name not in WHOLE])
def test_a_stream_that_is_cut_is_an_error_and_not_paid_again(
    proxy: Proxy, upstream: Upstream, name: str
) -> None:
    for _ in "ab":  # what a key's first request keeps for its next one, such as a plan, is there
        upstream.play(Script(reply=reply))
        proxy.post(ROUTES["chat"], body_of("chat", name, stream=True))
    last = len(upstream.calls) - 1
    assert upstream.calls[last].streamed
    upstream.play(Script(reply=reply, fault=at({last: CUT})))
    answer = proxy.post(ROUTES["chat"], body_of("chat", name, stream=True))
    assert len(upstream.calls) <= last + 1
    assert '"error"' in answer.text


@pytest.mark.parametrize("name", ALONE)
def test_on_error_plain(proxy: Proxy, upstream: Upstream, name: str) -> None:
    upstream.play(Script(reply=reply, fault=at({0: Status(500)})))
    answer = proxy.post(ROUTES["chat"], body_of("chat", name, model=f"plain-{name}"))
    assert answer.status_code == 200, answer.text
    assert "42" in answer.text
