"""`auto` through the proxy, by a policy of the operator's: each route, streamed and not."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import anthropic
import openai
import pytest

from optillm_hooks.approaches.auto import ABSTAINS
from tests.gateway.shared import THRIFTY_USD
from tests.proxy import PRICE, Proxy
from tests.upstream import Call, Script, Upstream

NUMBER = "How many eggs are in three and a half dozen?"
CHOICE = "Which one is a prime? A) 41 B) 42 C) 44"
AUTO, STRICT = "auto(policy=mine)-single", "auto(policy=mine;max_error=0.05)-single"
STRONG = "gpt-4o-mini"


def agreeing(votes: int, right: str, wrong: tuple[str, str]) -> Callable[[Call, int], str]:
    """Return the replies of a small model, of which so many agree, and of the strong one."""
    answers = [*[right] * votes, *wrong][:3]

    def reply(call: Call, choice: int) -> str:
        if call.body["model"] == STRONG:
            return f"It is {right}, they say."
        return f"ANSWER: {answers[(call.index + choice) % 3]}"

    return reply


def numbers(votes: int) -> Script:
    return Script(reply=agreeing(votes, "42", ("41", "43")))


def choices(votes: int) -> Script:
    return Script(reply=agreeing(votes, "A", ("B", "C")))


def answered(
    client: openai.OpenAI, claude: anthropic.Anthropic, route: str, model: str, asked: str
) -> tuple[str, dict[str, Any]]:
    """Return the answer of a route, and the note of `auto` in its report."""
    messages: Any = [{"role": "user", "content": asked}]
    made: Any
    if route == "messages":
        made = claude.messages.create(model=model, max_tokens=99, messages=messages)
        text = "".join(block.text for block in made.content if block.type == "text")
    elif route == "responses":
        made = client.responses.create(model=model, input=asked)
        text = made.output_text
    else:
        made = client.chat.completions.create(model=model, messages=messages)
        text = made.choices[0].message.content
    notes = made.model_dump()["optillm"]["notes"]
    [note] = [note for note in notes if note["name"] == "auto"]
    return text, note


def streamed(
    client: openai.OpenAI, claude: anthropic.Anthropic, route: str, model: str, asked: str
) -> str:
    messages: Any = [{"role": "user", "content": asked}]
    if route == "messages":
        with claude.messages.stream(model=model, max_tokens=99, messages=messages) as events:
            return "".join(events.text_stream)
    if route == "responses":
        with client.responses.stream(model=model, input=asked) as parts:
            return parts.get_final_response().output_text
    chunks = client.chat.completions.create(model=model, messages=messages, stream=True)
    return "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices)


CASES = [
    pytest.param("chat", AUTO, NUMBER, numbers(2), "42", "answer", id="chat, two numbers agree"),
    pytest.param("chat", AUTO, NUMBER, numbers(1), "It is 42, they say.", "escalate", id="none"),
    pytest.param("messages", AUTO, CHOICE, choices(3), "A", "answer", id="three choices"),
    pytest.param("messages", AUTO, CHOICE, choices(2), "It is A, they say.", "escalate", id="two"),
    pytest.param("responses", STRICT, NUMBER, numbers(1), ABSTAINS, "abstain", id="abstains"),
    pytest.param("responses", AUTO, NUMBER, numbers(1), "It is 42, they say.", "escalate", id="r"),
]
REASONS = {"answer": "agreement", "escalate": "agreement", "abstain": "max_error"}


@pytest.mark.parametrize(("route", "model", "asked", "script", "text", "chosen"), CASES)
def test_the_policy_decides(
    client: openai.OpenAI, claude: anthropic.Anthropic, upstream: Upstream,
    route: str, model: str, asked: str, script: Script, text: str, chosen: str,
) -> None:  # fmt: skip
    upstream.play(script)
    got, note = answered(client, claude, route, model, asked)
    assert got.removeprefix("ANSWER: ") == text
    assert (note["chosen"], note["reason"]) == (chosen, REASONS[chosen])
    is_number = asked == NUMBER
    assert note["kind"] == ("number" if is_number else "choice")
    assert note["size"] == len(asked)
    assert note["entry"] == ("number" if is_number and model == AUTO else "all")
    assert note["calibrated_on"] == (600 if note["entry"] == "number" else 1200)
    asked_strong = [call for call in upstream.calls if call.body["model"] == STRONG]
    assert len(asked_strong) == (chosen == "escalate")


@pytest.mark.parametrize(("route", "model", "asked", "script", "text", "chosen"), CASES)
def test_a_stream_has_the_same_answer(
    client: openai.OpenAI, claude: anthropic.Anthropic, upstream: Upstream,
    route: str, model: str, asked: str, script: Script, text: str, chosen: str,
) -> None:  # fmt: skip
    upstream.play(script)
    got = streamed(client, claude, route, model, asked)
    assert got.removeprefix("ANSWER: ") == text
    assert any(call.body["model"] == STRONG for call in upstream.calls) == (chosen == "escalate")


@pytest.mark.parametrize(
    ("model", "n"), [("auto-few-calls", "ignored"), ("auto-thrifty", "honoured")]
)
def test_the_operators_limit_is_kept(
    proxy: Proxy, upstream: Upstream, model: str, n: Literal["ignored", "honoured"]
) -> None:
    """An alias that permits the samples alone: one of them is the answer."""
    upstream.play(replace(numbers(1), n=n))
    body = {"model": model, "max_tokens": 20, "messages": [{"role": "user", "content": NUMBER}]}
    answer = proxy.post("/v1/chat/completions", body).json()
    [note] = [note for note in answer["optillm"]["notes"] if note["name"] == "auto"]
    assert (note["chosen"], note["reason"]) == ("answer", "escalation_failed")
    assert {call.body["model"] for call in upstream.calls} == {"base"}
    cost = upstream.bill.cost(PRICE.prompt, PRICE.completion)
    assert answer["optillm"]["cost_usd"] == pytest.approx(cost)
    if model == "auto-thrifty":
        assert cost <= THRIFTY_USD
    else:
        assert answer["optillm"]["calls"] == len(upstream.calls) == 3
