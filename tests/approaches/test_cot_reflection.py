"""CoT reflection: only the output section is the answer, whatever the reply looks like."""

from typing import Any

import pytest

from optillm_hooks.approaches.cot_reflection import INSTRUCTION
from optillm_hooks.errors import EmptyCompletion
from optillm_hooks.pipeline.events import Outcome, Piece, Request
from optillm_hooks.pipeline.expression import parse
from optillm_hooks.pipeline.plan import resolve
from optillm_hooks.pipeline.run import run
from optillm_hooks.pipeline.stream import stream
from optillm_hooks.testing import HANG, ONE_CALL, Reply, ScriptedLLM
from optillm_hooks.types import Answer, Chat, Completion, Delta, Fields, Message, Sampling
from tests.fakes import Pieces

pytestmark = pytest.mark.anyio
IMAGE: Fields = {"type": "image_url", "image_url": {"url": "data:,x"}}
CHAT: Chat = (
    Message("system", "Be terse."),
    Message("user", "6 * 6?"),
    Message("assistant", "36"),
    Message("user", ({"type": "text", "text": "6 * 7?"}, IMAGE)),
)
GOOD = "<thinking>\n36 + 6\n</thinking>\n<reflection>fine</reflection>\n<output>\n42\n</output>"
BOTH = pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])


async def ended(
    llm: ScriptedLLM, streamed: bool = False, text: str = "cot_reflection", **client: Any
) -> Outcome:
    sampling = Sampling(**client)
    plan = resolve(parse(text), temperature=sampling.temperature)
    request = Request(plan=plan, base="base", chat=CHAT, client=sampling)
    models = {"base": llm}.__getitem__
    if not streamed:
        return await run(request, models)
    events = [event async for event in stream(request, models)]
    last = events[-1]
    assert isinstance(last, Outcome)
    assert last.answers[0].text == "".join(e.delta.text for e in events if isinstance(e, Piece))
    return last


async def answered(reply: Reply, streamed: bool, **client: Any) -> Answer:
    return (await ended(ScriptedLLM([reply]), streamed, "cot_reflection", **client)).answers[0]


def cut(text: str) -> Completion:
    return Completion(text, "length", usage=ONE_CALL)


@BOTH
@pytest.mark.parametrize(
    ("reply", "text", "finish_reason"),
    [
        pytest.param(GOOD, "42", "stop", id="as asked"),
        pytest.param("42", "42", "stop", id="no section: the reply as it is"),
        pytest.param(
            "<thinking>the <output> will be 41</thinking><output>42</output>",
            "42",
            "stop",
            id="an output tag inside the thinking",
        ),
        pytest.param(cut("<thinking>36 +"), "", "length", id="cut inside the thinking"),
        pytest.param(
            cut("<thinking>a</thinking><output>The answer is 4"),
            "The answer is 4",
            "length",
            id="cut inside the output",
        ),
    ],
)
async def test_the_answer_is_the_output_section(
    streamed: bool, reply: Reply, text: str, finish_reason: str
) -> None:
    found = await answered(reply, streamed)
    assert (found.text, found.finish_reason) == (text, finish_reason)


@BOTH
@pytest.mark.parametrize(
    "reply",
    ["<thinking>36 + 6</thinking><output></output>", "<thinking>36 + 6"],
    ids=["an empty output", "thinking alone"],
)
async def test_a_whole_reply_without_an_answer_is_a_failure(streamed: bool, reply: str) -> None:
    with pytest.raises(EmptyCompletion):
        await answered(reply, streamed)


@BOTH
async def test_an_empty_reply_is_the_answer(streamed: bool) -> None:
    found = await answered("", streamed)
    assert (found.text, found.finish_reason) == ("", "stop")


@BOTH
async def test_the_thinking_can_be_shown(streamed: bool) -> None:
    found = await ended(ScriptedLLM([GOOD]), streamed, "cot_reflection(show_thinking=true)")
    assert found.answers[0].text == GOOD


@BOTH
async def test_stop_strings_hold_for_the_answer_and_not_for_the_thinking(streamed: bool) -> None:
    llm = ScriptedLLM(["<thinking>a\nEND</thinking><output>\n4END2</output>"])
    found = await ended(llm, streamed, stop=("END",))
    assert found.answers[0].text == "4"
    assert not llm.calls[0][1].stop


@BOTH
async def test_a_stop_at_a_lines_end_leaves_the_first_line(streamed: bool) -> None:
    found = await answered("<output>\n42\nbecause</output>", streamed, stop=("\n",))
    assert found.text == "42"


@BOTH
async def test_a_models_own_reasoning_is_kept_apart(streamed: bool) -> None:
    pieces = [Delta(reasoning="hm"), Delta(text=GOOD), Delta(finish_reason="stop", usage=ONE_CALL)]
    llm = Pieces(pieces, [Completion(GOOD, reasoning="hm", usage=ONE_CALL)])
    found = (await ended(llm, streamed)).answers[0]
    assert (found.text, found.reasoning) == ("42", "hm")


@BOTH
async def test_a_model_that_reasons_by_itself_gets_the_request_unchanged(streamed: bool) -> None:
    llm = ScriptedLLM([Completion("42", reasoning="hm", usage=ONE_CALL)], reasoning="always")
    found = (await ended(llm, streamed, stop=("END",))).answers[0]
    assert (found.text, found.reasoning) == ("42", "hm")
    [(sent, sampling)] = llm.calls
    assert (sent, sampling.stop) == (CHAT, ("END",))


@pytest.mark.parametrize(
    ("text", "shown"),
    [("cot_reflection", "42"), ("cot_reflection(show_thinking=true)", GOOD)],
    ids=["hidden", "shown"],
)
async def test_thinking_that_litellm_took_for_reasoning_is_part_of_the_reply(
    text: str, shown: str
) -> None:
    thinking, rest = GOOD.removeprefix("<thinking>").split("</thinking>")
    llm = ScriptedLLM([Completion(rest, reasoning=thinking, usage=ONE_CALL)])
    found = (await ended(llm, text=text)).answers[0]
    assert (found.text, found.reasoning) == (shown, "")


async def test_the_conversation_is_kept_and_the_instruction_is_added() -> None:
    llm = ScriptedLLM([GOOD])
    await ended(llm)
    [(sent, _)] = llm.calls
    assert sent == (Message("system", f"Be terse.\n\n{INSTRUCTION}"), *CHAT[1:])
    assert not any(line.startswith(" ") for line in INSTRUCTION.splitlines())


@pytest.mark.parametrize(
    ("text", "client", "temperature"),
    [
        ("cot_reflection", None, 0.6),
        ("cot_reflection", 0.0, 0.0),
        ("cot_reflection(temperature=1.2)", 0.3, 1.2),
    ],
    ids=["its own", "the client's", "the expression's"],
)
@pytest.mark.parametrize("shown", ["", ";show_thinking=true"], ids=["hidden", "shown"])
async def test_the_temperature(
    text: str, client: float | None, temperature: float, shown: str
) -> None:
    llm = ScriptedLLM([GOOD])
    text = text.replace(")", f"{shown})") if "(" in text else f"{text}({shown[1:]})"
    await ended(llm, text=text, temperature=client)
    assert llm.calls[0][1].temperature == temperature


async def test_no_limit_on_tokens_is_made_up() -> None:
    llm = ScriptedLLM([GOOD, GOOD])
    await ended(llm)
    await ended(llm, max_tokens=77)
    assert [sampling.max_tokens for _, sampling in llm.calls] == [None, 77]


async def test_the_answer_streams_from_its_first_word_on() -> None:
    llm = Pieces([Delta(text="<thinking>a</thinking><output>The "), Delta(text="answer"), HANG])
    request = Request(plan=resolve(parse("cot_reflection")), base="base", chat=CHAT)
    events = stream(request, {"base": llm}.__getitem__)
    first, second = await anext(events), await anext(events)
    await events.aclose()
    assert isinstance(first, Piece)
    assert isinstance(second, Piece)
    assert (first.delta.text, second.delta.text) == ("The", " answer")


async def test_tool_calls_pass() -> None:
    call: Fields = {"index": 0, "id": "1", "function": {"name": "f", "arguments": "{}"}}
    llm = Pieces([Delta(tool_calls=(call,)), Delta(finish_reason="tool_calls", usage=ONE_CALL)])
    found = (await ended(llm, True)).answers[0]
    assert [c.name for c in found.tool_calls] == ["f"]
    assert found.finish_reason == "tool_calls"
