"""A model fills in a form: with a schema that it is shown, and a second chance."""

import json
from dataclasses import replace
from typing import Literal

import pytest
from pydantic import BaseModel, Field

from optillm_hooks.answers.json_reply import read_objects
from optillm_hooks.budget import Limits
from optillm_hooks.context import MeteredLLM
from optillm_hooks.errors import ProviderFailed, UnusableReply
from optillm_hooks.gateway.refusals import Refusals, refused_fields
from optillm_hooks.structured import fill
from optillm_hooks.testing import Reply, ScriptedLLM, chat, context
from optillm_hooks.types import Chat, Completion, Json, Sampling, ToolCall

pytestmark = pytest.mark.anyio


class Note(BaseModel):
    relevant: bool
    text: str = Field(description="What the passage says about the question.")


GOOD = '{"relevant": true, "text": "Alice owns it."}'


async def filled(*replies: Reply, fields: tuple[str, ...] = ()) -> tuple[Note, ScriptedLLM]:
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
        f'I weighed {{"relevant": false}} and settled on {GOOD}',
        "{'relevant': True, 'text': 'Alice owns it.',}",
        f"Voici:\n```json\n{GOOD[:-1]}\n```",
        '{"relevant": "yes", "text": "Alice owns it."',
        json.dumps(GOOD),
        f'{{"note": {GOOD}}}',
        f'{{"properties": {GOOD}}}',
        Completion("", tool_calls=(ToolCall("1", "json_tool_call", GOOD),)),
        Completion(f"{GOOD} And then I", finish_reason="length"),
    ],
)
async def test_replies_as_models_write_them(reply: Reply) -> None:
    note, _ = await filled(reply)
    assert note == Note(relevant=True, text="Alice owns it.")


async def test_a_bad_reply_is_shown_with_what_is_wrong() -> None:
    note, llm = await filled('{"relevant": "perhaps"}', GOOD)
    assert note.relevant
    asked, _ = llm.calls[1]
    assert [message.role for message in asked] == ["user", "assistant", "user"]
    assert "relevant: must be true or false" in asked[-1].text
    assert "text: is missing" in asked[-1].text


async def test_it_ends_after_its_attempts() -> None:
    with pytest.raises(UnusableReply):
        await filled("no", "never")


async def test_a_reply_that_was_cut_off_is_not_completed_by_guessing() -> None:
    cut = Completion('{"relevant": true, "text": "Alice', finish_reason="length")
    note, llm = await filled(cut, GOOD)
    assert note.text == "Alice owns it."
    assert "cut off" in llm.calls[1][0][-1].text


async def test_after_an_empty_reply_the_model_is_asked_the_same_again() -> None:
    _, llm = await filled("", GOOD)
    assert llm.calls[0][0] == llm.calls[1][0]
    assert [sampling.sample for _, sampling in llm.calls] == [0, 1]
    with pytest.raises(UnusableReply):
        await filled("", "")


async def test_a_reply_that_litellm_has_refused_is_asked_for_again() -> None:
    refused = ProviderFailed("an invalid response", status=500)
    with pytest.raises(ProviderFailed):
        await filled(refused)
    refused.answered = True
    note, _ = await filled(refused, GOOD)
    assert note.relevant


async def test_the_models_reasoning_is_not_sent_back() -> None:
    _, llm = await filled("<think>Hm.</think>perhaps", GOOD)
    assert llm.calls[1][0][1].text == "perhaps"


class Scores(BaseModel):
    names: list[str]
    score: int


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ('{"names": ["a", 7], "score": "3"}', Scores(names=["a", "7"], score=3)),
        ('{"names": "[\\"a\\"]", "score": 3.0}', Scores(names=["a"], score=3)),
    ],
)
async def test_values_of_the_wrong_type_that_mean_one_thing(reply: str, expected: Scores) -> None:
    ctx = context(limits=Limits())
    assert await fill(Scores, chat("Who?"), MeteredLLM(ScriptedLLM([reply]), ctx), ctx) == expected


class Part(BaseModel):
    """A part."""

    name: str = Field(max_length=9)
    weight: float | None = Field(default=None, ge=0, description="In kg.")


class Whole(BaseModel):
    parts: list[Part] = Field(max_length=3)
    main: Part = Field(description="The heaviest.")


class Open(BaseModel):
    weights: dict[str, float]


async def sent(form: type[BaseModel], reply: str) -> Json:
    llm = ScriptedLLM([reply], fields=["response_format"])
    ctx = context(limits=Limits())
    await fill(form, chat("Weigh it."), MeteredLLM(llm, ctx), ctx)
    return llm.calls[0][1].fields["response_format"]


async def test_the_schema_sent_is_what_strict_structured_outputs_accept() -> None:
    part: Json = {
        "type": "object",
        "description": "A part.",
        "properties": {
            "name": {"type": "string"},
            "weight": {"anyOf": [{"type": "number"}, {"type": "null"}], "description": "In kg."},
        },
        "required": ["name", "weight"],
        "additionalProperties": False,
    }
    reference: Json = {"$ref": "#/$defs/Part"}
    schema: Json = {
        "type": "object",
        "properties": {"parts": {"type": "array", "items": reference}, "main": reference},
        "required": ["parts", "main"],
        "additionalProperties": False,
        "$defs": {"Part": part},
    }
    wanted: Json = {"name": "Whole", "schema": schema, "strict": True}
    reply = '{"parts": [], "main": {"name": "x"}}'
    assert await sent(Whole, reply) == {"type": "json_schema", "json_schema": wanted}


async def test_a_form_with_properties_of_any_name_is_not_strict() -> None:
    wanted = await sent(Open, '{"weights": {"a": 1}}')
    assert isinstance(wanted, dict)
    assert wanted["json_schema"] == {
        "name": "Open",
        "schema": {
            "type": "object",
            "properties": {
                "weights": {"type": "object", "additionalProperties": {"type": "number"}}
            },
            "required": ["weights"],
            "additionalProperties": False,
        },
        "strict": False,
    }


async def test_the_schema_is_in_the_prompt_alone_where_no_format_is_known_to_be_accepted() -> None:
    _, llm = await filled(GOOD)
    assert "response_format" not in llm.calls[0][1].fields
    assert '"relevant"' in llm.calls[0][0][-1].text


class Host(ScriptedLLM):
    """A model whose host refuses a kind of `response_format`, and remembers refusals."""

    def __init__(self, replies: list[Reply], refuses: str) -> None:
        known = Refusals()
        super().__init__(replies, fields=["response_format"])
        self.facts = replace(
            self.facts,
            takes=lambda sampling: known.takes("x", sampling),
            remember=lambda refused: known.add("x", refused),
        )
        self._refuses = refuses

    async def complete(self, chat: Chat, sampling: Sampling, /) -> Completion:
        given = sampling.fields.get("response_format")
        if isinstance(given, dict) and given["type"] == self._refuses:
            error = ProviderFailed("This response_format type is unavailable now", status=400)
            error.refused = refused_fields(error, sampling)
            self.calls.append((chat, sampling))
            raise error
        return await super().complete(chat, sampling)

    @property
    def kinds(self) -> list[Json]:
        given = [sampling.fields.get("response_format") for _, sampling in self.calls]
        return [each["type"] if isinstance(each, dict) else None for each in given]


async def test_a_refused_format_is_left_out_and_not_tried_again() -> None:
    llm, ctx = Host([GOOD, GOOD], "json_schema"), context(limits=Limits())
    await fill(Note, chat("Who?"), MeteredLLM(llm, ctx), ctx)
    await fill(Note, chat("Who?"), MeteredLLM(llm, ctx), ctx)
    assert llm.kinds == ["json_schema", None, "json_object"]


@pytest.mark.parametrize("text", ["", "[1]", "{", "none", "I think {so} it is"])
def test_texts_without_an_object(text: str) -> None:
    assert [each for each in read_objects(text) if each] == []


@pytest.mark.parametrize("text", ['{"a": ' * 2000, "{" * 8000, "[" * 8000, '{"a"' * 4000])
def test_a_hostile_text_is_read_in_time(text: str) -> None:
    assert len(read_objects(text)) <= 1


async def test_a_long_reply_is_read_too() -> None:
    """It is read in a worker, whose result is validated."""
    long = json.dumps({"relevant": True, "text": "word " * 1000})
    note, _ = await filled(long)
    assert note.text.startswith("word word")


class Verdict(BaseModel):
    verdict: Literal["approve", "redo"]
    advice: str = ""


@pytest.mark.parametrize(
    "reply",
    [
        '{"verdict": "approve", "advice": null}',
        '{"verdict": "APPROVE"}',
        '{"verdict": "Approve ", "advice": ""}',
    ],
)
async def test_null_and_capitals_as_models_write_them(reply: str) -> None:
    ctx, llm = context(limits=Limits()), ScriptedLLM([reply])
    verdict = await fill(Verdict, chat("Does it stand?"), MeteredLLM(llm, ctx), ctx)
    assert verdict == Verdict(verdict="approve")


@pytest.mark.parametrize("reply", ['{"verdict": null}', '{"verdict": 7}', '{"verdict": "maybe"}'])
async def test_a_verdict_that_is_none_is_asked_for_again(reply: str) -> None:
    ctx, llm = context(limits=Limits()), ScriptedLLM([reply, '{"verdict": "redo"}'])
    verdict = await fill(Verdict, chat("Does it stand?"), MeteredLLM(llm, ctx), ctx)
    assert verdict == Verdict(verdict="redo")
