"""Whole requests from files: what a provider answers, what a client sends, what must come back.

A case has these keys:

* `upstream`: `replies`, the messages of the provider's replies in turn, of which the last one
  repeats (one with a `status` is an error); `fault`, an error of one `model` or of all.
* `request`: `path`, `method` and `body`, or a list of such requests.
* `expect`: each with `at`, a path into the outcome, and `is`, `in`, `has` or `not_has`. In a path,
  `*` stands for every item, and `len` for the length. `has` looks into the JSON text of a value.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import httpx
import pytest
import yaml
from _pytest.mark import ParameterSet

from tests.proxy import ROOT, Config
from tests.upstream import Call, Fault, Reply, Script, Status, answer_42

FOLDER: Final = ROOT / "tests" / "golden" / "requests"

_LOCAL: Final = frozenset({"smollm2", "smollm2-reread"})
"""Models that run in the proxy: their cases are tested where the local model runs anyway."""

Json = Any


@dataclass(frozen=True, slots=True)
class Case:
    """One file."""

    id: str
    document: Mapping[str, Json]

    @property
    def requests(self) -> list[Mapping[str, Json]]:
        request = self.document["request"]
        return request if isinstance(request, list) else [request]

    @property
    def local(self) -> bool:
        """Whether it asks the local model."""
        return any(request.get("body", {}).get("model") in _LOCAL for request in self.requests)

    @property
    def timeout_s(self) -> float:
        return float(self.document.get("timeout", 60))

    @property
    def script(self) -> Script:
        """What the provider answers."""
        upstream = self.document["upstream"] or {}
        replies = upstream.get("replies") or []
        fault = upstream.get("fault")

        def given(call: Call) -> Mapping[str, Json]:
            return replies[min(call.index, len(replies) - 1)] if replies else {}

        def reply(call: Call, choice: int) -> Reply | str:
            return _reply(given(call)) if replies else answer_42(call, choice)

        def failure(call: Call) -> Fault | None:
            if fault is not None and fault.get("model", call.body["model"]) == call.body["model"]:
                return _status(fault)
            answer = given(call)
            return _status(answer) if "status" in answer else None

        return Script(reply=reply, fault=failure)

    def check(self, responses: Sequence[httpx.Response], calls: Sequence[Call]) -> None:
        """Assert what the case expects of every response, and of the calls."""
        seen = [call.body for call in calls]
        for response in responses:
            outcome = _outcome(response) | {"calls": seen}
            for expected in self.document["expect"]:
                _check(outcome, expected)


def cases(*, local: bool = False) -> list[ParameterSet]:
    """Return the cases of the local model, or all others, as parameters of a test."""
    files = sorted(FOLDER.glob("*.json"))
    read = [Case(file.stem, json.loads(file.read_text())) for file in files]
    return [pytest.param(case, id=case.id) for case in read if case.local is local]


def config(address: str) -> Config:
    """Return the proxy's configuration, with the provider at `address`."""
    text = (FOLDER / "config.yaml").read_text()
    read: Config = yaml.safe_load(text.replace("{mock}", address))
    return read


def send(
    http: httpx.Client, address: str, key: str, request: Mapping[str, Json], timeout_s: float
) -> httpx.Response:
    """Send one request to the proxy at `address`."""
    return http.request(
        request.get("method", "POST"),
        address + request.get("path", "/v1/chat/completions"),
        json=request.get("body"),
        headers={"authorization": f"Bearer {key}"},
        timeout=timeout_s,
    )


def _reply(message: Mapping[str, Json]) -> Reply:
    known = ("content", "reasoning_content", "tool_calls", "finish_reason")
    functions = [call["function"] for call in message.get("tool_calls") or ()]
    return Reply(
        message.get("content"),
        message.get("reasoning_content") or "",
        [(function["name"], function["arguments"]) for function in functions],
        finish_reason=message.get("finish_reason"),
        fields={name: value for name, value in message.items() if name not in known},
    )


def _status(fault: Mapping[str, Json]) -> Status:
    return Status(fault["status"], retry_after=fault.get("retry_after"), body=fault.get("body"))


def _outcome(response: httpx.Response) -> dict[str, Json]:
    outcome: dict[str, Json] = {"status": response.status_code, "header": dict(response.headers)}
    if response.headers.get("content-type", "").startswith("text/event-stream"):
        return outcome | {"stream": read_stream(response.text), "body": response.text}
    try:
        return outcome | {"body": response.json()}
    except ValueError:
        return outcome | {"body": response.text}


def read_stream(text: str) -> dict[str, Json]:
    """Return what a client reads from a stream of any route.

    `text`; on chat and completions `finish`, the finish reasons of each choice; on messages
    `blocks`, with the JSON of a tool call as `_json`, and `stop_reason`; `errors`.
    """
    read: dict[str, Json] = {"text": "", "finish": [], "blocks": [], "stop_reason": None}
    read["errors"] = []
    for event in _events(text):
        if "error" in event:
            read["errors"].append(event["error"])
        elif "choices" in event:
            _add_chunk(read, event)
        elif event.get("type") == "response.output_text.delta":
            read["text"] += event["delta"]
        else:
            _add_block_event(read, event)
    return read


def _events(text: str) -> Iterator[dict[str, Json]]:
    for line in text.splitlines():
        data = line.removeprefix("data:").strip()
        if line.startswith("data:") and data != "[DONE]":
            yield json.loads(data)


def _add_chunk(read: dict[str, Json], chunk: Mapping[str, Json]) -> None:
    for choice in chunk["choices"]:
        index = choice.get("index", 0)
        if index == 0:
            read["text"] += (choice.get("delta") or choice).get("content") or ""
            read["text"] += choice.get("text") or ""
        if choice.get("finish_reason"):
            read["finish"] += [[] for _ in range(index + 1 - len(read["finish"]))]
            read["finish"][index].append(choice["finish_reason"])


def _add_block_event(read: dict[str, Json], event: Mapping[str, Json]) -> None:
    """Add an event of Anthropic's stream; the deltas of a block follow its start."""
    kind = event.get("type")
    if kind == "content_block_start":
        assert event["index"] == len(read["blocks"]), "blocks are numbered from 0"
        read["blocks"].append({**event["content_block"], "_json": ""})
    elif kind == "content_block_delta":
        block, delta = read["blocks"][event["index"]], event["delta"]
        block["_json"] += delta.get("partial_json", "")
        for name in ("text", "thinking"):
            block[name] = block.get(name, "") + delta.get(name, "")
        read["text"] += delta.get("text", "")
    elif kind == "message_delta":
        read["stop_reason"] = event["delta"].get("stop_reason")


def _check(outcome: Mapping[str, Json], expected: Mapping[str, Json]) -> None:
    for value in _values(outcome, expected["at"].split(".")):
        shown = value if isinstance(value, str) else json.dumps(value)
        where = f"{expected['at']} is {shown[:300]}; body: {json.dumps(outcome['body'])[:1500]}"
        assert "is" not in expected or value == expected["is"], where
        assert "in" not in expected or value in expected["in"], where
        assert "has" not in expected or expected["has"] in shown, where
        assert "not_has" not in expected or expected["not_has"] not in shown, where


def _values(value: Json, path: Sequence[str]) -> list[Json]:
    if not path:
        return [value]
    name, *rest = path
    if name == "*":
        return [found for item in value for found in _values(item, rest)]
    if name == "len":
        return _values(len(value), rest)
    if isinstance(value, list):
        assert int(name) < len(value), f"no {'.'.join(path)} in {json.dumps(value)[:500]}"
        return _values(value[int(name)], rest)
    return _values((value or {}).get(name), rest)
