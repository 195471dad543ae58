"""Agents through the real proxy: loops of twelve turns with the vendors' SDKs, on three routes."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import anthropic
import httpx
import pytest
from litellm.constants import SESSION_ID_GENERATED_METADATA_KEY

from optillm_hooks.gateway.caller import read_caller
from tests.gateway.test_claude_code import BUDGET, REQUEST
from tests.proxy import Proxy, alias, hooked_config, model_group, new_trace, traceparent
from tests.upstream import HANG, Call, Reply, Script, Status, Upstream

PRIVATE: Final = "think_harder"
QUESTION: Final = "What is 6 times 7?"
SCHEMA: Final = {"type": "object", "properties": {"n": {"type": "integer"}}}
ADVICE: Final = "Lies zuerst die Datei 99."
TASK: Final = "Read the files one after the other."
SYSTEM: Final = "You are a coding agent."
TURNS: Final = 12


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Proxy]:
    claude = upstream.url.removesuffix("/v1")
    asking = 'on_demand(use="re2&self_consistency(n=1)")'
    config = hooked_config(
        [
            model_group("base", upstream.url),
            model_group("claude", claude, model="anthropic/claude-sonnet-4-5"),
            model_group("old", upstream.url, model="perplexity/old"),
            model_group("wise", upstream.url),
            alias("asking", asking),
            alias("asking-claude", asking, "claude"),
            alias("asking-wise", "on_demand(use=none; model=wise)"),
            alias("bad", "on_demand(use=on_demand)"),
            alias("advised", "advisor(advisor=wise)"),
            alias("advised-claude", "advisor(advisor=wise)", "claude"),
            alias("hasty", "advisor(advisor=wise; timeout_s=0.2)"),
        ]
    )
    with Proxy(config, tmp_path_factory.mktemp("proxy")) as running:
        yield running


@pytest.fixture
def agents(proxy: Proxy) -> Iterator[Callable[[str, bool], "Agent"]]:
    with anthropic.Anthropic(
        base_url=proxy.url, api_key=proxy.master_key, max_retries=0, timeout=60
    ) as claude:

        def agent(route: str, streamed: bool) -> Agent:
            if route == "messages":
                return MessagesAgent(claude, streamed)
            kind = ChatAgent if route == "chat" else ResponsesAgent
            return kind(proxy.openai(), streamed)

        yield agent


# ------------------------------------------------------------------------------- three clients


@dataclass
class Agent:
    """An agent that reads what the model wants to read, until it calls no tool."""

    client: Any
    streamed: bool
    history: list[Any] = field(default_factory=list[Any])
    turns: int = 0
    text: str = ""
    tokens: int = 0
    reports: list[Any] = field(default_factory=list[Any])
    seen: list[str] = field(default_factory=list[str])
    """Everything that the client got, event by event."""

    def run(self, model: str, task: str = TASK, **fields: Any) -> None:
        self.history = self.begin(task)
        for _ in range(3 * TURNS):
            self.turns += 1
            calls = self.turn(model, fields)
            if not calls:
                return
            for call_id, arguments in calls:
                self.answer(call_id, f"source of {json.loads(arguments)['n']}")
        raise AssertionError("the agent does not end")

    @property
    def calls(self) -> int:
        return sum(report["calls"] for report in self.reports)

    @property
    def outcomes(self) -> list[str]:
        notes = [note for report in self.reports for note in report["notes"]]
        return [note["outcome"] for note in notes if note["name"] in ("advisor", "on_demand")]

    def begin(self, task: str) -> list[Any]:
        return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": task}]

    def turn(self, model: str, fields: Any) -> list[tuple[str, str]]:
        """Take one turn; return the id and the arguments of each call of the tool."""
        raise NotImplementedError

    def answer(self, call_id: str, result: str) -> None:
        raise NotImplementedError

    def events(self, stream: Any) -> None:
        for event in stream:
            self.seen.append(event.model_dump_json())
            holder = getattr(event, "chunk", event)
            if hasattr(holder, "optillm"):
                self.reports.append(holder.optillm)


class ChatAgent(Agent):
    def turn(self, model: str, fields: Any) -> list[tuple[str, str]]:
        function = {"name": "read", "parameters": SCHEMA}
        asked: Any = {
            "model": model,
            "messages": self.history,
            "tools": [{"type": "function", "function": function}],
            **fields,
        }
        if self.streamed:
            usage = {"include_usage": True}
            with self.client.chat.completions.stream(**asked, stream_options=usage) as stream:
                self.events(stream)
                answer = stream.get_final_completion()
        else:
            answer = self.client.chat.completions.create(**asked)
            self.reports.append(answer.optillm)
        self.seen.append(answer.model_dump_json())
        self.tokens += answer.usage.total_tokens
        message = answer.choices[0].message
        self.text = message.content or ""
        kept = message.model_dump(include={"role", "content", "tool_calls"}, exclude_none=True)
        for call in kept.get("tool_calls", []):
            call["function"].pop("parsed_arguments", None)
        self.history.append(kept)
        return [(call.id, call.function.arguments) for call in message.tool_calls or ()]

    def answer(self, call_id: str, result: str) -> None:
        self.history.append({"role": "tool", "tool_call_id": call_id, "content": result})


class MessagesAgent(Agent):
    def begin(self, task: str) -> list[Any]:
        return [{"role": "user", "content": task}]

    def turn(self, model: str, fields: Any) -> list[tuple[str, str]]:
        cached = {"cache_control": {"type": "ephemeral"}}
        asked: Any = {
            "model": model,
            "system": [{"type": "text", "text": SYSTEM, **cached}],
            "messages": self.history,
            "tools": [{"name": "read", "input_schema": SCHEMA}],
            "max_tokens": 4000,
            **fields,
        }
        if self.streamed:
            with self.client.messages.stream(**asked) as stream:
                self.events(stream)
                answer = stream.get_final_message()
        else:
            answer = self.client.messages.create(**asked)
            self.reports.append(answer.optillm)
        self.seen.append(answer.model_dump_json())
        self.tokens += answer.usage.input_tokens + answer.usage.output_tokens
        self.text = "".join(block.text for block in answer.content if block.type == "text")
        blocks = [block.model_dump(exclude_none=True) for block in answer.content]
        self.history.append({"role": "assistant", "content": [_sent(block) for block in blocks]})
        calls = [block for block in answer.content if block.type == "tool_use"]
        return [(call.id, json.dumps(call.input)) for call in calls]

    def answer(self, call_id: str, result: str) -> None:
        block = {"type": "tool_result", "tool_use_id": call_id, "content": result}
        self.history.append({"role": "user", "content": [block]})


def _sent(block: dict[str, Any]) -> dict[str, Any]:
    """Return a block of an answer as a client sends it back."""
    names = {"text": ("type", "text"), "tool_use": ("type", "id", "name", "input")}
    return {name: block[name] for name in names.get(block["type"], block)}


class ResponsesAgent(Agent):
    def turn(self, model: str, fields: Any) -> list[tuple[str, str]]:
        asked: Any = {
            "model": model,
            "input": self.history,
            "tools": [{"type": "function", "name": "read", "parameters": SCHEMA, "strict": False}],
            "store": False,
            **fields,
        }
        if self.streamed:
            with self.client.responses.stream(**asked) as stream:
                for event in stream:
                    self.seen.append(event.model_dump_json())
                answer = stream.get_final_response()
        else:
            answer = self.client.responses.create(**asked)
        self.reports.append(answer.optillm)
        self.seen.append(answer.model_dump_json())
        self.tokens += answer.usage.total_tokens
        self.text = answer.output_text
        calls = []
        for item in answer.output:
            if item.type == "function_call":
                names = ("type", "call_id", "name", "arguments")
                self.history.append({name: getattr(item, name) for name in names})
                calls.append((item.call_id, item.arguments))
            elif item.type == "message":
                self.history.append({"role": "assistant", "content": answer.output_text})
        return calls

    def answer(self, call_id: str, result: str) -> None:
        item = {"type": "function_call_output", "call_id": call_id, "output": result}
        self.history.append(item)


# ------------------------------------------------------------------------------- scripted models


def read(call: Call, text: str | None = "Reading.") -> Reply:
    return Reply(text, tool_calls=[("read", json.dumps({"n": sources(call)}))])


def sources(call: Call) -> int:
    """Return how many files the agent has read so far."""
    return json.dumps(call.messages).count("source of ")


def answers(call: Call) -> int:
    """Return how many answers of the private tool the model sees."""
    return json.dumps(call.messages).count("</result 1 ")


def asking(call: Call, _: int) -> Reply | str:
    """In the fourth turn, ask before reading on; in the seventh, ask and read at once."""
    if QUESTION in call.text and not call.body.get("tools"):
        return "ANSWER: 42"
    asked = (PRIVATE, json.dumps({"question": QUESTION}))
    if sources(call) == 3 and not answers(call):
        return Reply("Let me think.", tool_calls=[asked])
    if sources(call) == 6 and answers(call) == 1:
        return Reply(None, tool_calls=[asked, *read(call).tool_calls])
    return read(call) if sources(call) < TURNS - 1 else "All done: 42."


def verdict(call: Call) -> bool:
    return bool(call.body["model"] == "wise")


def advised(*verdicts: str) -> Callable[[Call, int], Reply | str]:
    """Return an agent's model that reads on when it is told to, and an advisor by its script."""
    left = list(verdicts)

    def reply(call: Call, _: int) -> Reply | str:
        if verdict(call):
            said = left.pop(0) if len(left) > 1 else left[0]
            return json.dumps({"verdict": said, "advice": ADVICE if said == "redo" else ""})
        if "<draft 1 " in call.text:
            return read(call, None)
        return read(call) if sources(call) < TURNS - 1 else "APPROVE. All done, approved."

    return reply


ROUTES = pytest.mark.parametrize("route", ["chat", "messages", "responses"])
STREAMED = pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
Agents = Callable[[str, bool], Agent]


def on(route: str, name: str) -> str:
    return f"{name}-claude" if route == "messages" else name


# ------------------------------------------------------------------------------------- on_demand


@ROUTES
@STREAMED
def test_the_private_tool_is_never_seen_in_a_loop_of_twelve_turns(
    upstream: Upstream, agents: Agents, route: str, streamed: bool
) -> None:
    upstream.play(Script(reply=asking))
    agent = agents(route, streamed)
    agent.run(on(route, "asking"))
    assert (agent.turns, agent.text) == (TURNS, "All done: 42.")
    everything = "".join(agent.seen)
    for hidden in (PRIVATE, QUESTION, "Let me think", "ANSWER:"):
        assert hidden not in everything
    assert PRIVATE not in json.dumps(agent.history)
    inner = [
        call for call in upstream.calls if QUESTION in call.text and not call.body.get("tools")
    ]
    assert len(inner) == 2
    assert all(call.text.count(QUESTION) == 2 for call in inner), "re2 repeats it"
    assert len(upstream.calls) == agent.calls == TURNS + 1 + len(inner)
    assert agent.tokens == upstream.bill.total_tokens
    assert agent.outcomes == ["answered"] * 2
    assert all(not report["degraded"] for report in agent.reports)
    assert answers(upstream.calls[-1]) == 2, "what was found out is lost"
    assert all(SYSTEM in call.text and TASK not in call.text for call in inner)


def test_the_spend_is_that_of_every_call(proxy: Proxy, upstream: Upstream, agents: Agents) -> None:
    upstream.play(Script(reply=asking))
    trace = new_trace()
    agents("chat", True).run("asking", extra_headers=traceparent(trace))
    entries = [entry for entry in proxy.booked(trace) if entry.model_group == "base"]
    assert len(entries) == len(upstream.calls)
    assert sum(entry.prompt_tokens for entry in entries) == upstream.bill.prompt_tokens


def test_a_larger_model_answers(upstream: Upstream, agents: Agents) -> None:
    upstream.play(Script(reply=asking))
    agent = agents("chat", False)
    agent.run("asking-wise")
    assert agent.text == "All done: 42."
    assert sum(map(verdict, upstream.calls)) == 2


@pytest.mark.parametrize(
    ("model", "fields", "says"),
    [
        ("on_demand-old", {}, "can call tools"),
        ("on_demand(use=on_demand)-base", {}, "cannot run inside"),
        ('on_demand(use="bon(n=0)")-base', {}, "bon: n"),
        ("on_demand(use=none;model=no-such)-base", {}, "no-such"),
        ("asking", {"optillm_params": {"self_consistency": {"n": 0}}}, "self_consistency: n"),
        ("asking", {"optillm_params": {"self_consistency": {"n": 64}}}, "maximum"),
        ("bad", {}, "cannot run inside"),
    ],
)
def test_what_cannot_run_is_a_400_before_anything_is_paid(
    proxy: Proxy, upstream: Upstream, model: str, fields: dict[str, Any], says: str
) -> None:
    upstream.play(Script())
    messages = [{"role": "user", "content": TASK}]
    answer = proxy.post("/v1/chat/completions", {"model": model, "messages": messages, **fields})
    assert answer.status_code == 400, answer.text
    assert says in answer.text
    assert not upstream.calls


def test_the_operator_is_told_of_a_bad_expression_at_startup(proxy: Proxy) -> None:
    assert "cannot run inside 'on_demand'" in proxy.log


# --------------------------------------------------------------------------------------- advisor


@ROUTES
@STREAMED
def test_the_end_is_redone_as_often_as_allowed_by_an_advisor_that_never_approves(
    upstream: Upstream, agents: Agents, route: str, streamed: bool
) -> None:
    upstream.play(Script(reply=advised("redo")))
    agent = agents(route, streamed)
    agent.run(on(route, "advised"), f"{TASK} On {route}{' streamed' * streamed}.")
    assert agent.turns == TURNS + 2
    assert agent.outcomes.count("redone") == 2
    assert sum(map(verdict, upstream.calls)) == 2
    assert len(upstream.calls) == agent.calls == TURNS + 2 + 2 * 2
    assert agent.tokens == upstream.bill.total_tokens
    assert "Datei 99" not in "".join(agent.seen)
    shown = json.dumps(agent.history)
    assert shown.count("All done") == 1, "a draft that was replaced has been seen"
    told = [call for call in upstream.calls if "<draft 1 " in call.text]
    assert len(told) == 2
    assert all(ADVICE in call.text for call in told)


@pytest.mark.parametrize("route", ["chat", "messages"])
def test_an_approved_end_costs_one_call_more(
    upstream: Upstream, agents: Agents, route: str
) -> None:
    upstream.play(Script(reply=advised("approve")))
    agent = agents(route, True)
    agent.run(on(route, "advised"))
    assert (agent.turns, agent.calls) == (TURNS, TURNS + 1)
    assert agent.outcomes == ["passed"] * (TURNS - 1) + ["approved"]
    [review] = [call for call in upstream.calls if verdict(call)]
    assert sources(review) == TURNS - 1
    assert "All done, approved." in review.text


@pytest.mark.parametrize("fault", [Status(503), HANG], ids=["failed", "late"])
@STREAMED
def test_an_advisor_that_fails_or_is_late_changes_nothing(
    upstream: Upstream, agents: Agents, fault: Any, streamed: bool
) -> None:
    rule = lambda call: fault if verdict(call) else None  # noqa: E731
    upstream.play(Script(reply=advised("redo"), fault=rule))
    agent = agents("chat", streamed)
    agent.run("hasty", f"{TASK} {fault}{streamed}")
    assert (agent.turns, agent.text) == (TURNS, "APPROVE. All done, approved.")
    assert agent.reports[-1]["degraded"] == ["reviews:1/1"]


@pytest.mark.parametrize(
    "headers",
    [{"x-litellm-session-id": "session-of-mine"}, {"x-claude-code-session-id": "5f0b9a7c-1234"}],
    ids=["LiteLLM's", "Claude Code's"],
)
def test_a_named_session_has_its_redos_once(
    upstream: Upstream, agents: Agents, headers: dict[str, str]
) -> None:
    redone = []
    for task, named in (("First.", True), ("Second.", True), ("Third.", False)):
        upstream.play(Script(reply=advised("redo")))
        agent = agents("chat", False)
        agent.run("advised", task, extra_headers=headers if named else {})
        redone.append(agent.outcomes.count("redone"))
    assert redone == [2, 0, 2]


@pytest.mark.parametrize(
    ("params", "session"),
    [
        ({"metadata": {"session_id": "s", "trace_id": "s"}, "litellm_session_id": "s"}, "s"),
        ({"litellm_metadata": {"session_id": "s"}}, "s"),
        ({"litellm_session_id": "s"}, "s"),
        ({"metadata": {"trace_id": "t"}, "litellm_session_id": "t"}, ""),
        ({"metadata": {"session_id": "s", SESSION_ID_GENERATED_METADATA_KEY: True}}, ""),
        ({"metadata": {"session_id": 7}}, ""),
        ({}, ""),
    ],
)
def test_a_session_is_what_the_client_calls_it(params: dict[str, Any], session: str) -> None:
    """Not what LiteLLM makes up for each request, nor the id of a trace in its place."""
    assert read_caller(params, None, {}).session == session


@STREAMED
def test_a_request_of_claude_code_is_reviewed_and_redone(
    proxy: Proxy, upstream: Upstream, streamed: bool
) -> None:
    """Signed thoughts, an image as the result of a tool, and cache marks stay where they are."""

    def reply(call: Call, _: int) -> str:
        if verdict(call):
            approved = "A dog." in call.text
            return json.dumps({"verdict": "approve" if approved else "redo", "advice": "Look."})
        return "A dog." if "<draft 1 " in call.text else "A cat."

    upstream.play(Script(reply=reply))
    session = {"user_id": f"user_1_account__session_{streamed}"}
    body = {**REQUEST, "model": "advised-claude", "thinking": BUDGET, "metadata": session}
    answer = claude_code(proxy, {**body, "stream": streamed})
    assert answer.status_code == 200, answer.text
    assert "dog" in answer.text
    assert "cat" not in answer.text
    drafted, redone = [call.body for call in upstream.calls if not verdict(call)]
    assert redone["system"] == drafted["system"] == REQUEST["system"]
    assert redone["thinking"] == drafted["thinking"] == BUDGET
    assert redone["messages"][:2] == drafted["messages"][:2]
    last = redone["messages"][2]["content"]
    assert last[: len(drafted["messages"][2]["content"])] == drafted["messages"][2]["content"]
    assert len(upstream.calls) == 4


def claude_code(proxy: Proxy, body: dict[str, Any]) -> httpx.Response:
    headers = {
        "authorization": f"Bearer {proxy.master_key}",
        "user-agent": "claude-cli/2.1.177 (external, cli)",
    }
    return proxy.http.post(f"{proxy.url}/v1/messages?beta=true", json=body, headers=headers)
