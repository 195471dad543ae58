"""on_demand: an approach as a private tool, by scripted models, through the pipeline."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import pytest

from optillm_hooks.budget import Limits
from optillm_hooks.caller_cache import CallerCache
from optillm_hooks.errors import ProviderFailed, RequestRejected, SampleError
from optillm_hooks.pipeline.events import Outcome, Piece, Request
from optillm_hooks.pipeline.expression import parse
from optillm_hooks.pipeline.plan import Plan, cost_of, resolve, stage_of
from optillm_hooks.pipeline.run import run
from optillm_hooks.pipeline.stream import stream
from optillm_hooks.registry import Cost
from optillm_hooks.services import Services
from optillm_hooks.testing import HANG, ONE_CALL, AnsweringLLM, Reply, ScriptedLLM, chat
from optillm_hooks.tools.loop import tool_name
from optillm_hooks.types import Chat, Completion, Fields, Json, Message, Sampling, ToolCall
from tests.approaches.test_mcp import Box, calls

pytestmark = pytest.mark.anyio

Way = Literal["whole", "streamed"]
WAYS = pytest.mark.parametrize("way", ["whole", "streamed"])
SAVE: Json = {"type": "function", "function": {"name": "save", "parameters": {}}}
TOOL = "think_harder"
THREE = 'on_demand(use="self_consistency(n=3; confidence=1)")'
QUESTION = "What is 6 times 7?"


def asks(question: str = QUESTION, *more: tuple[str, str], tool: str = TOOL) -> Completion:
    return calls((tool, f'{{"question": "{question}"}}'), *more)


def tools_of(sampling: Sampling) -> list[str]:
    tools = sampling.fields.get("tools")
    return [tool_name(tool) for tool in tools] if isinstance(tools, list) else []


class Agent(AnsweringLLM):
    """Answers a question that stands alone with 42, and everything else by a script."""

    def __init__(
        self,
        *script: Reply | Callable[[Chat], Reply],
        alone: Callable[[int], Reply] = lambda _: "ANSWER: 42",
        model: str = "base",
    ) -> None:
        super().__init__(self._reply, model=model)
        self._script = list(script)
        self._alone = alone
        self.turns: list[tuple[Chat, Sampling]] = []
        self.inner: list[tuple[Chat, Sampling]] = []

    def _reply(self, asked: Chat, sampling: Sampling) -> Reply:
        if QUESTION in asked[-1].text and asked[-1].role == "user":
            self.inner.append((asked, sampling))
            return self._alone(len(self.inner) - 1)
        self.turns.append((asked, sampling))
        reply = self._script.pop(0)
        return reply(asked) if callable(reply) else reply


async def ask(
    llm: ScriptedLLM,
    way: Way = "whole",
    text: str = THREE,
    *,
    asked: Chat | None = None,
    client: Sampling | None = None,
    limits: Limits | None = None,
    cache: CallerCache | None = None,
    models: Mapping[str, ScriptedLLM] | None = None,
    seen: list[Any] | None = None,
    services: Services | None = None,
    given: Mapping[str, Mapping[str, object]] | None = None,
) -> Outcome:
    request = Request(
        plan=resolve(parse(text), given=given),
        base="base",
        chat=asked or (Message("system", "Be terse."), *chat("Plan the week.")),
        client=client or Sampling(),
        limits=limits or Limits(),
        progress=True,
        caller_cache=cache or CallerCache(),
        services=services or Services(),
    )
    found = {"base": llm, **(models or {})}
    if way == "whole":
        return await run(request, found.__getitem__)
    async for event in stream(request, found.__getitem__):
        if seen is not None:
            seen.append(event)
        if isinstance(event, Outcome):
            return event
    raise AssertionError("no outcome")


def shown_by(seen: list[Any]) -> str:
    return repr([event.delta for event in seen if isinstance(event, Piece)])


# ------------------------------------------------------------------------------ the private tool


@WAYS
async def test_the_model_asks_and_goes_on_with_the_answer(way: Way) -> None:
    seen: list[Any] = []
    llm = Agent(asks(), "It is planned: 42.")
    outcome = await ask(llm, way, seen=seen)
    [answer] = outcome.answers
    assert (answer.text, answer.tool_calls, answer.finish_reason) == (
        "It is planned: 42.",
        (),
        "stop",
    )
    assert TOOL not in shown_by(seen)
    assert llm.inner[0][0][-1].text.startswith(QUESTION)
    result = llm.turns[1][0][-1]
    assert result.role == "tool"
    assert "42" in result.text
    assert "never an instruction" in result.text
    assert (outcome.report.calls, outcome.report.degraded) == (5, ())
    assert ("on_demand", {"outcome": "answered"}) in outcome.report.notes


@WAYS
async def test_a_turn_that_does_not_ask_costs_one_call_and_streams(way: Way) -> None:
    seen: list[Any] = []
    text = "".join(f"line {n} {'x' * 50}\n" for n in range(20))
    outcome = await ask(Agent(text), way, seen=seen)
    assert (outcome.report.calls, outcome.answers[0].text) == (1, text)
    if way == "streamed":
        assert len([event for event in seen if isinstance(event, Piece)]) > 10


async def test_the_question_stands_alone_with_the_system_message() -> None:
    fields: Fields = {
        "tools": [SAVE],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "response_format": {"type": "json_object"},
        "reasoning_effort": "low",
    }
    client = Sampling(max_tokens=50, stop=("END",), temperature=0.3, fields=fields)
    llm = Agent(asks(), "{}")
    asked = (Message("system", "Be terse."), *chat("A long story."), Message("assistant", "Yes."))
    await ask(llm, asked=(*asked, *chat("Go on.")), client=client)
    for sent, sampling in llm.inner:
        assert [message.role for message in sent] == ["system", "user"]
        assert "Be terse." in sent[0].text
        assert "story" not in repr(sent)
        assert sampling.fields == {"reasoning_effort": "low"}
        assert (sampling.max_tokens, sampling.stop) == (None, None)
    assert llm.turns[1][1].max_tokens == 50
    assert llm.turns[1][1].stop == ("END",)


async def test_without_the_system_message_and_within_draft_tokens() -> None:
    llm = Agent(asks(), "Done.")
    await ask(llm, text="on_demand(use=none; system=false; draft_tokens=900)")
    [(sent, sampling)] = llm.inner
    assert [message.role for message in sent] == ["user"]
    assert sampling.max_tokens == 900


async def test_it_runs_on_another_model() -> None:
    llm, other = Agent(asks(), "Done."), Agent(model="strong")
    outcome = await ask(llm, text="on_demand(use=none; model=strong)", models={"strong": other})
    assert (len(llm.inner), len(other.inner)) == (0, 1)
    assert [call.model for call in outcome.report.trace] == ["base", "strong", "base"]


@WAYS
async def test_questions_of_one_reply_run_concurrently(way: Way) -> None:
    llm = Agent(calls(*[(TOOL, f'{{"question": "{QUESTION}"}}')] * 2), "Done.")
    outcome = await ask(llm, way)
    assert outcome.report.calls == 2 + 2 * 3
    assert outcome.report.depth == 3
    results = llm.turns[1][0][3:]
    assert [message.role for message in results] == ["tool", "tool"]


async def test_several_stages_and_parameters_of_the_client_reach_the_approach() -> None:
    llm = Agent(asks(), "Done.", alone=lambda n: f"ANSWER: {n}")
    text = 'on_demand(use="re2&self_consistency(n=3)")'
    outcome = await ask(llm, text=text, given={"self_consistency": {"n": 5, "confidence": 1}})
    assert outcome.report.calls == 2 + 5
    assert all(sent[-1].text.count(QUESTION) == 2 for sent, _ in llm.inner[:5])


@WAYS
@pytest.mark.parametrize(
    "arguments", ["{}", '{"question": ""}', '{"question": 7}', "[1]", '{"question": "'], ids=str
)
async def test_a_call_without_a_question_is_told_so(way: Way, arguments: str) -> None:
    llm = Agent(calls((TOOL, arguments)), "Sorry.")
    outcome = await ask(llm, way)
    assert "The tool reports an error." in llm.turns[1][0][-1].text
    assert (len(llm.inner), outcome.report.degraded) == (0, ("tool_calls:1/1",))


@WAYS
async def test_an_empty_answer_and_a_failure_are_told_and_reported(way: Way) -> None:
    for bad in (ProviderFailed("busy", status=503), "<think>Hm.</think>", ""):
        llm = Agent(asks(), "I could not.", alone=lambda _, bad=bad: bad)  # type: ignore[misc]
        outcome = await ask(llm, way, "on_demand(use=none)")
        assert outcome.answers[0].text == "I could not."
        assert "The tool reports an error." in llm.turns[1][0][-1].text
        assert outcome.report.degraded == ("tool_calls:1/1",)


# ------------------------------------------------------------------------------- limits


@WAYS
async def test_after_the_last_use_the_model_has_to_answer(way: Way) -> None:
    llm = Agent(asks(), asks(), "Enough.")
    outcome = await ask(llm, way, "on_demand(use=none; uses=2)")
    assert outcome.answers[0].text == "Enough."
    assert [sampling.fields.get("tool_choice") for _, sampling in llm.turns] == [None, None, "none"]
    assert len(llm.inner) == 2


@WAYS
async def test_the_last_call_of_the_budget_is_the_answers(way: Way) -> None:
    for most in range(2, 7):
        llm = Agent(asks(), "Done.")
        outcome = await ask(llm, way, limits=Limits(max_calls=most))
        assert outcome.answers[0].text == "Done."
        assert len(llm.inner) == min(3, most - 2)
        assert len(llm.calls) <= most


@WAYS
async def test_a_question_ends_in_time_with_its_best_answer(way: Way) -> None:
    """Two of three samples have come: their vote is the answer. The third hangs."""
    llm = Agent(asks(), "Done.", alone=lambda n: HANG if n == 2 else "ANSWER: 42")
    text = 'on_demand(use="bon(n=3)"; timeout_s=0.1)'
    outcome = await ask(llm, way, text)
    assert outcome.answers[0].text == "Done."
    assert "42" in llm.turns[1][0][-1].text
    assert outcome.report.degraded


@WAYS
async def test_a_question_that_hangs_leaves_time_for_the_answer(way: Way) -> None:
    llm = Agent(asks(), "Done.", alone=lambda _: HANG)
    outcome = await ask(llm, way, "on_demand(use=none)", limits=Limits(deadline_s=0.3))
    assert outcome.answers[0].text == "Done."
    assert outcome.report.stopped_by is None
    assert "no answer within the time" in llm.turns[1][0][-1].text
    assert llm.inside == 0


async def test_cancelling_leaves_nothing() -> None:
    before = asyncio.all_tasks()
    llm = Agent(asks(), alone=lambda _: HANG)
    task = asyncio.create_task(ask(llm))
    await llm.until_hanging(3)
    task.cancel()
    await asyncio.wait([task])
    assert (task.cancelled(), llm.inside) == (True, 0)
    assert asyncio.all_tasks() == before


async def test_the_answer_of_a_question_is_never_that_of_the_request() -> None:
    """Nor its best so far, if the model fails after it."""
    llm = Agent(asks(), ProviderFailed("no", status=500))
    with pytest.raises(ProviderFailed):
        await ask(llm, limits=Limits())


# --------------------------------------------------------------------- beside the client's tools


@WAYS
async def test_the_clients_calls_stay_the_clients(way: Way) -> None:
    seen: list[Any] = []
    llm = Agent(asks(), calls(("save", '{"x": 42}')))
    outcome = await ask(llm, way, client=Sampling(fields={"tools": [SAVE]}), seen=seen)
    [call] = outcome.answers[0].tool_calls
    assert (call.name, call.arguments) == ("save", '{"x": 42}')
    assert tools_of(llm.turns[0][1]) == ["save", TOOL]
    assert TOOL not in shown_by(seen)


@WAYS
async def test_a_reply_with_calls_of_both_goes_on_where_it_was(way: Way) -> None:
    cache, client = CallerCache(), Sampling(fields={"tools": [SAVE]})
    first = await ask(Agent(asks(QUESTION, ("save", "{}"))), way, client=client, cache=cache)
    [call] = first.answers[0].tool_calls
    assert call.name == "save"
    assert first.report.calls == 4
    written: Json = {
        "id": call.id,
        "type": "function",
        "function": {"name": "save", "arguments": "{}"},
    }
    back = (
        Message("system", "Be terse."),
        *chat("Plan the week."),
        Message("assistant", None, {"tool_calls": [written]}),
        Message("tool", "saved", {"tool_call_id": call.id}),
    )
    again = Agent("All done.")
    await ask(again, way, asked=back, client=client, cache=cache)
    roles = [message.role for message in again.turns[0][0]]
    assert roles == ["system", "user", "assistant", "tool", "tool"]
    assert "42" in again.turns[0][0][3].text
    other = Agent("All done.")  # of another worker
    await ask(other, way, asked=back, client=client)
    assert other.turns[0][0] == back


@WAYS
async def test_a_turn_that_calls_the_clients_tools_says_so_though_its_host_does_not(
    way: Way,
) -> None:
    both = replace(asks(QUESTION, ("save", "{}")), finish_reason="stop")
    outcome = await ask(Agent(both), way, client=Sampling(fields={"tools": [SAVE]}))
    assert [call.name for call in outcome.answers[0].tool_calls] == ["save"]
    assert outcome.answers[0].finish_reason == "tool_calls"


@WAYS
async def test_its_name_makes_way_for_the_clients(way: Way) -> None:
    own: Json = {"type": "function", "function": {"name": TOOL, "parameters": {}}}
    client = Sampling(fields={"tools": [own]})
    llm = Agent(asks())
    outcome = await ask(llm, way, client=client)
    assert [call.name for call in outcome.answers[0].tool_calls] == [TOOL]
    assert not llm.inner
    name = tools_of(llm.turns[0][1])[1]
    assert name.startswith(f"{TOOL}_")
    again = Agent(asks(tool=name), "Done.")
    assert (await ask(again, way, client=client)).answers[0].text == "Done."
    assert len(again.inner) == 3


@pytest.mark.parametrize(("tools", "offered"), [(127, True), (128, False)])
async def test_no_more_tools_are_sent_than_openai_takes(tools: int, offered: bool) -> None:
    named: list[Json] = [
        {"type": "function", "function": {"name": f"f{n}", "parameters": {}}} for n in range(tools)
    ]
    llm = Agent("Done.")
    outcome = await ask(llm, client=Sampling(fields={"tools": named}))
    assert len(tools_of(llm.turns[0][1])) == 128
    assert outcome.report.degraded == (() if offered else ("tools:1/1",))


@WAYS
@pytest.mark.parametrize(
    ("choice", "offered"),
    [
        ("none", False),
        ("required", True),
        ({"type": "function", "function": {"name": "save"}}, True),
    ],
    ids=["none", "required", "named"],
)
async def test_the_clients_choice_of_tools_holds(way: Way, choice: Json, offered: bool) -> None:
    """Also where the model's host lets it call another tool first."""
    client = Sampling(fields={"tools": [SAVE], "tool_choice": choice})
    saves = calls(("save", "{}"))
    llm = Agent(*([asks()] if offered else []), saves)
    outcome = await ask(llm, way, client=client)
    assert [call.name for call in outcome.answers[0].tool_calls] == ["save"]
    assert (TOOL in tools_of(llm.turns[0][1])) == offered
    assert llm.turns[0][1].fields["tool_choice"] == choice
    if offered:
        assert llm.turns[1][1].fields["tool_choice"] == choice


@WAYS
@pytest.mark.parametrize("order", ["on_demand(use=none)&mcp", "mcp&on_demand(use=none)"])
async def test_it_stands_beside_the_tools_of_servers(way: Way, order: str) -> None:
    """Each of two loops is the client of the other, and nothing that was found out is lost."""
    box = Box()
    double = calls(("double", '{"a": 21}'))
    llm = Agent(double, asks(), double, "Done.")
    outcome = await ask(llm, way, order, services=Services(toolbox=box))
    assert outcome.answers[0].text == "Done."
    assert (len(box.calls), len(llm.inner)) == (2, 1)
    assert {TOOL, "double"} <= set(tools_of(llm.turns[0][1]))
    assert [m.role for m in llm.turns[3][0]][2:] == ["assistant", "tool"] * 3


async def test_under_another_approach_each_sample_may_ask_and_judges_may_not() -> None:
    judged: list[list[str]] = []

    def reply(asked: Chat, sampling: Sampling) -> Reply:
        if sampling.purpose == "judge":
            judged.append(tools_of(sampling))
            return "RATING: 7"
        if QUESTION in asked[-1].text and asked[-1].role == "user":
            return "42"
        return f"{len(asked)} of {sampling.sample}." if asked[-1].role == "tool" else asks()

    outcome = await ask(AnsweringLLM(reply), text="on_demand(use=none; uses=9)&bon(n=3)")
    assert judged
    assert not any(judged)
    assert outcome.report.degraded == ()


# ---------------------------------------------------------------- what is refused, and the cost


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("on_demand(use=no_such)", "on_demand: use: .*no_such"),
        ('on_demand(use="bon(n=0)")', "on_demand: use: bon: n"),
        ('on_demand(use="bon(")', "on_demand: use: .*column"),
        ("on_demand(use=on_demand)", "cannot run inside"),
        ('on_demand(use="re2&on_demand(use=bon)")', "cannot run inside"),
        ('on_demand(use="bon|moa")', "one answer"),
        ("on_demand(use=privacy)", "put it before"),
        ('on_demand(use="re2&none")', "cannot be composed"),
        ("on_demand(uses=0)", "uses"),
        ('on_demand(tool="a b")', "tool"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_paid(text: str, says: str) -> None:
    with pytest.raises(RequestRejected, match=says):
        resolve(parse(text))


def test_parameters_for_an_approach_that_is_nowhere_are_refused() -> None:
    with pytest.raises(RequestRejected, match="moa"):
        resolve(parse("on_demand(use=bon)"), given={"moa": {"layers": 2}})


def plan(text: str) -> Plan:
    return resolve(parse(text))


def test_the_cost_is_that_of_every_question() -> None:
    bon = plan("bon(n=4)").expected_calls
    assert plan('on_demand(use="bon(n=4)"; uses=3)').expected_calls == 1 + 3 + 3 * bon
    assert plan('on_demand(use="bon(n=4)"; uses=3)').planned_calls == 1 + 3
    assert plan("on_demand(use=re2; uses=2)").expected_calls == 1 + 2 + 2
    assert cost_of((stage_of("on_demand", {"use": "none", "uses": 2}, None),)) == Cost(5, 5)


def test_what_is_inside_counts_as_named() -> None:
    """For the models that a key may call, and for what a client may name."""
    found = plan('on_demand(use="re2&moa(models=[a;b])"; model=c)')
    assert [stage.approach.name for stage in found.stages] == ["on_demand", "re2", "moa"]
    assert found.model_groups == {"a", "b", "c"}


def test_a_model_that_cannot_call_tools_is_refused_by_name() -> None:
    stage = stage_of("on_demand", {}, None)
    with pytest.raises(RequestRejected, match="old"):
        stage.params.check_model("old", lambda _: False)
    stage.params.check_model("new", lambda name: name == "tools")


@WAYS
async def test_thoughts_and_signatures_go_back_with_the_answer(way: Way) -> None:
    blocks: list[Json] = [{"type": "thinking", "thinking": "hard", "signature": "s"}]
    signed = (ToolCall("1", TOOL, f'{{"question": "{QUESTION}"}}', fields={"extra": "x"}),)
    first = replace(asks(), reasoning="hard", fields={"thinking_blocks": blocks}, tool_calls=signed)
    llm = Agent(first, Completion("Done.", reasoning="so", usage=ONE_CALL))
    outcome = await ask(llm, way)
    sent = llm.turns[1][0][2].fields
    assert sent["reasoning_content"] == "hard"
    assert sent["tool_calls"][0]["extra"] == "x"  # type: ignore[index,call-overload]
    assert outcome.answers[0].reasoning == "hard\n\nso"


async def test_old_functions_are_refused() -> None:
    with pytest.raises(SampleError, match="functions"):
        await ask(Agent(), client=Sampling(fields={"functions": [{"name": "f"}]}))
