"""privacy: around every approach no call has an original, and the answer has them all."""

import asyncio
import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, cast

import pytest

from optillm_hooks.approaches.privacy import NOTE
from optillm_hooks.budget import Limits
from optillm_hooks.context import Context
from optillm_hooks.errors import (
    EmptyCompletion,
    ProviderFailed,
    Refused,
    RequestRejected,
    SampleError,
)
from optillm_hooks.llm import LLM, FinalCall
from optillm_hooks.pipeline.events import Event, Outcome, Piece, Request
from optillm_hooks.pipeline.expression import parse
from optillm_hooks.pipeline.plan import Plan, resolve
from optillm_hooks.pipeline.run import run
from optillm_hooks.pipeline.stream import stream
from optillm_hooks.prompts import ask
from optillm_hooks.registry import Params, all_approaches
from optillm_hooks.services import Owner, Privacy, PrivateValue, ServiceFailed, Services
from optillm_hooks.testing import HANG, ONE_CALL, AnsweringLLM, Reply, ScriptedLLM
from optillm_hooks.trace import Trace
from optillm_hooks.types import (
    Answer,
    Chat,
    Completion,
    Delta,
    Fields,
    Json,
    Message,
    Sampling,
    ToolCall,
)
from tests.fakes import SERVICES as STAND_INS
from tests.fakes import Pieces
from tests.pipeline.shared import answerer
from tests.test_catalogue import Lenient

pytestmark = pytest.mark.anyio

NAME, MAIL, PHONE = "Alice Johnson", "alice@example.org", "+1 415-555-2671"
PRIVATE = (NAME, "Alice", "Johnson", MAIL, PHONE, "alice")
CALL: Json = {
    "id": "1",
    "type": "function",
    "function": {"name": "mail", "arguments": json.dumps({"to": MAIL})},
}
ASKED: Chat = (
    Message("system", f"You work for {NAME}."),
    Message("user", f"My name is {NAME}. Write to {MAIL}.", {"name": "Alice"}),
    Message("assistant", None, {"tool_calls": [CALL]}),
    Message("tool", json.dumps({"sent_to": MAIL}), {"tool_call_id": "1"}),
    Message("assistant", f"Done, {NAME}."),
    Message("user", f"What is 6 * 7? Call Alice at {PHONE}."),
)
CLIENT = Sampling(
    seed=0,
    stop=(f"Yours, {NAME}",),
    fields={
        "tools": [{"type": "function", "function": {"name": "mail", "description": f"to {MAIL}"}}],
        "safety_identifier": "alice-1",
    },
)
SERVICES = replace(STAND_INS, owner=Owner(key="k", end_user="alice@corp.example"))


def request(expression: str, given: Any = None, asked: Chat = ASKED, **how: Any) -> Request:
    how = {"client": CLIENT, "services": SERVICES, **how}
    plan = resolve(parse(expression), given={"privacy": given} if given else {})
    return Request(plan=plan, base="base", chat=asked, **how)


def assert_private(llm: ScriptedLLM) -> None:
    assert llm.calls
    for sent, sampling in llm.calls:
        assert not [value for value in PRIVATE if value in repr((sent, sampling))]


async def ended(asked: Request, llm: ScriptedLLM, trace: Trace | None = None) -> Outcome:
    return await run(asked, {"base": llm}.__getitem__, trace)


async def events(asked: Request, llm: ScriptedLLM) -> list[Event]:
    return [event async for event in stream(asked, {"base": llm}.__getitem__)]


def text_of(shown: Sequence[Event]) -> str:
    return "".join(event.delta.text for event in shown if isinstance(event, Piece))


class Echo(Lenient):
    """A model that repeats the conversation's pseudonyms, as they are and as models write them."""

    def _reply(self, asked: Chat, sampling: Sampling) -> Reply:
        reply = super()._reply(asked, sampling)
        turn = asked[1].text if len(asked) > 1 else ""
        first = turn.removeprefix("My name is ").split(". Write to ")
        if sampling.purpose == "judge" or len(first) < 2 or not isinstance(reply, str):
            return reply
        name, mail = first[0], first[1][:12]
        return f"Dear {name.lower()}, **{mail}**: {reply}"


EVERY = [found.name for found in all_approaches() if found.name not in ("privacy", "none")]


@pytest.mark.parametrize("name", EVERY)
async def test_no_call_of_any_approach_has_an_original(name: str) -> None:
    llm = Echo()
    outcome = await ended(request(f"privacy&{name}"), llm)
    assert_private(llm)
    [answer] = outcome.answers
    assert "PERSON_" not in answer.text
    assert "stage_failed" not in outcome.report.degraded
    if "Dear" in answer.text:
        assert f"Dear {NAME}, **{MAIL}**" in answer.text


@pytest.mark.parametrize("name", EVERY)
async def test_nor_has_one_if_it_is_streamed(name: str) -> None:
    llm = Echo()
    shown = await events(request(f"privacy&{name}"), llm)
    assert_private(llm)
    assert "PERSON_" not in text_of(shown).upper()


@pytest.mark.parametrize("name", EVERY)
async def test_nor_has_a_plain_call_in_place_of_a_failed_approach(name: str) -> None:
    def change(number: int, text: str) -> Reply:
        return ProviderFailed("busy", status=503) if number < 40 else text

    llm = Echo(change)
    with suppress(SampleError):
        await ended(request(f"privacy&{name}", on_error="plain"), llm)
    assert_private(llm)


@pytest.mark.parametrize("calls", [1, 2, 3, 5])
@pytest.mark.parametrize("name", ["moa", "bon", "cepo", "plansearch"])
async def test_the_best_answer_at_a_limit_has_its_values(name: str, calls: int) -> None:
    llm = Echo()
    try:
        outcome = await ended(request(f"privacy&{name}", limits=Limits(max_calls=calls)), llm)
    except SampleError:
        return
    assert_private(llm)
    assert "PERSON_" not in outcome.answers[0].text.upper()


async def reading(chat: Chat, llm: LLM, _params: Params, ctx: Context) -> FinalCall:
    """A stage that brings a page with private values, and asks two models about it."""
    asked = ask(chat, f"A page: {MAIL}, eve@example.org")
    drafts = [
        await each.complete(asked, Sampling(purpose="draft")) for each in (llm, ctx.llm("other"))
    ]
    return FinalCall(ask(asked, f"{drafts[0].text} {drafts[1].text} Alice"))


async def test_what_stages_inside_bring_is_replaced_too_for_every_model_that_they_call() -> None:
    wrapper, chain = resolve(parse("privacy")).stages[0], answerer(reading)
    asked = replace(request("privacy"), plan=Plan(((wrapper, chain),), "privacy&reading"))

    def reply(sent: Chat, _: Sampling) -> Reply:
        return sent[-1].text.split("A page: ")[-1]

    llms = {name: AnsweringLLM(reply, model=name) for name in ("base", "other")}
    shown = [event async for event in stream(asked, llms.__getitem__)]
    assert text_of(shown).startswith(f"{MAIL}, eve@example.org")
    for llm in llms.values():
        assert_private(llm)
        assert not [sent for sent, _ in llm.calls if "eve@" in repr(sent)]


async def test_the_plain_call_has_a_note_and_its_answer_the_values() -> None:
    llm = Echo()
    outcome = await ended(request("privacy"), llm)
    [(sent, sampling)] = llm.calls
    assert NOTE.split("{")[1].split("}")[1][:40] in sent[0].text
    assert sampling.fields["user"] != SERVICES.owner.end_user
    assert str(sampling.fields["user"]).startswith("USER_")
    assert outcome.answers[0].text.startswith(f"Dear {NAME}, **{MAIL}**")


async def test_a_conversation_without_private_values_is_sent_as_it_is() -> None:
    asked = (Message("system", "Be terse."), Message("user", "6 * 7 on 2024-05-03?"))
    llm = ScriptedLLM(["42"])
    await ended(request("privacy", asked=asked, client=Sampling(), services=Services()), llm)
    assert llm.calls[0][0] == asked


async def test_reasoning_that_is_held_is_shown_once_if_there_is_no_answer() -> None:
    """The reply of which only reasoning came is told at its end, when the filter still holds it."""
    empty = EmptyCompletion(Answer("", "length", reasoning="pers"))
    shown = await events(request("privacy"), Pieces([Delta(reasoning="pers"), empty]))
    thoughts = [event.delta.reasoning for event in shown if isinstance(event, Piece)]
    assert "".join(thoughts) == "pers"


async def test_a_limit_in_the_middle_of_a_pseudonym_shows_what_came() -> None:
    asked = request("privacy", limits=Limits(deadline_s=0.5))
    shown = await events(asked, Pieces([Delta(text="Dear PERSON_"), HANG]))
    assert text_of(shown) == "Dear PERSON_"
    assert isinstance(shown[-1], Outcome)
    assert shown[-1].report.stopped_by == "deadline"


async def test_tool_calls_get_their_values_back_and_may_call_by_any_spelling() -> None:
    def call(asked: Chat, _: Sampling) -> Reply:
        mail = asked[3].text.split('"')[3]
        arguments = json.dumps({"to": mail.lower(), "text": f"**{mail}**"})
        return Completion(
            "", "tool_calls", tool_calls=(ToolCall("9", "mail", arguments),), usage=ONE_CALL
        )

    shown = await ended(request("privacy"), AnsweringLLM(call))
    [called] = shown.answers[0].tool_calls
    assert json.loads(called.arguments) == {"to": MAIL, "text": f"**{MAIL}**"}


async def test_an_answer_in_json_stays_json() -> None:
    secret = 'he"y\n1234'
    form: Fields = {"response_format": {"type": "json_object"}}

    def reply(asked: Chat, _: Sampling) -> Reply:
        return json.dumps({"is": asked[-1].text.split()[-1]})

    asked = (Message("user", f"the word is {secret}"),)
    llm = AnsweringLLM(reply)
    outcome = await ended(
        request("privacy", {"deny": [secret]}, asked, client=Sampling(fields=form)), llm
    )
    assert json.loads(outcome.answers[0].text) == {"is": secret}
    assert outcome.report.degraded == ()


SCHEMA: Json = {
    "type": "object",
    "properties": {
        "to": {
            "type": "string",
            "format": "email",
            "pattern": "@",
            "maxLength": 40,
            "minLength": 5,
        },
        "format": {"type": "string", "enum": ["a", MAIL]},
    },
    "required": ["to", "format"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("expression", ["privacy", "privacy&json", "privacy&json&bon"])
async def test_a_pseudonym_may_stand_where_a_schema_wants_an_address(expression: str) -> None:
    form: Fields = {
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
        "tools": [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}],
    }

    def reply(asked: Chat, sampling: Sampling) -> Reply:
        if sampling.purpose == "judge":
            return "RATING: 7"
        mail = asked[1].text.split("Write to ")[1][:12]
        return json.dumps({"to": mail, "format": mail})

    llm = AnsweringLLM(reply, fields=["response_format", "tools"])
    outcome = await ended(request(expression, client=Sampling(fields=form)), llm)
    assert json.loads(outcome.answers[0].text) == {"to": MAIL, "format": MAIL}
    assert outcome.report.degraded == ()
    assert_private(llm)
    for _, sampling in llm.calls:
        sent = json.dumps([sampling.fields.get(name) for name in ("tools", "response_format")])
        assert "pattern" not in sent
        assert "maxLength" not in sent
        assert ('"format": {"type": "string"' in sent) is (sampling.purpose != "judge")


async def test_an_answer_that_the_clients_own_schema_refuses_is_asked_for_again() -> None:
    form: Fields = {
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    }
    replies = [json.dumps({"to": to, "format": "a"}) for to in ("nobody", "x@example.org")]
    llm = ScriptedLLM(replies, fields=["response_format"])
    outcome = await ended(request("privacy&json", client=Sampling(fields=form)), llm)
    assert json.loads(outcome.answers[0].text)["to"] == "x@example.org"
    llm.assert_used_up()


async def test_a_schema_keeps_its_forms_if_nothing_is_replaced() -> None:
    form: Fields = {"tools": [{"function": {"name": "f", "parameters": {"pattern": "x"}}}]}
    llm = ScriptedLLM(["42"])
    asked = (Message("user", "6 * 7?"),)
    await ended(
        request("privacy", None, asked, client=Sampling(fields=form), services=Services()), llm
    )
    assert llm.calls[0][1].fields == form


async def test_it_is_the_first_of_its_chain() -> None:
    for wrong in ("bon&privacy", "re2&privacy&bon", "privacy&privacy"):
        with pytest.raises(RequestRejected, match="first"):
            resolve(parse(wrong))


IMAGE: Fields = {"type": "image_url", "image_url": {"url": "data:image/png;base64,alice"}}


async def test_attachments_are_refused_unless_they_may_pass() -> None:
    asked = (Message("user", ({"type": "text", "text": f"Is {MAIL} in it?"}, IMAGE)),)
    with pytest.raises(Refused, match="image_url"):
        await ended(request("privacy", asked=asked, on_error="plain"), ScriptedLLM([]))
    llm = ScriptedLLM(["no"])
    await ended(request("privacy", {"attachments": "pass"}, asked), llm)
    [(sent, _)] = llm.calls
    assert isinstance(sent[-1].content, tuple)
    assert sent[-1].content[1] == IMAGE
    assert MAIL not in sent[-1].text


async def test_a_detector_that_fails_fails_the_request_before_any_call() -> None:
    async def down(_: Sequence[str]) -> Sequence[Sequence[PrivateValue]]:
        raise ServiceFailed("the analyzer does not answer")

    services = Services(privacy=Privacy(detectors=(down,)))
    llm = ScriptedLLM([])
    with pytest.raises(ServiceFailed, match="does not answer"):
        await ended(request("privacy&bon", services=services, on_error="plain"), llm)
    assert llm.calls == []


async def test_what_is_missing_is_said_before_any_call() -> None:
    services = Services(privacy=Privacy(missing="install optillm-hooks[privacy]"))
    [stage] = resolve(parse("privacy")).stages
    with pytest.raises(RequestRejected, match=r"optillm-hooks\[privacy\]"):
        stage.params.check_services(services)


async def test_the_map_is_in_no_report_and_no_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    llm, trace = Echo(), Trace()
    outcome = await ended(request("privacy&moa"), llm, trace)
    said = repr((outcome.report, trace.events, trace.calls)) + caplog.text
    assert not [value for value in PRIVATE if value in said]
    assert "PERSON_" not in said


async def test_cancelled_at_any_call_nothing_is_left_running() -> None:
    before = asyncio.all_tasks()
    llm = ScriptedLLM([HANG] * 8)
    task = asyncio.create_task(ended(request("privacy&bon"), llm))
    await llm.until_hanging(1)
    task.cancel()
    await asyncio.wait([task])
    assert asyncio.all_tasks() == before


async def test_choices_of_one_request_share_their_pseudonyms() -> None:
    llm = Echo()
    await ended(replace(request("privacy"), n=3), llm)
    assert len({repr(sent) for sent, _ in llm.calls}) == 1


async def test_the_deadline_ends_it_with_the_best_answer() -> None:
    llm = ScriptedLLM([HANG])
    with pytest.raises(SampleError) as caught:
        await ended(request("privacy", limits=Limits(deadline_s=0.01)), llm)
    assert caught.value.status == 504
    assert not [value for value in PRIVATE if value in str(cast(object, caught.value))]
