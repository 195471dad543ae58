"""json: an answer matches `response_format`, or is an error; it is never another text."""

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from optillm_hooks import answer_format
from optillm_hooks.answers.response_format import Fitted
from optillm_hooks.approaches import json_schema
from optillm_hooks.budget import Limits
from optillm_hooks.context import Context
from optillm_hooks.errors import (
    BudgetExceeded,
    DeadlineExceeded,
    ProviderFailed,
    Refused,
    SampleError,
    UnusableReply,
)
from optillm_hooks.llm import LLM
from optillm_hooks.pipeline.events import Outcome, Piece, Request
from optillm_hooks.pipeline.expression import parse
from optillm_hooks.pipeline.plan import resolve
from optillm_hooks.pipeline.run import run
from optillm_hooks.pipeline.stream import stream
from optillm_hooks.registry import NoParams
from optillm_hooks.testing import HANG, AnsweringLLM, Reply, ScriptedLLM, chat
from optillm_hooks.types import Answer, Chat, Completion, Fields, Json, Sampling, ToolCall
from tests.fakes import SERVICES
from tests.pipeline.shared import answerer
from tests.pipeline.shared import request as stages_request

pytestmark = pytest.mark.anyio

COLOUR: Json = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "blue"]},
        "parts": {"type": "array", "items": {"$ref": "#/$defs/part"}},
    },
    "required": ["colour", "parts"],
    "additionalProperties": False,
    "$defs": {
        "part": {
            "oneOf": [
                {"type": "object", "properties": {"w": {"type": "integer"}}, "required": ["w"]},
                {"type": "null"},
            ]
        }
    },
}
GOOD = '{"colour": "red", "parts": [{"w": 1}, null]}'
BAD = '{"colour": "green", "parts": []}'


def schema(inner: Json) -> Json:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": inner}}


def request(expression: str, wanted: Json, fields: Fields | None = None, **how: Any) -> Request:
    client = Sampling(fields={"response_format": wanted, **(fields or {})})
    plan = resolve(parse(expression))
    return Request(plan=plan, base="base", chat=chat("Which one?"), client=client, **how)


async def ended(
    llm: ScriptedLLM, expression: str = "json", wanted: Json = None, **how: Any
) -> Outcome:
    asked = request(expression, schema(COLOUR) if wanted is None else wanted, **how)
    outcome = await run(asked, {"base": llm}.__getitem__)
    assert "stage_failed" not in outcome.report.degraded, "a call was not in the script"
    return outcome


NATIVE = ["response_format"]


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        (GOOD, GOOD),
        (f"```json\n{GOOD}\n```", GOOD),
        (f"Voilà :\n{GOOD}\nBonne journée !", GOOD),
        (f"<think>{BAD}</think>\n{GOOD}", GOOD),
        ("{'colour': 'blue', 'parts': []}", '{"colour": "blue", "parts": []}'),
        (
            '{"colour": "Blue", "parts": [{"w": "3"}]}',
            '{"colour": "blue", "parts": [{"w": 3}]}',
        ),
        (json.dumps(GOOD), json.dumps(json.loads(GOOD))),
    ],
)
async def test_a_reply_that_means_one_thing_needs_no_other_call(reply: str, answer: str) -> None:
    llm = ScriptedLLM([reply])
    outcome = await ended(llm)
    llm.assert_used_up()
    assert outcome.answers[0].text == answer
    assert outcome.report.degraded == ()


@pytest.mark.parametrize(
    "bad",
    [
        BAD,
        "Red, I think.",
        f"Either {GOOD} or {GOOD.replace('red', 'blue')}",
        '{"colour": "red", "parts": [',
        '{"colour": "red", "parts": [], "note": "x"}',
        Completion('{"colour": "red", "parts": []', finish_reason="length"),
        "",
    ],
)
async def test_another_reply_is_asked_for_again_with_what_is_wrong(bad: Reply) -> None:
    llm = ScriptedLLM([bad, GOOD], fields=NATIVE)
    outcome = await ended(llm)
    llm.assert_used_up()
    assert outcome.answers[0].text == GOOD
    asked = llm.calls[1][0]
    assert '"$defs"' in asked[0].text
    if bad == BAD:
        assert "$.colour: 'green' is not one of ['red', 'blue']" in asked[-1].text


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    "bad", [BAD, "Red.", "", Completion('{"colour": "r', finish_reason="length")]
)
@pytest.mark.parametrize("expression", ["json", "json&re2", "json&cot_reflection", "json&bon(n=2)"])
async def test_what_stays_invalid_is_an_error(expression: str, bad: Reply, streamed: bool) -> None:
    llm = AnsweringLLM(lambda *_: bad)
    asked = request(expression, schema(COLOUR))
    shown: list[str] = []

    async def answered() -> None:
        if not streamed:
            await run(asked, {"base": llm}.__getitem__)
            return
        async for event in stream(asked, {"base": llm}.__getitem__):
            shown.extend([event.delta.text] if isinstance(event, Piece) else [])

    with pytest.raises(SampleError) as caught:
        await answered()
    assert caught.value.status == 502
    assert "response_format" in str(caught.value)
    assert shown == []
    assert len(llm.calls) == 3 * (2 if "bon" in expression else 1)


async def test_a_stream_shows_the_answer_that_matches_and_nothing_before_it() -> None:
    llm = ScriptedLLM([BAD, GOOD])
    asked = request("json", schema(COLOUR))
    events = [event async for event in stream(asked, {"base": llm}.__getitem__)]
    assert "".join(e.delta.text for e in events if isinstance(e, Piece)) == GOOD


@pytest.mark.parametrize("attempts", [1, 2, 5])
async def test_the_attempts_are_bounded(attempts: int) -> None:
    llm = ScriptedLLM([BAD] * attempts)
    with pytest.raises(UnusableReply, match=f"after {attempts} attempts"):
        await ended(llm, f"json(attempts={attempts})")
    llm.assert_used_up()


async def test_a_reply_that_is_always_cut_off_says_what_to_raise() -> None:
    llm = ScriptedLLM([Completion('{"colour": "r', finish_reason="length")] * 3)
    with pytest.raises(UnusableReply, match=r"cut off.*max_tokens"):
        await ended(llm)


async def test_without_a_format_nothing_changes() -> None:
    formats: list[Json] = [{"type": "text"}, {}]
    for wanted in formats:
        llm = ScriptedLLM(["Red."])
        outcome = await ended(llm, wanted=wanted)
        assert outcome.answers[0].text == "Red."
        assert [message.text for message in llm.calls[0][0]] == ["Which one?"]


@pytest.mark.parametrize(
    ("wanted", "good", "bad"),
    [
        ({"type": "json_object"}, '{"a": 1}', "[1]"),
        (schema({"type": "array", "items": {"type": "integer"}}), "[1, 2]", '{"a": 1}'),
        (schema({"const": "é"}), '"é"', '"e"'),
        (schema({"type": "string", "format": "date-time"}), '"2024-05-05T10:00:00Z"', '"soon"'),
        (schema({"type": "string", "format": "uri"}), '"https://a.example/b"', '"a b"'),
        (schema({"properties": {"d": {"format": "date"}}}), '{"d": "2024-02-29"}', '{"d": "2/3"}'),
        (schema({"minimum": 3, "multipleOf": 2}), "4", "5"),
        (schema({"uniqueItems": True}), "[1, true]", "[1, 1.0]"),
        (schema({"if": {"required": ["a"]}, "then": {"required": ["b"]}}), "{}", '{"a": 1}'),
    ],
)
async def test_all_of_json_schema_counts(wanted: Json, good: str, bad: str) -> None:
    llm = ScriptedLLM([bad, good])
    assert (await ended(llm, wanted=wanted)).answers[0].text == good
    llm.assert_used_up()


def _deep(levels: int) -> Json:
    inner: Json = {}
    for _ in range(levels):
        inner = {"items": inner}
    return inner


@pytest.mark.parametrize(
    "inner",
    [
        "text",
        {"type": "nonsense"},
        {"$ref": "#/$defs/missing"},
        {"properties": {"a": {"items": {"$ref": "#/$defs/missing"}}}},
        {"$ref": "http://127.0.0.1:9/schema.json"},
        {"$ref": "file:///etc/passwd"},
        {"$ref": "#"},
        {"description": "x" * 200_001},
        _deep(100_000),
    ],
    ids=lambda inner: (
        str(inner)[:40] if not isinstance(inner, dict) or "items" not in inner else "deep"
    ),
)
async def test_a_schema_that_cannot_be_used_is_refused_before_any_call(inner: Json) -> None:
    llm = ScriptedLLM([])
    with pytest.raises(Refused, match="schema of response_format"):
        await ended(llm, wanted=schema(inner))


async def test_a_check_that_takes_too_long_is_no_match(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_format, "LIMITS", replace(answer_format.LIMITS, seconds=0.5))
    llm = ScriptedLLM([f'"{"a" * 40}!"', '"aaa"'])
    outcome = await ended(llm, wanted=schema({"pattern": "^(a+)+$"}))
    assert outcome.answers[0].text == '"aaa"'


# ------------------------------------------------------------------------------------ hosts


class Host(ScriptedLLM):
    """A host that refuses some kinds of `response_format`."""

    def __init__(self, replies: Sequence[Reply], refuses: Sequence[str]) -> None:
        super().__init__(replies, fields=NATIVE)
        self.known: list[frozenset[str]] = []
        self.facts = replace(self.facts, takes=self._takes, remember=self.known.append)
        self._refuses = refuses

    def _takes(self, sampling: Sampling) -> bool:
        return f"response_format={_kind(sampling)}" not in {n for each in self.known for n in each}

    def _next_reply(self, chat: Chat, sampling: Sampling) -> Reply:
        if (kind := _kind(sampling)) in self._refuses:
            error = ProviderFailed("response_format is not supported", status=400)
            error.refused = frozenset({"response_format", f"response_format={kind}"})
            return error
        return super()._next_reply(chat, sampling)


def _kind(sampling: Sampling) -> Json:
    wanted = sampling.fields.get("response_format")
    return wanted["type"] if isinstance(wanted, dict) else None


@pytest.mark.parametrize(
    ("refuses", "first", "second"),
    [
        ([], ["json_schema"], ["json_schema"]),
        (["json_schema"], ["json_schema", "json_object"], ["json_object"]),
        (["json_schema", "json_object"], ["json_schema", "json_object", None], [None]),
    ],
)
async def test_a_format_that_a_host_refuses_is_replaced_and_remembered(
    refuses: list[str], first: list[Json], second: list[Json]
) -> None:
    llm = Host([GOOD, GOOD], refuses)
    await ended(llm)
    assert [_kind(sampling) for _, sampling in llm.calls] == first
    assert ('"$defs"' in llm.calls[-1][0][0].text) == bool(refuses)
    await ended(llm)
    assert [_kind(sampling) for _, sampling in llm.calls][len(first) :] == second


async def test_a_model_without_structured_outputs_gets_the_schema_in_its_prompt() -> None:
    llm = ScriptedLLM([GOOD])
    await ended(llm)
    [(asked, sampling)] = llm.calls
    assert _kind(sampling) is None
    assert (asked[0].role, asked[-1].text) == ("system", "Which one?")
    assert json.dumps(COLOUR) in asked[0].text


async def test_other_failures_of_a_host_are_passed_on() -> None:
    llm = ScriptedLLM([ProviderFailed("busy", status=429)], fields=NATIVE)
    with pytest.raises(ProviderFailed, match="busy"):
        await ended(llm)


async def test_a_reply_that_litellm_has_refused_is_asked_for_again() -> None:
    """As with its own setting `enable_json_schema_validation`."""
    refused = ProviderFailed("an invalid response", status=500)
    refused.answered = True
    llm = ScriptedLLM([refused, GOOD], fields=NATIVE)
    assert (await ended(llm)).answers[0].text == GOOD
    with pytest.raises(UnusableReply, match="it cannot be read"):
        await ended(ScriptedLLM([refused] * 3, fields=NATIVE))


# -------------------------------------------------------------------------- what passes as it is


async def test_a_call_of_a_tool_passes() -> None:
    tool: Json = {"type": "function", "function": {"name": "look", "parameters": {}}}
    call = Completion("", tool_calls=(ToolCall("1", "look", "{}"),), finish_reason="tool_calls")
    llm = ScriptedLLM([call], fields=NATIVE)
    outcome = await ended(llm, fields={"tools": [tool]})
    assert outcome.answers[0].tool_calls == call.tool_calls


async def test_a_refusal_passes_and_is_not_asked_again() -> None:
    refusal = Completion("", fields={"refusal": "I cannot help with that."})
    llm = ScriptedLLM([refusal])
    outcome = await ended(llm)
    assert outcome.answers[0].fields == refusal.fields


# ----------------------------------------------------------------------------------- composed


def _samples(replies: Mapping[int, str]) -> AnsweringLLM:
    """Return a model whose samples are `replies` by number, and whose ratings rise."""
    ratings = iter(range(1, 10))

    def reply(_: Chat, sampling: Sampling) -> Reply:
        if sampling.purpose == "judge":
            return f"RATING: {next(ratings)}"
        return replies[sampling.sample % 300]

    return AnsweringLLM(reply, fields=NATIVE)


async def test_candidates_that_do_not_match_do_not_compete() -> None:
    llm = _samples({0: GOOD, 1: BAD, 2: f"Sure: {GOOD.replace('red', 'blue')}"})
    outcome = await ended(llm, "json(attempts=1)&bon(n=3)")
    judged = "\n".join(s[-1].text for s, sampling in llm.calls if sampling.purpose == "judge")
    assert "green" not in judged
    assert "Sure" not in judged
    assert outcome.report.degraded == ("samples:1/3",)
    assert json.loads(outcome.answers[0].text)["colour"] in ("red", "blue")
    assert all(_kind(s) is None for _, s in llm.calls if s.purpose == "judge")


async def test_several_choices_of_one_call_are_checked_one_by_one() -> None:
    llm = ScriptedLLM([BAD, GOOD, BAD, GOOD, GOOD], max_n=3, fields=NATIVE)
    outcome = await ended(llm, "json&self_consistency(n=3)")
    llm.assert_used_up()
    assert outcome.answers[0].text == GOOD


async def test_a_limit_leaves_the_best_valid_answer() -> None:
    replies = {0: BAD, 1: GOOD, 2: GOOD.replace("red", "blue"), 300: BAD, 600: BAD}
    llm = AnsweringLLM(
        lambda _, s: HANG if s.purpose == "judge" else replies[s.sample], fields=NATIVE
    )
    outcome = await ended(llm, "json&bon(n=3)", limits=Limits(deadline_s=2.0))
    assert outcome.answers[0].text == GOOD
    assert outcome.report.stopped_by == "deadline"


async def test_a_limit_never_lets_an_invalid_answer_out() -> None:
    llm = AnsweringLLM(lambda _, s: BAD if s.sample < 300 else HANG, fields=NATIVE)
    with pytest.raises(SampleError):
        await ended(llm, "json&bon(n=2)", limits=Limits(deadline_s=0.3))
    with pytest.raises(
        BudgetExceeded, match=r"no calls left of 1, and .* not match response_format"
    ):
        await ended(ScriptedLLM([BAD]), "json", limits=Limits(max_calls=1))


async def test_cancelled_at_its_second_attempt_nothing_is_left() -> None:
    llm = ScriptedLLM([BAD, HANG])
    before = asyncio.all_tasks()
    task = asyncio.create_task(ended(llm))
    await llm.until_hanging(1)
    task.cancel()
    await asyncio.wait([task])
    assert (llm.inside, asyncio.all_tasks()) == (0, before)


async def test_the_report_says_what_became_of_the_replies() -> None:
    outcome = await ended(ScriptedLLM([BAD, f"```\n{GOOD}\n```"]))
    counts = {"matched": 1, "repaired": 1, "asked_again": 1, "given_up": 0}
    assert ("json", counts) in outcome.report.notes


def _extracting(chat: Chat, _: Sampling) -> Reply:
    """Reply with the address in the question, in a fence, as a model does that sees a pseudonym."""
    address = re.search(r"(?:EMAIL_\w+|[\w.]+@[\w.]+)", chat[-1].text)
    assert address is not None
    return f'```json\n{{"mail": "{address[0]}", "known": "{address[0]}"}}\n```'


async def test_under_privacy_an_answer_is_checked_as_the_client_gets_it() -> None:
    """A pseudonym is no e-mail address, nor one of the addresses in the schema."""
    mail: Json = {"type": "string", "format": "email"}
    properties: Json = {"mail": mail, "known": {"enum": ["a@corp.example", "b@corp.example"]}}
    llm = AnsweringLLM(_extracting, fields=NATIVE)
    asked = Request(
        plan=resolve(parse("privacy&json&bon(n=2)")),
        base="base",
        chat=chat("Which address is it: b@corp.example?"),
        client=Sampling(fields={"response_format": schema({"properties": properties})}),
        services=SERVICES,
    )
    outcome = await run(asked, {"base": llm}.__getitem__)
    expected = {"mail": "b@corp.example", "known": "b@corp.example"}
    assert json.loads(outcome.answers[0].text) == expected
    sent = repr(llm.calls)
    assert "b@corp.example" not in sent
    assert "a@corp.example" not in sent
    assert outcome.report.degraded == ()


async def composing(_chat: Chat, _llm: LLM, _params: NoParams, _ctx: Context) -> Answer:
    return Answer("It is red.")


def composed(**how: Any) -> Request:
    """Return a request whose answer a stage writes itself."""
    [(around,)] = resolve(parse("json")).chains
    client = Sampling(fields={"response_format": schema(COLOUR)})
    return stages_request([around, answerer(composing)], client=client, **how)


async def test_an_answer_that_a_stage_has_written_itself_is_put_into_the_form() -> None:
    llm = ScriptedLLM([BAD, GOOD])
    assert (await run(composed(), {"base": llm}.__getitem__)).answers[0].text == GOOD
    llm.assert_used_up()
    assert "It is red." in llm.calls[0][0][-1].text


async def test_a_reply_whose_check_does_not_end_is_never_the_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def checked(text: str, *_: object, **__: object) -> Fitted:
        if text == BAD:
            await asyncio.Event().wait()
        return Fitted(None, ["it is not JSON"])

    async def no_fault(*_: object) -> None:
        return None

    monkeypatch.setattr(json_schema, "fitted", checked)
    monkeypatch.setattr(json_schema, "fault_in_schema", no_fault)
    with pytest.raises(DeadlineExceeded):
        await run(composed(limits=Limits(deadline_s=0.0)), {"base": ScriptedLLM([BAD])}.__getitem__)
