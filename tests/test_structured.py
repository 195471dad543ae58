"""A model fills in a form: with a schema that it is shown, and a second chance."""

import pytest
from pydantic import BaseModel, Field

from optillm_hooks.answers.json_reply import read_object
from optillm_hooks.budget import Limits
from optillm_hooks.context import MeteredLLM
from optillm_hooks.errors import UnusableReply
from optillm_hooks.structured import fill
from optillm_hooks.testing import ScriptedLLM, chat, context

pytestmark = pytest.mark.anyio


class Note(BaseModel):
    relevant: bool
    text: str = Field(description="What the passage says about the question.")


GOOD = '{"relevant": true, "text": "Alice owns it."}'


async def filled(*replies: str, fields: tuple[str, ...] = ()) -> tuple[Note, ScriptedLLM]:
    llm = ScriptedLLM(replies, fields=fields)
    ctx = context(limits=Limits())
    note = await fill(Note, chat("Who owns it?"), MeteredLLM(llm, ctx), ctx)
    llm.assert_used_up()
    return note, llm


@pytest.mark.parametrize(
    "reply",
    [
        GOOD,
        f"```json\n{GOOD}\n```",
        f"Sure, here it is:\n\n{GOOD}\nAnything else?",
        f"<think>Maybe {{}}.</think>{GOOD}",
        f"First `{{}}`.\n```\n{GOOD}\n```",
    ],
)
async def test_replies_as_models_write_them(reply: str) -> None:
    note, _ = await filled(reply)
    assert note == Note(relevant=True, text="Alice owns it.")


async def test_a_bad_reply_is_shown_with_what_is_wrong() -> None:
    note, llm = await filled('{"relevant": "perhaps"}', GOOD)
    assert note.relevant
    asked, _ = llm.calls[1]
    assert [message.role for message in asked] == ["user", "assistant", "user"]
    assert "relevant: Input should be a valid boolean" in asked[-1].text
    assert "text: Field required" in asked[-1].text


async def test_it_ends_after_its_attempts() -> None:
    with pytest.raises(UnusableReply):
        await filled("no", "never")


async def test_response_format_is_sent_where_it_is_known_to_be_accepted() -> None:
    _, plain = await filled(GOOD)
    assert "response_format" not in plain.calls[0][1].fields
    _, formal = await filled(GOOD, fields=("response_format",))
    sent = formal.calls[0][1].fields["response_format"]
    assert isinstance(sent, dict)
    assert sent["type"] == "json_schema"


@pytest.mark.parametrize("text", ["", "[1]", "{", "{'a': 1}", "none", '{"a": ' * 2000])
def test_texts_without_an_object(text: str) -> None:
    assert read_object(text) is None
