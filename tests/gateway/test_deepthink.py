"""deepthink over HTTP, with the fields that OptiLLM's clients send."""

import json
from typing import Any

import anthropic
import openai
import pytest

from tests.documents import all_blocks
from tests.fakes import filled_form
from tests.upstream import Call, Script, Upstream

QUESTION: Any = [{"role": "user", "content": "How many are 6 * 7?"}]


def reply(call: Call, _: int) -> str:
    text = call.messages[-1]["content"]
    return filled_form(text) or f"By way {call.index}.\nANSWER: 42"


def test_the_request_of_the_documentation(client: openai.OpenAI, upstream: Upstream) -> None:
    [body] = [json.loads(b.text) for b in all_blocks() if '"deepthink-gpt-4o-mini"' in b.text]
    fields = {name: body.pop(name) for name in ("deepthink_samples", "confidence_threshold")}
    upstream.play(Script(reply=reply))
    answer = client.chat.completions.create(**body, extra_body=fields)
    assert (answer.choices[0].message.content or "").endswith("42")
    assert [call.body.get("n") for call in upstream.calls] == [None, None, None, 5]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("planned", [False, True])
def test_fields_of_optillm(
    client: openai.OpenAI, upstream: Upstream, planned: bool, stream: bool
) -> None:
    upstream.play(Script(reply=reply))
    fields = {
        "deepthink_samples": 4,
        "confidence_threshold": 0.9,
        "enable_self_discover": planned,
        "reasoning_modules_limit": 5 if stream else 6,  # or the steps are kept
    }
    answer: Any = client.chat.completions.create(
        model="deepthink-base", messages=QUESTION, extra_body=fields, stream=stream
    )
    if stream:
        pieces = [piece.delta.content for c in answer for piece in c.choices]
        text = "".join(piece or "" for piece in pieces)
    else:
        text = answer.choices[0].message.content
        assert answer.usage.total_tokens == upstream.bill.total_tokens
    assert text.endswith("42")
    assert [call.body.get("n") for call in upstream.calls] == [*[None] * 3 * planned, 4]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_the_messages_route(claude: anthropic.Anthropic, upstream: Upstream, stream: bool) -> None:
    upstream.play(Script(reply=reply))
    asked: Any = {"model": "deepthink-base", "max_tokens": 500, "messages": QUESTION}
    if stream:
        with claude.messages.stream(**asked) as events:
            text = "".join(events.text_stream)
    else:
        text = claude.messages.create(**asked).content[0].text
    assert text.endswith("42")
    assert upstream.calls[-1].body["n"] == 3


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_the_responses_route(client: openai.OpenAI, upstream: Upstream, stream: bool) -> None:
    upstream.play(Script(reply=reply))
    asked: Any = {"model": "deepthink-base", "input": "How many are 6 * 7?"}
    if stream:
        with client.responses.stream(**asked) as events:
            text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    else:
        text = client.responses.create(**asked).output_text
    assert text.endswith("42")
    assert upstream.calls[-1].body["n"] == 3


@pytest.mark.parametrize("bad", [{"deepthink_samples": 0}, {"reasoning_modules_limit": 99}])
def test_values_out_of_bounds_are_refused(
    client: openai.OpenAI, upstream: Upstream, bad: dict[str, int]
) -> None:
    upstream.play(Script())
    with pytest.raises(openai.BadRequestError, match="deepthink"):
        client.chat.completions.create(model="deepthink-base", messages=QUESTION, extra_body=bad)
    assert len(upstream.calls) == 0
