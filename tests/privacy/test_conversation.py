"""Every text of a call gets pseudonyms, JSON within it too, and the same value the same one."""

import json
import random
from collections.abc import Sequence
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optillm_hooks.errors import RequestRejected
from optillm_hooks.privacy import pseudonyms as limits
from optillm_hooks.privacy import scan
from optillm_hooks.privacy.private_llm import PrivateConversation
from optillm_hooks.privacy.restore import Restorer
from optillm_hooks.sandbox.client import WorkerFailed
from optillm_hooks.services import Owner, Privacy, PrivateValue
from optillm_hooks.types import Chat, Fields, Json, Message, Sampling

pytestmark = pytest.mark.anyio

NAME, MAIL, PHONE = "Alice Johnson", "alice@example.org", "+1 415-555-2671"
PRIVATE = (NAME, "Alice", "Johnson", MAIL, "alice", PHONE, "4155552671")


def conversation(chat: Chat = (), **privacy: Any) -> PrivateConversation:
    return PrivateConversation.begin(chat, Privacy(regions=("US",), **privacy), Owner())


async def replaced(chat: Chat, client: Fields | None = None, **privacy: Any) -> tuple[Chat, Fields]:
    sent, sampling = await conversation(chat, **privacy).replaced(
        chat, Sampling(fields=client or {})
    )
    return sent, sampling.fields


def assert_private(sent: object) -> None:
    assert not [value for value in PRIVATE if value in repr(sent)]


async def text(asked: str, **privacy: Any) -> str:
    [sent], _ = await replaced((Message("user", asked),), **privacy)
    return sent.text


CALL: Json = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "mail", "arguments": '{"to": "alice\\u0040example.org", "n": 4155552671}'},
}
WHOLE: Chat = (
    Message("system", f"You serve {NAME}."),
    Message("user", f"My name is {NAME}.", {"name": "Alice_J"}),
    Message(
        "assistant", None, {"tool_calls": [CALL], "reasoning_content": f"ask {MAIL}", "name": "bot"}
    ),
    Message(
        "tool", json.dumps({"user": {"mail": MAIL, "phone": PHONE}}), {"tool_call_id": "call_1"}
    ),
    Message(
        "assistant",
        "Sent.",
        {"refusal": f"not to {MAIL}", "annotations": [{"title": NAME, "id": "1"}]},
    ),
    Message("user", ({"type": "text", "text": f"Alice's phone is {PHONE} or 4155552671."},)),
)
FIELDS: Fields = {
    "tools": [
        {
            "type": "function",
            "function": {
                "name": "mail",
                "description": f"Writes to {MAIL}",
                "parameters": {
                    "type": "object",
                    "properties": {MAIL: {"type": "string", "enum": [NAME, "other"]}},
                    "required": [MAIL],
                },
            },
        }
    ],
    "response_format": {"type": "json_schema", "json_schema": {"schema": {"title": f"For {NAME}"}}},
    "user": MAIL,
    "safety_identifier": "alice-7",
    "logit_bias": {"50256": -100},
    "prediction": {"type": "content", "content": f"Dear {NAME}"},
}


async def test_no_part_of_a_call_has_an_original() -> None:
    sent, fields = await replaced(WHOLE, FIELDS)
    assert_private((sent, fields))
    assert [message.role for message in sent] == [message.role for message in WHOLE]
    assert fields["logit_bias"] == FIELDS["logit_bias"]
    [tool] = cast(list[Any], fields["tools"])
    assert tool["function"]["name"] == "mail"
    schema = tool["function"]["parameters"]
    assert schema["required"] == list(schema["properties"])


async def test_the_same_value_has_the_same_pseudonym_everywhere() -> None:
    sent, _ = await replaced(WHOLE)
    system, user = sent[0].text, sent[1].text
    name = user.removeprefix("My name is ").removesuffix(".")
    assert system == f"You serve {name}."
    assert sent[5].text.startswith(f"{name}_")  # "Alice", another spelling of the same person
    [call] = cast(list[Any], sent[2].fields["tool_calls"])
    arguments, result = json.loads(call["function"]["arguments"]), json.loads(sent[3].text)
    assert arguments["to"] == result["user"]["mail"]
    assert arguments["n"][:12] == result["user"]["phone"][:12]


async def test_two_people_have_two_pseudonyms_and_a_shared_name_is_neither() -> None:
    sent = await text("Mr. Bob Stone and Mrs. Eve Stone. Bob, Eve, Stone")
    words = sent.replace(",", "").replace(".", "").split()
    bob, eve, bob_again, eve_again, stone = (w[:13] for w in words if w.startswith("PERSON_"))
    assert (bob, eve) == (bob_again, eve_again)
    assert len({bob, eve, stone}) == 3


async def test_a_conversation_keeps_its_pseudonyms_over_turns_and_differs_from_others() -> None:
    first = (Message("user", f"I am at {MAIL}"),)
    later = (*first, Message("assistant", "ok"), Message("user", f"again {MAIL}"))
    other = (Message("user", f"Write to {MAIL}"),)
    before, after, different = [
        (await replaced(c))[0][-1].text.split()[-1] for c in (first, later, other)
    ]
    assert before == after != different


async def test_another_caller_has_other_pseudonyms() -> None:
    chat = (Message("user", MAIL),)
    made = [
        await PrivateConversation.begin(chat, Privacy(), Owner(key=key)).replaced(chat, Sampling())
        for key in ("a", "b")
    ]
    assert made[0][0] != made[1][0]


async def test_what_is_replaced_is_not_replaced_again() -> None:
    private = conversation(WHOLE)
    once, sampling = await private.replaced(WHOLE, Sampling(fields=FIELDS))
    known = len(private.pseudonyms)
    assert await private.replaced(once, sampling) == (once, sampling)
    mixed = (*once, Message("user", f"password: KEY_{next(iter(private.pseudonyms.spellings))}_2"))
    assert (await private.replaced(mixed, sampling))[0] == mixed
    assert len(private.pseudonyms) == known


async def test_a_value_that_a_later_call_brings_is_replaced_with_the_same_map() -> None:
    private = conversation(WHOLE)
    await private.replaced(WHOLE, Sampling())
    page = (Message("user", f"A page: {MAIL}, eve@example.org, Alice"),)
    sent, _ = await private.replaced(page, Sampling())
    assert_private(sent)
    assert Restorer(private.pseudonyms).whole(sent[0].text) == page[0].text


async def test_a_literal_pseudonym_of_the_client_stays_what_it_is() -> None:
    """Though it is just the one that its value would get."""
    chat = (Message("user", MAIL),)
    private = conversation(chat)
    token = (await private.replaced(chat, Sampling()))[0][0].text
    again = conversation(chat)
    asked = (Message("user", f"{MAIL} and {token} and {token.lower()}"),)
    sent, _ = await again.replaced(asked, Sampling())
    assert sent[0].text.count(token) == 1
    assert Restorer(again.pseudonyms).whole(sent[0].text) == asked[0].text


@pytest.mark.parametrize("after", ["7", "_2", "\\_2", "_2024", "22", "x", "_x", "_"])
async def test_what_follows_a_value_is_not_taken_for_its_number(after: str) -> None:
    chat = (
        Message("user", f"{MAIL} {MAIL.upper()}; card 4111111111111111 and {MAIL.upper()}{after}"),
    )
    private = conversation(chat, deny=(MAIL.upper(), MAIL))
    [sent], _ = await private.replaced(chat, Sampling())
    assert Restorer(private.pseudonyms).whole(sent.text) == chat[0].text


async def test_lists_and_kinds() -> None:
    asked = f"{MAIL} {PHONE} the Widget of bob@corp.example"
    assert await text(asked, entities=("PHONE",)) == asked.replace(
        PHONE, (await text(asked, entities=("PHONE",))).split()[1]
    )
    assert (await text(asked, allow=(MAIL,))).startswith(MAIL)
    assert "bob@corp.example" in await text(asked, allow=("@corp.example",))
    assert "CUSTOM_" in await text(asked, deny=("widget",))


async def test_the_detector_of_the_operator_is_asked_too() -> None:
    async def cities(texts: Sequence[str]) -> list[list[PrivateValue]]:
        at = [text.find("Oslo") for text in texts]
        return [[PrivateValue(start, start + 4, "LOCATION")] if start >= 0 else [] for start in at]

    sent = await text(f"{MAIL} is in Oslo", detectors=(cities,))
    assert sent.startswith("EMAIL_")
    assert " LOCATION_" in sent


async def test_signed_thoughts_are_sent_back_as_they_came() -> None:
    blocks: Json = [
        {"type": "thinking", "thinking": "Write to jo@example.org", "signature": "s"},
        {"type": "thinking", "thinking": MAIL, "signature": ""},
    ]
    [sent], _ = await replaced((Message("assistant", "x", {"thinking_blocks": blocks}),))
    signed, unsigned = cast(list[Any], sent.fields["thinking_blocks"])
    assert signed == cast(list[Any], blocks)[0]
    assert_private(unsigned)


@pytest.mark.parametrize(
    "written",
    [
        '{"a": "alice\\u0040example.org", "a": "x"}',  # the first one is lost when it is parsed
        '{"a": "{\\"b\\": \\"alice\\\\u0040example.org\\"}"}',
        '[["alice@example.org"], 4155552671, true, null, 1.5]',
        '{"alice@example.org": 1, "n": 4155552671.0, "m": 4.155552671e9}',
        '{"alice\\u0040example.org": 1}',
        '{"a": "alice@example.org"',
        "[" * 500 + '"alice@example.org"' + "]" * 500,
        "[" * 3000 + '"alice@example.org"' + "]" * 3000,
    ],
)
async def test_json_hides_nothing(written: str) -> None:
    asked = f'My name is {NAME}, "phone": 4155552671'
    sent, _ = await replaced((Message("user", asked), Message("tool", written)))
    assert "alice" not in sent[1].text
    assert "4155552671" not in sent[1].text


def schema(**fields: Json) -> Json:
    function: Json = {"name": "f", "parameters": {"type": "object", **fields}}
    return {"tools": [{"type": "function", "function": function}]}


@pytest.mark.parametrize(
    "client",
    [
        pytest.param(schema(description=f"data: {MAIL}"), id="a description"),
        pytest.param(schema(properties={"a": {"default": {"id": MAIL}}}), id="a default"),
        pytest.param(schema(properties={"a": {"const": {"data": MAIL}}}), id="a constant"),
        pytest.param(schema(properties={"a": {"examples": [{MAIL: 1}]}}), id="a key of an example"),
        pytest.param(schema(dependentRequired={MAIL: ["a"]}), id="a dependency"),
        pytest.param(schema(dependentSchemas={MAIL: {}}), id="a dependent schema"),
        pytest.param({"metadata": {"id": MAIL, MAIL: "x"}}, id="metadata"),
        pytest.param(
            {"of_a_host": {"a": [{"id": MAIL, "data": MAIL, MAIL: 1}]}}, id="a host's own"
        ),
    ],
)
async def test_no_place_of_a_field_hides_a_value(client: Fields) -> None:
    _, fields = await replaced((Message("user", "Hello."),), client)
    assert "EMAIL_" in repr(fields)
    assert_private(fields)


async def test_a_text_that_begins_as_a_data_url_is_searched() -> None:
    """Clients of /v1/messages and /v1/responses send every text as a part."""
    texts = (f"data: {MAIL}", f"data:,{MAIL}", f"data:text/plain;base64,QUJD {MAIL}")
    sent, _ = await replaced(
        tuple(Message("user", ({"type": "text", "text": text},)) for text in texts)
    )
    assert repr(sent).count("EMAIL_") == len(texts)
    assert_private(sent)


async def test_arguments_that_a_client_sends_as_an_object_are_searched() -> None:
    function: Json = {"name": "mail", "arguments": {"id": MAIL, MAIL: "x"}}
    calls: list[Json] = [{"id": "call_1", "type": "function", "function": function}]
    sent, _ = await replaced((Message("assistant", None, {"tool_calls": calls}),))
    assert_private(sent)


async def test_json_without_private_values_stays_as_it_is_written() -> None:
    written = '{ "a":1.0,\n "b": "\\u00e9" }'
    assert await text(written) == written


async def test_a_field_that_is_nested_too_deeply_is_refused() -> None:
    deep: Json = "x"
    for _ in range(100):
        deep = [deep]
    with pytest.raises(RequestRejected, match="nested"):
        await replaced((Message("user", "hi"),), {"tools": deep})


async def test_more_values_than_can_be_kept_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_VALUES", 3)
    with pytest.raises(RequestRejected, match="at most 3"):
        await text(" ".join(f"u{n}@example.org" for n in range(5)))


async def test_more_text_than_is_searched_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "MAX_CHARACTERS", 5000)
    with pytest.raises(RequestRejected, match="5,000"):
        await text("word " * 2000)


async def test_a_text_that_cannot_be_searched_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object) -> Json:
        raise WorkerFailed("time")

    monkeypatch.setattr(scan, "ask_worker", broken)
    with pytest.raises(scan.NotSearched):
        await text(f"{MAIL} " * 500)


async def test_a_long_conversation_is_searched_in_a_worker() -> None:
    filler = "The quick brown fox jumps over the lazy dog. " * 2000
    chat = (
        Message("user", f"My name is {NAME}. {filler}"),
        Message("user", f"{filler} Alice {MAIL}"),
    )
    private = conversation(chat)
    sent, _ = await private.replaced(chat, Sampling())
    assert_private(sent)
    assert [Restorer(private.pseudonyms).whole(m.text) for m in sent] == [m.text for m in chat]


PARTS = st.sampled_from(
    [
        NAME, "Alice", "Johnson", MAIL, MAIL.upper(), PHONE, "(415) 555-2671", "4111111111111111",
        "My name is ", "Mr. ", "李明", "我叫", "先生", "PERSON_", "EMAIL_XKCDQZ", '{"a": "', '"}',
        "\\u0040", " ", ", ", "\n", "42", "2024-05-03", "password: s3cret!", "192.168.0.1", "[",
        "é", "\x00", "\ud800",
    ]
)  # fmt: skip


@given(st.lists(st.lists(PARTS, max_size=8).map("".join), min_size=1, max_size=3))
@settings(max_examples=200, deadline=None)
async def test_what_is_replaced_comes_back_as_it_was(texts: list[str]) -> None:
    chat = tuple(Message("user", each) for each in texts)
    private = conversation(chat)
    sent, _ = await private.replaced(chat, Sampling())
    for was, now in zip(chat, sent, strict=True):
        assert MAIL not in now.text
        back = Restorer(private.pseudonyms).whole(now.text)
        assert back == was.text or json.loads(back) == json.loads(was.text)


async def test_the_map_does_not_show_in_its_repr() -> None:
    private = conversation(WHOLE)
    await private.replaced(WHOLE, Sampling())
    assert_private([private, private.pseudonyms])
    assert "secret" not in repr(Privacy())


async def test_pseudonyms_do_not_depend_on_the_order_of_calls() -> None:
    values = [f"u{n}@example.org" for n in range(50)]
    orders = [values, random.Random(1).sample(values, 50)]
    made = []
    for order in orders:
        private = conversation((Message("user", "x"),))
        for value in order:
            await private.replaced((Message("user", value),), Sampling())
        made.append(
            {value: private.pseudonyms.pseudonym(value, "EMAIL", value) for value in values}
        )
    assert made[0] == made[1]
