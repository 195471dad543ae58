"""Traces, logs in JSON and the log of conversations, of one proxy that has all of them."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from stat import S_IMODE
from typing import Any
from uuid import uuid4

import pytest

from tests.gateway.shared import hang_up
from tests.otlp import Collected, Collector
from tests.proxy import Proxy, alias, hooked_config, model_group, whole_lines
from tests.upstream import HANG, Script, Status, Upstream, always, at, differing

SECRET = "the-question-nobody-may-read"
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": f"{SECRET}: 6 * 7?"}]}
CHAT_ROUTE = "/v1/chat/completions"
CALL_ID = "x-litellm-call-id"
CALLS = "gen_ai.invoke_workflow.inference_calls"


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the log of conversations, which is made with the first line."""
    return tmp_path_factory.mktemp("logs") / "conversations"


@pytest.fixture(scope="module")
def proxy(
    tmp_path_factory: pytest.TempPathFactory,
    upstream: Upstream,
    collector: Collector,
    folder: Path,
) -> Iterator[Proxy]:
    models = [model_group("base", upstream.url), alias("rated", "bon(n=2)")]
    config = hooked_config(
        models,
        optillm_settings={
            "conversation_log": {"directory": str(folder)},
            "allow_no_log": True,
        },
    )
    settings = config["litellm_settings"]
    settings["callbacks"] = [*settings["callbacks"], "otel"]
    settings["json_logs"] = True
    env = {
        "LITELLM_LOG": "INFO",
        "OTEL_EXPORTER": "otlp_http",
        "OTEL_ENDPOINT": collector.url,
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "LITELLM_OTEL_INTEGRATION_ENABLE_METRICS": "true",
    }
    with Proxy(config, tmp_path_factory.mktemp("proxy"), env=env) as running:
        yield running


def line_of(call_id: str, proxy: Proxy, read: Callable[[], list[dict[str, Any]]]) -> dict[str, Any]:
    """Wait for the line of a request; those of requests before it may still come."""

    def own() -> list[dict[str, Any]]:
        return [line for line in read() if line["call_id"] == call_id]

    proxy.wait_until(lambda _: bool(own()))
    [line] = own()
    return line


def lines(proxy: Proxy) -> list[dict[str, Any]]:
    """Return our INFO lines about requests."""
    texts = [line for line in proxy.log.splitlines() if '"message": "call_id=' in line]
    return [json.loads(text) for text in texts]


class Watched:
    """What the collector and the log get of one request, which is sent with `headers`."""

    def __init__(self, proxy: Proxy, collector: Collector) -> None:
        self._proxy = proxy
        self._collector = collector
        self.call_id = str(uuid4())
        self.headers = {CALL_ID: self.call_id}

    @property
    def line(self) -> dict[str, Any]:
        return line_of(self.call_id, self._proxy, lambda: lines(self._proxy))

    def spans(self, *names: str) -> Sequence[Collected]:
        """Return the spans of the request's trace, once as many as `names` are there."""
        trace = self.line["otel_trace_id"]
        wanted = Counter(names)

        def here(collector: Collector) -> list[Collected]:
            return [span for span in collector.spans if span.trace_id == trace]

        self._collector.wait_until(lambda c: wanted <= Counter(span.name for span in here(c)))
        return here(self._collector)


BON = ("invoke_workflow bon", "bon", "litellm_request", "litellm_request", "litellm_request")


def only(spans: Sequence[Collected], name: str) -> Collected:
    [span] = [span for span in spans if span.name == name]
    return span


def children(spans: Sequence[Collected], parent: Collected, name: str) -> list[Collected]:
    return [span for span in spans if span.parent == parent.span_id and span.name == name]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_request_is_one_tree_in_the_callers_trace(
    proxy: Proxy, upstream: Upstream, collector: Collector, stream: bool
) -> None:
    upstream.play(Script(reply=differing))
    watched = Watched(proxy, collector)
    trace, caller = ("ab" if stream else "ba") * 16, "cd" * 8
    client = proxy.openai(
        default_headers={"traceparent": f"00-{trace}-{caller}-01", **watched.headers}
    )
    answer = client.chat.completions.create(model="rated", stream=stream, **CHAT)
    assert "42" in ("".join(str(c) for c in answer) if stream else str(answer))
    spans = watched.spans(*BON, "litellm_request", "Received Proxy Server Request")
    received = only(spans, "Received Proxy Server Request")
    workflow, stage = only(spans, "invoke_workflow bon"), only(spans, "bon")
    calls = children(spans, stage, "litellm_request")
    assert (received.trace_id, received.parent) == (trace, caller)
    assert (workflow.parent, stage.parent) == (received.span_id, workflow.span_id)
    costs = [span.attributes["gen_ai.cost.total_cost"] for span in calls]
    assert len({*costs}) == len(costs) == len(upstream.calls) == 3
    line = watched.line
    assert sum(costs) == pytest.approx(line["cost_usd"])
    assert workflow.attributes["optillm.cost_usd"] == pytest.approx(line["cost_usd"])
    assert workflow.attributes[CALLS] == line["calls"] == 3
    assert workflow.attributes["optillm.call_id"] == line["call_id"]
    assert all(each.started <= each.ended for each in spans)
    assert SECRET not in f"{workflow} {stage}"


def test_a_plan_that_fails(proxy: Proxy, upstream: Upstream, collector: Collector) -> None:
    upstream.play(Script(fault=always(Status(500))))
    watched = Watched(proxy, collector)
    answer = proxy.post(CHAT_ROUTE, {"model": "rated", **CHAT}, headers=watched.headers)
    assert answer.status_code == 500
    spans = watched.spans(*BON)
    for name in ("invoke_workflow bon", "bon"):
        span = only(spans, name)
        assert (span.failed, span.attributes["error.type"]) == (True, "provider_failed")
    assert watched.line["error"] == "provider_failed"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_client_that_has_gone(
    proxy: Proxy, upstream: Upstream, collector: Collector, stream: bool
) -> None:
    upstream.play(Script(reply=differing, fault=at({1: HANG, 2: HANG})))
    watched = Watched(proxy, collector)
    body = {"model": "rated", "stream": stream, **CHAT}
    hang_up(proxy, upstream, CHAT_ROUTE, body, done=2, headers=watched.headers)
    spans = watched.spans(*BON)
    stage = only(spans, "bon")
    assert len(children(spans, stage, "litellm_request")) == 3
    for span in (stage, only(spans, "invoke_workflow bon")):
        assert (span.failed, span.attributes["error.type"]) == (False, "cancelled")
    assert watched.line["error"] == "cancelled"


def test_the_duration_of_plans_is_a_metric(
    proxy: Proxy, upstream: Upstream, collector: Collector
) -> None:
    upstream.play(Script())
    client = proxy.openai()
    client.chat.completions.create(model="cot_reflection-base", **CHAT)
    series = {"gen_ai.workflow.name": "cot_reflection"}
    collector.wait_until(lambda c: (series, 1) in c.histograms.get("gen_ai.workflow.duration", ()))


def test_a_line_of_json_has_the_values_as_fields(
    proxy: Proxy, upstream: Upstream, collector: Collector
) -> None:
    upstream.play(Script(reply=differing))
    watched = Watched(proxy, collector)
    answer = proxy.post(CHAT_ROUTE, {"model": "rated", **CHAT}, headers=watched.headers)
    line, report = watched.line, answer.json()["optillm"]
    told = ("calls", "depth", "cost_usd", "stopped_by", "degraded")
    assert {name: line[name] for name in told} == {name: report[name] for name in told}
    assert (line["approach"], line["base"], line["error"]) == ("bon", "base", None)
    assert line["call_id"] == answer.headers[CALL_ID] == watched.call_id
    assert line["seconds"] > 0
    assert line["level"] == "INFO"
    assert line["message"].startswith(f"call_id={line['call_id']} approach=bon base=base calls=3 ")


ADDRESS = "ann.lee@example.org"
PRIVATE = [{"role": "user", "content": f"Who is {ADDRESS}? My key is sk-abcdef1234567890abcdef."}]
FAMILIAR = f"That is {ADDRESS} again.\nRating: 7"


def conversation(call_id: str, proxy: Proxy, folder: Path) -> dict[str, Any]:
    """Return the line that the log of conversations has of a request."""
    return line_of(call_id, proxy, lambda: conversations(folder))


def conversations(folder: Path) -> list[dict[str, Any]]:
    files = sorted(folder.glob("conversations-*.jsonl"))
    return [json.loads(line) for file in files for line in whole_lines(file)]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_conversation_is_a_line_without_its_private_values(
    proxy: Proxy, upstream: Upstream, folder: Path, stream: bool
) -> None:
    upstream.play(Script(reply=lambda *_: FAMILIAR))
    body = {"model": "rated", "stream": stream, "messages": PRIVATE}
    answer = proxy.post(CHAT_ROUTE, body)
    line = conversation(answer.headers[CALL_ID], proxy, folder)
    assert (line["approach"], line["requested"], line["route"]) == ("bon", "rated", "chat")
    assert (line["calls"], line["error"], line["stream"]) == (1, None, stream)  # samples agree
    assert line["redacted"] == "private"
    [asked], [choice] = line["messages"], line["choices"]
    assert choice["finish_reason"] == "stop"
    assert ADDRESS not in json.dumps(line)
    assert "sk-abcdef" not in json.dumps(line)
    [pseudonym] = re.findall(r"Who is (\S+)\?", asked["content"])
    assert choice["message"]["content"] == f"That is {pseudonym} again.\nRating: 7"
    assert {S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert S_IMODE(folder.stat().st_mode) == 0o700


def test_a_plan_that_fails_has_a_line(proxy: Proxy, upstream: Upstream, folder: Path) -> None:
    upstream.play(Script(fault=always(Status(500))))
    answer = proxy.post(CHAT_ROUTE, {"model": "rated", **CHAT})
    line = conversation(answer.headers[CALL_ID], proxy, folder)
    assert (line["error"], line["choices"]) == ("provider_failed", [])
    assert SECRET in line["messages"][0]["content"]


def test_of_a_stream_that_is_closed_in_its_middle_the_line_has_what_was_shown(
    proxy: Proxy, upstream: Upstream, folder: Path
) -> None:
    upstream.play(Script(reply=lambda *_: "word " * 1000, piece_s=0.02))
    headers = {"authorization": f"Bearer {proxy.master_key}"}
    body = {"model": "re2-base", "stream": True, **CHAT}
    with proxy.http.stream(
        "POST", f"{proxy.url}{CHAT_ROUTE}", json=body, headers=headers
    ) as answer:
        next(line for line in answer.iter_lines() if "word" in line)
    line = conversation(answer.headers[CALL_ID], proxy, folder)
    [choice] = line["choices"]
    assert line["error"] == "cancelled"
    assert choice["message"]["content"].startswith("word")
    assert choice["finish_reason"] is None


def test_a_client_that_has_gone_before_the_answer_has_a_line(
    proxy: Proxy, upstream: Upstream, folder: Path
) -> None:
    upstream.play(Script(fault=always(HANG)))
    call_id = str(uuid4())
    body = {"model": "rated", **CHAT}
    hang_up(proxy, upstream, CHAT_ROUTE, body, done=0, headers={CALL_ID: call_id})
    line = conversation(call_id, proxy, folder)
    assert (line["error"], line["choices"]) == ("cancelled", [])


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("messages", {**CHAT, "max_tokens": 99}),
        ("responses", {"input": CHAT["messages"][0]["content"]}),
        ("completions", {"prompt": CHAT["messages"][0]["content"]}),
    ],
)
def test_so_on_the_other_routes(
    proxy: Proxy, upstream: Upstream, folder: Path, route: str, body: dict[str, Any]
) -> None:
    upstream.play(Script())
    answer = proxy.post(f"/v1/{route}", {"model": "re2-base", **body}).raise_for_status()
    line = conversation(answer.headers[CALL_ID], proxy, folder)
    assert line["route"] == route
    assert SECRET in json.dumps(line["messages"])
    assert "42" in line["choices"][0]["message"]["content"]


def test_of_attachments_only_the_type_is_kept(
    proxy: Proxy, upstream: Upstream, folder: Path
) -> None:
    upstream.play(Script())
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    content = [{"type": "text", "text": "What is this?"}, image]
    body = {"model": "re2-base", "messages": [{"role": "user", "content": content}]}
    answer = proxy.post(CHAT_ROUTE, body).raise_for_status()
    [asked] = conversation(answer.headers[CALL_ID], proxy, folder)["messages"]
    assert asked["content"] == [content[0], {"type": "image_url", "omitted": True}]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_what_litellm_leaves_out_of_its_logs_has_no_texts(
    proxy: Proxy, upstream: Upstream, folder: Path, stream: bool
) -> None:
    upstream.play(Script())
    headers = {"x-litellm-enable-message-redaction": "true", CALL_ID: str(uuid4())}
    client = proxy.openai(default_headers=headers)
    answer = client.chat.completions.create(model="rated", stream=stream, **CHAT)
    list(answer)
    line = conversation(headers[CALL_ID], proxy, folder)
    assert line["redacted"] == "texts"
    assert line["messages"] == [{"role": "user", "content": "redacted-by-litellm"}]
    [choice] = line["choices"]
    assert choice["message"] == {"role": "assistant", "content": "redacted-by-litellm"}


def test_a_request_that_is_not_to_be_logged_has_no_line(
    proxy: Proxy, upstream: Upstream, folder: Path
) -> None:
    upstream.play(Script())
    unlogged = proxy.post(CHAT_ROUTE, {"model": "re2-base", "no-log": True, **CHAT})
    logged = proxy.post(CHAT_ROUTE, {"model": "rated", **CHAT})
    assert (unlogged.status_code, logged.status_code) == (200, 200)
    assert conversation(logged.headers[CALL_ID], proxy, folder)["requested"] == "rated"
    known = [line["call_id"] for line in conversations(folder)]
    assert unlogged.headers[CALL_ID] not in known
