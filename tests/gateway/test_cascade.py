"""A cascade over two models through the proxy: which of them is asked, and what the client gets."""

from collections.abc import Callable

import anthropic
import openai
import pytest

from tests.proxy import PRICE
from tests.upstream import Call, Script, Status, Upstream

MODEL = "cascade(strong=gpt-4o-mini)-single"


def script(unsure: bool) -> Callable[[Call, int], str]:
    """Return the replies of a small model that may be unsure, and of a large one."""

    def reply(call: Call, _: int) -> str:
        if call.body["model"] == "gpt-4o-mini":
            return "It is 43."
        return f"It is {call.index}." if unsure else "It is 42."

    return reply


def models(upstream: Upstream) -> list[str]:
    return [call.body["model"] for call in upstream.calls]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("unsure", [False, True], ids=["sure", "unsure"])
def test_the_large_model_is_asked_where_the_small_one_is_unsure(
    client: openai.OpenAI, upstream: Upstream, unsure: bool, stream: bool
) -> None:
    upstream.play(Script(reply=script(unsure)))
    asked = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "6 * 7?"}], stream=stream
    )
    if isinstance(asked, openai.Stream):
        text = "".join(chunk.choices[0].delta.content or "" for chunk in asked if chunk.choices)
    else:
        text = asked.choices[0].message.content or ""
        cost = (asked.model_extra or {})["optillm"]["cost_usd"]
        if not unsure:
            assert cost == pytest.approx(upstream.bill.cost(PRICE.prompt, PRICE.completion))
    assert text == ("It is 43." if unsure else "It is 42.")
    assert models(upstream).count("gpt-4o-mini") == unsure
    if unsure:
        (strong,) = [call for call in upstream.calls if call.body["model"] == "gpt-4o-mini"]
        assert strong.text == "6 * 7?"
        assert strong.streamed is stream


def test_on_the_messages_route(claude: anthropic.Anthropic, upstream: Upstream) -> None:
    upstream.play(Script(reply=script(unsure=True)))
    with claude.messages.stream(
        model=MODEL, max_tokens=99, messages=[{"role": "user", "content": "6 * 7?"}]
    ) as stream:
        assert stream.get_final_text() == "It is 43."


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_the_small_models_answer_is_left_if_the_large_one_fails(
    client: openai.OpenAI, upstream: Upstream, stream: bool
) -> None:
    def fault(call: Call) -> Status | None:
        return Status(503) if call.body["model"] == "gpt-4o-mini" else None

    upstream.play(Script(reply=script(unsure=True), fault=fault))
    asked = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "6 * 7?"}], stream=stream
    )
    if isinstance(asked, openai.Stream):
        text = "".join(chunk.choices[0].delta.content or "" for chunk in asked if chunk.choices)
    else:
        text = asked.choices[0].message.content or ""
    assert text.startswith("It is ")
    assert "43" not in text
