"""A scripted provider on loopback that speaks OpenAI's chat API and Anthropic's messages API.

It runs in a thread of the test's own process and remembers every call. It is stricter than a real
provider: a request to another route, or one that breaks the API's contract, is kept in
`violations`, and leaving the `with` block fails on them. Models of OpenAI that reason, and Claude,
refuse what they refuse in reality, in the same words.
"""

import asyncio
import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Literal, Self

from optillm_hooks.types import TokenLogprob
from tests.anthropic_wire import events, message
from tests.provider_rules import anthropic_refusal, openai_refusal

_MESSAGES = "/v1/messages"

Outcome = Literal["alive", "answered", "failed", "gone"]
"""How a call ended: with a whole reply, by its fault, or because the client hung up first."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One choice as a model gives it."""

    text: str | None = None
    reasoning: str = ""
    tool_calls: Sequence[tuple[str, str]] = ()
    """Name and arguments (as JSON text) of each."""

    logprobs: Sequence[TokenLogprob] = ()
    finish_reason: str | None = None
    """None: "tool_calls" if there are any, otherwise "stop"."""

    fields: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """More fields of the message, such as `refusal` and `function_call`."""

    @property
    def finished(self) -> str:
        return self.finish_reason or ("tool_calls" if self.tool_calls else "stop")


@dataclass(frozen=True, slots=True)
class Billed:
    """What the provider charges for one call, or for several."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    """Part of `completion_tokens`."""

    cached_tokens: int = 0
    """Part of `prompt_tokens`."""

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: "Billed") -> "Billed":
        return Billed(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
            self.cached_tokens + other.cached_tokens,
        )

    def cost(self, prompt: float, completion: float) -> float:
        """Return the price in dollars, given that of one token."""
        return self.prompt_tokens * prompt + self.completion_tokens * completion

    def as_json(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.total_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
        }


@dataclass(slots=True)
class Call:
    """One request of a client, under way or ended."""

    index: int
    body: Mapping[str, Any]
    headers: Mapping[str, str]
    started: float
    """Instant on `time.monotonic`."""

    to_anthropic: bool = False
    ended: float | None = None
    outcome: Outcome = "alive"
    told: Billed | None = None
    """The usage that was reported to the client, which pays for it; None if it was not reported."""

    @property
    def streamed(self) -> bool:
        return bool(self.body.get("stream"))

    @property
    def messages(self) -> list[dict[str, Any]]:
        """Its messages; those to Claude begin with the system prompt as a message, if any."""
        system = self.body.get("system")
        first = [] if system is None else [{"role": "system", "content": system}]
        return [*first, *self.body["messages"]]

    @property
    def refusal(self) -> "Status | None":
        """The refusal of the real provider, if it would refuse the call."""
        body = self.error
        return None if body is None else Status(400, body=body)

    @property
    def error(self) -> dict[str, Any] | None:
        if self.to_anthropic:
            return anthropic_refusal(self.body, self.headers)
        return openai_refusal(self.body)

    @property
    def text(self) -> str:
        """The text of all messages, a line each."""
        return "\n".join(_text(message.get("content")) for message in self.messages)


def _text(content: object) -> str:
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content)
    return str(content or "")


@dataclass(frozen=True, slots=True)
class Status:
    """The provider refuses with this HTTP status, before anything is paid."""

    code: int
    message: str = "the provider says no"
    retry_after: str | None = None
    error: str | None = None
    """OpenAI's `error.code`."""

    body: Mapping[str, Any] | None = None
    """The whole body of the response, if it is not made from `message` and `error`."""


class Broken:
    """A reply that breaks in some way."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


HANG: Final = Broken("HANG")
"""Never answers; ends only when the client goes."""

MALFORMED: Final = Broken("MALFORMED")
"""Status 200 with JSON that stops in the middle."""

NULL: Final = Broken("NULL")
"""Each choice's content is null and there are no tool calls; paid like any other."""

LENGTH: Final = Broken("LENGTH")
"""The reply, cut in half, with finish_reason length."""

NO_CHOICES: Final = Broken("NO_CHOICES")
"""An empty list of choices; paid."""

NO_USAGE: Final = Broken("NO_USAGE")
"""A good reply without usage."""

CLOSED: Final = Broken("CLOSED")
"""The connection is closed instead of a reply."""

CUT: Final = Broken("CUT")
"""The connection is closed in the middle of the reply's content, streamed or not."""

Fault = Status | Broken
FaultRule = Callable[[Call], Fault | None]
ReplyRule = Callable[[Call, int], Reply | str]


_CLOSING_S: Final = 10.0
_ROUNDS: Final = 10
"""Turns of the event loop in which it accepts a connection, reads a request and begins a call."""


def no_fault(_: Call) -> Fault | None:
    return None


def always(fault: Fault) -> FaultRule:
    return lambda _: fault


def at(faults: Mapping[int, Fault]) -> FaultRule:
    """Fail the calls with these indices, counted from 0 in the order of arrival."""
    return lambda call: faults.get(call.index)


def every(k: int, fault: Fault) -> FaultRule:
    """Fail calls k, 2k, 3k, ..., counted from 1."""
    return lambda call: fault if (call.index + 1) % k == 0 else None


def chance(probability: float, fault: Fault, *, seed: int) -> FaultRule:
    """Fail each call with `probability`; whether a call is hit depends on seed and index only."""
    return lambda call: (
        fault if random.Random(f"{seed}:{call.index}").random() < probability else None
    )


def answer_42(_call: Call, _choice: int) -> Reply | str:
    return "6 * 7 is 42.\nANSWER: 42"


def differing(call: Call, choice: int) -> str:
    """Reply so that no two answers are the same, and raters and voters can read it."""
    answer = f"42{call.index:02}{choice}"
    return f"By way {call.index}.{choice}: {answer}.\nRating: {1 + choice}\nANSWER: {answer}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """How the provider behaves."""

    reply: ReplyRule = answer_42
    """Makes a choice, given the call and the number of the choice, from 0."""

    fault: FaultRule = no_fault
    latency_s: float = 0.0
    """From the request to the reply, or to the first piece of a streamed one."""

    piece_s: float = 0.0
    """Between the pieces (words) of a streamed reply."""

    n: Literal["honoured", "ignored", "refused"] = "honoured"
    """How a request for several choices is treated."""

    cached_tokens: int = 0
    reasoning_tokens: int = 0

    def bill(self, call: Call, choices: int) -> Billed:
        """Return a usage that no other call of the script has, so that one missing or counted
        twice shows in the sum."""
        return Billed(
            prompt_tokens=100 + call.index,
            completion_tokens=(20 + 3 * call.index) * choices,
            reasoning_tokens=self.reasoning_tokens,
            cached_tokens=self.cached_tokens,
        )


class Upstream:
    """The provider's server, which records its calls.

    Between tests, `play` sets a new script and forgets the calls of the one before.
    """

    def __init__(self, script: Script | None = None) -> None:
        self.script = script or Script()
        self.calls: list[Call] = []
        self.violations: list[str] = []
        self.port = 0
        self._changed = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="upstream")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def play(self, script: Script) -> None:
        self.wait_until_idle()  # the proxy may still be closing calls of the test before
        self.calls = []
        self.script = script

    @property
    def alive(self) -> list[Call]:
        return [call for call in self.calls if call.ended is None]

    @property
    def depth(self) -> int:
        """The longest chain of ended calls in which each started after the one before ended."""
        return longest_chain([(c.started, c.ended) for c in self.calls if c.ended is not None])

    @property
    def max_concurrency(self) -> int:
        """Maximum number of concurrent calls."""
        instants = [(call.started, 1) for call in self.calls]
        instants += [(call.ended, -1) for call in self.calls if call.ended is not None]
        maximum = now = 0
        for _, change in sorted(instants):
            now += change
            maximum = max(maximum, now)
        return maximum

    @property
    def bill(self) -> Billed:
        """The sum of the usages that clients were told."""
        return sum((call.told for call in self.calls if call.told is not None), Billed())

    def wait_until(self, holds: Callable[["Upstream"], bool], *, within_s: float = 30.0) -> None:
        """Wait until `holds`, which is checked whenever a call starts or ends.

        Raises:
            AssertionError: it does not after `within_s` seconds.
        """
        with self._changed:
            assert self._changed.wait_for(lambda: holds(self), within_s), (
                f"not so after {within_s} s; calls: {[(c.index, c.outcome) for c in self.calls]}"
            )

    def wait_until_idle(self) -> None:
        """Wait until each call that was sent before now has begun and ended.

        Raises:
            AssertionError: one is alive for too long.
        """
        if self._loop.is_running():
            asyncio.run_coroutine_threadsafe(self._receive(), self._loop).result()
        with self._changed:
            idle = self._changed.wait_for(lambda: not self.alive, _CLOSING_S)
        assert idle, f"{len(self.alive)} calls are still alive"

    async def _receive(self) -> None:
        """Begin the calls that are in the sockets, such as one whose client has gone already."""
        for _ in range(_ROUNDS):
            await asyncio.sleep(0)

    def __enter__(self) -> Self:
        with self._changed:
            self._thread.start()
            assert self._changed.wait_for(lambda: self.port, 10), "the upstream does not start"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()
        self._loop.close()
        if error is None:
            assert not self.violations, self.violations

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        connections: set[_Connection] = set()
        server = await self._loop.create_server(lambda: _Connection(self, connections), "127.0.0.1")
        with self._changed:
            self.port = server.sockets[0].getsockname()[1]
            self._changed.notify_all()
        await self._stopping.wait()
        server.close()
        tasks = [connection.hang_up() for connection in list(connections)]
        await asyncio.gather(*filter(None, tasks), return_exceptions=True)

    def started(
        self, body: Mapping[str, Any], headers: Mapping[str, str], *, to_anthropic: bool = False
    ) -> Call:
        with self._changed:
            call = Call(len(self.calls), body, headers, time.monotonic(), to_anthropic)
            self.calls.append(call)
            self._changed.notify_all()
        return call

    def ended(self, call: Call, outcome: Outcome) -> None:
        with self._changed:
            call.ended, call.outcome = time.monotonic(), outcome
            self._changed.notify_all()


def longest_chain(spans: Sequence[tuple[float, float]]) -> int:
    """Return the maximum number of `spans` (start, end) that follow one another without overlap.

    Taking the earliest end first is optimal (interval scheduling).
    """
    length, free_at = 0, float("-inf")
    for started, ended in sorted(spans, key=lambda span: span[1]):
        if started >= free_at:
            length, free_at = length + 1, ended
    return length


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class _Connection(asyncio.Protocol):
    """One client's connection: HTTP/1.1, one request at a time, kept alive.

    A client that hangs up cancels the task that answers it.
    """

    def __init__(self, upstream: Upstream, all_connections: set["_Connection"]) -> None:
        self._upstream = upstream
        self._all = all_connections
        self._received = bytearray()
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._all.add(self)

    def data_received(self, data: bytes) -> None:
        self._received += data
        self._next()

    def connection_lost(self, _exc: Exception | None) -> None:
        self._all.discard(self)
        if self._task is not None:
            self._task.cancel()

    def hang_up(self) -> asyncio.Task[None] | None:
        self._transport.abort()
        if self._task is not None:
            self._task.cancel()
        return self._task

    def _next(self) -> None:
        if self._task is None and (request := self._take_request()) is not None:
            self._task = asyncio.get_running_loop().create_task(self._answer(request))

    def _take_request(self) -> _Request | None:
        """Return the next request once it has arrived completely."""
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return None
        first, *lines = self._received[:end].decode("latin-1").split("\r\n")
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines)
        }
        start = end + 4
        stop = start + int(headers.get("content-length", 0))
        if len(self._received) < stop:
            return None
        method, path, _ = first.split(" ")
        request = _Request(method, path, headers, bytes(self._received[start:stop]))
        del self._received[:stop]
        return request

    async def _answer(self, request: _Request) -> None:
        if (request.method, request.path) == ("GET", "/v1/models"):
            # LiteLLM looks from time to time for the models' limits: nothing is known here.
            self._send_json(200, {"object": "list", "data": []})
        elif (body := self._checked(request)) is None:
            self._send_json(404, {"error": {"message": "violation", "type": "test"}})
        else:
            to_anthropic = request.path == _MESSAGES
            await self._answer_call(
                self._upstream.started(body, request.headers, to_anthropic=to_anthropic)
            )
        self._task = None
        self._next()

    def _checked(self, request: _Request) -> Mapping[str, Any] | None:
        """Return the body of a valid chat request; note the violations of an invalid one."""
        try:
            body = json.loads(request.body)
        except ValueError:
            body = None
        wrong = None
        if request.method != "POST" or request.path not in ("/v1/chat/completions", _MESSAGES):
            wrong = "unexpected route"
        elif not isinstance(body, dict):
            wrong = "the body is not a JSON object"
        elif not isinstance(body.get("model"), str):
            wrong = "no model"
        elif not _are_messages(body.get("messages")):
            wrong = "the messages are not a list of messages, or empty"
        elif not isinstance(body.get("n", 1), int):
            wrong = "n is not an integer"
        if wrong is None:
            assert isinstance(body, dict)
            return body
        self._upstream.violations.append(f"{wrong}: {request.method} {request.path}: {body!r:.500}")
        return None

    async def _answer_call(self, call: Call) -> None:
        try:
            await self._reply(call, self._upstream.script)
        except Exception as exc:
            self._upstream.violations.append(f"call {call.index}: the script raised {exc!r}")
            self._end(call, "failed")
            self._send_error(Status(500, "the script raised"))
        finally:
            if call.ended is None:
                self._end(call, "gone")

    def _end(self, call: Call, outcome: Outcome) -> None:
        """Note the end before the last bytes go out: who has read a reply finds it ended."""
        self._upstream.ended(call, outcome)

    async def _reply(self, call: Call, script: Script) -> None:
        fault = script.fault(call) or call.refusal
        asked = call.body.get("n") or 1
        if asked > 1 and script.n == "refused":
            fault = fault or Status(400, "one at a time")  # nobody can learn from these words
        if fault is HANG:
            await asyncio.Event().wait()
        if script.latency_s:
            await asyncio.sleep(script.latency_s)
        if isinstance(fault, Status):
            self._end(call, "failed")
            self._send_error(fault)
        elif fault is CLOSED:
            self._end(call, "failed")
            self._transport.close()
        else:
            await self._send_choices(call, script, fault, asked if script.n == "honoured" else 1)

    async def _send_choices(
        self, call: Call, script: Script, fault: Broken | None, count: int
    ) -> None:
        choices = [_spoilt(script.reply(call, number), fault) for number in range(count)]
        if fault is NO_CHOICES:
            choices = []
        billed = None if fault is NO_USAGE else script.bill(call, count)
        if call.streamed:
            await self._stream(call, choices, billed, fault, script.piece_s)
        else:
            self._send_whole(call, choices, billed, fault)

    def _send_whole(
        self, call: Call, choices: Sequence[Reply], billed: Billed | None, fault: Broken | None
    ) -> None:
        if call.to_anthropic:
            document = message(call.body, call.index, choices[0], billed)
        else:
            document = _head(call, "chat.completion") | {
                "choices": [_choice(number, reply) for number, reply in enumerate(choices)],
            }
            if billed is not None:
                document["usage"] = billed.as_json()
        content = json.dumps(document).encode()
        half = content[: len(content) // 2]
        if fault is CUT:
            self._end(call, "failed")
            self._send_head(200, "application/json", f"content-length: {len(content)}")
            self._transport.write(half)
            self._transport.close()
        elif fault is MALFORMED:
            self._end(call, "failed")
            self._send(200, half)
        else:
            call.told = billed
            self._end(call, "answered")
            self._send(200, content)

    async def _stream(
        self,
        call: Call,
        choices: Sequence[Reply],
        billed: Billed | None,
        fault: Broken | None,
        piece_s: float,
    ) -> None:
        self._send_head(200, "text/event-stream", "transfer-encoding: chunked")
        if call.to_anthropic:
            await self._stream_events(call, choices[0], billed, fault, piece_s)
            return
        chunks = list(_chunks(call, choices))
        if fault in (CUT, MALFORMED):
            chunks = chunks[: len(chunks) // 2]
        for position, chunk in enumerate(chunks):
            if position and piece_s:
                await asyncio.sleep(piece_s)
            self._send_event(json.dumps(chunk))
        if fault is CUT:
            self._end(call, "failed")
            self._transport.close()
            return
        if fault is MALFORMED:
            self._end(call, "failed")
            self._send_event('{"id": "chatcmpl-')
        else:
            if (call.body.get("stream_options") or {}).get("include_usage") and billed is not None:
                call.told = billed
                last = {"choices": [], "usage": billed.as_json()}
                self._send_event(json.dumps(_head(call, "chat.completion.chunk") | last))
            self._end(call, "answered")
        self._send_event("[DONE]")
        self._transport.write(b"0\r\n\r\n")

    async def _stream_events(
        self, call: Call, reply: Reply, billed: Billed | None, fault: Broken | None, piece_s: float
    ) -> None:
        whole = list(events(call.body, call.index, reply, billed))
        broken = fault in (CUT, MALFORMED)
        for position, event in enumerate(whole[: len(whole) // 2] if broken else whole):
            if position and piece_s:
                await asyncio.sleep(piece_s)
            if event["type"] == "message_stop":
                call.told = billed
                self._end(call, "answered")
            self._send_event(json.dumps(event), event["type"])
        if broken:
            self._end(call, "failed")
            self._transport.close()
        else:
            self._transport.write(b"0\r\n\r\n")

    def _send_error(self, fault: Status) -> None:
        error = {"message": fault.message, "type": "upstream_error", "code": fault.error}
        extra = [] if fault.retry_after is None else [f"retry-after: {fault.retry_after}"]
        self._send_json(fault.code, fault.body or {"error": error}, *extra)

    def _send_json(self, status: int, document: Mapping[str, Any], *extra: str) -> None:
        self._send(status, json.dumps(document).encode(), *extra)

    def _send(self, status: int, content: bytes, *extra: str) -> None:
        self._send_head(status, "application/json", f"content-length: {len(content)}", *extra)
        self._transport.write(content)

    def _send_head(self, status: int, content_type: str, *extra: str) -> None:
        lines = [f"HTTP/1.1 {status} Scripted", f"content-type: {content_type}", *extra, "", ""]
        self._transport.write("\r\n".join(lines).encode())

    def _send_event(self, data: str, name: str | None = None) -> None:
        head = "" if name is None else f"event: {name}\n"
        event = f"{head}data: {data}\n\n".encode()
        self._transport.write(b"%x\r\n%s\r\n" % (len(event), event))


def _are_messages(messages: object) -> bool:
    return (
        isinstance(messages, list)
        and bool(messages)
        and all(isinstance(m, dict) and isinstance(m.get("role"), str) for m in messages)
    )


def _spoilt(reply: Reply | str, fault: Fault | None) -> Reply:
    whole = Reply(reply) if isinstance(reply, str) else reply
    if fault is NULL:
        return Reply(None)
    if fault is LENGTH:
        text = whole.text or ""
        return Reply(text[: len(text) // 2], whole.reasoning, finish_reason="length")
    return whole


def _head(call: Call, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{call.index}",
        "object": kind,
        "created": 1_700_000_000,
        "model": call.body["model"],
    }


def _tool_calls(reply: Reply, number: int) -> list[dict[str, Any]]:
    return [
        {
            "id": f"call_{number}_{position}",
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }
        for position, (name, arguments) in enumerate(reply.tool_calls)
    ]


def _logprob(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}


def _logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    return {
        "content": [
            _logprob(t.token, t.logprob) | {"top_logprobs": [_logprob(*other) for other in t.top]}
            for t in tokens
        ]
    }


def _choice(number: int, reply: Reply) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": reply.text}
    if reply.reasoning:
        message["reasoning_content"] = reply.reasoning
    if reply.tool_calls:
        message["tool_calls"] = _tool_calls(reply, number)
    message |= reply.fields
    return {
        "index": number,
        "message": message,
        "logprobs": _logprobs(reply.logprobs) if reply.logprobs else None,
        "finish_reason": reply.finished,
    }


def _chunks(call: Call, choices: Sequence[Reply]) -> Iterator[dict[str, Any]]:
    """Yield the pieces of all choices: role, reasoning, words (or scored tokens), tools, finish."""
    head = _head(call, "chat.completion.chunk")
    for number, reply in enumerate(choices):
        pieces: list[tuple[dict[str, Any], TokenLogprob | None]] = [({"role": "assistant"}, None)]
        if reply.reasoning:
            pieces.append(({"reasoning_content": reply.reasoning}, None))
        if reply.logprobs:
            pieces += [({"content": scored.token}, scored) for scored in reply.logprobs]
        else:
            pieces += [({"content": word}, None) for word in _words(reply.text or "")]
        pieces += [({name: value}, None) for name, value in reply.fields.items()]
        for position, tool in enumerate(_tool_calls(reply, number)):
            arguments = tool["function"].pop("arguments")
            opening = tool | {"index": position, "function": tool["function"] | {"arguments": ""}}
            rest = {"index": position, "function": {"arguments": arguments}}
            pieces += [({"tool_calls": [opening]}, None), ({"tool_calls": [rest]}, None)]
        for delta, scored in pieces:
            choice = {"index": number, "delta": delta, "finish_reason": None}
            if scored is not None:
                choice["logprobs"] = _logprobs([scored])
            yield head | {"choices": [choice]}
        yield (
            head | {"choices": [{"index": number, "delta": {}, "finish_reason": reply.finished}]}
        )


def _words(text: str) -> list[str]:
    """Split `text` into words, each with the white space that precedes it."""
    words = text.split(" ")
    return [words[0], *(f" {word}" for word in words[1:])] if text else []
