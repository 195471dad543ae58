"""Re2: the question twice, everything else once."""

import pytest

from optillm_hooks.approaches.re2 import TRIGGER
from optillm_hooks.context import MeteredLLM
from optillm_hooks.errors import ProviderFailed
from optillm_hooks.pipeline.events import Outcome, Request
from optillm_hooks.pipeline.expression import parse
from optillm_hooks.pipeline.plan import resolve
from optillm_hooks.pipeline.run import run as run_plan
from optillm_hooks.registry import get_approach
from optillm_hooks.testing import ONE_CALL, Reply, ScriptedLLM, context, params
from optillm_hooks.types import Chat, Completion, Fields, Message, Sampling

pytestmark = pytest.mark.anyio
IMAGE: Fields = {"type": "image_url", "image_url": {"url": "data:,x"}}
HISTORY: Chat = (
    Message("system", "Be terse."),
    Message("user", "6 * 6?"),
    Message("assistant", "36"),
)
TWICE = "6 * 7?\n\nRead the question again: 6 * 7?"


async def rewritten(chat: Chat, **given: object) -> Chat:
    ctx = context()
    changed: Chat = await get_approach("re2").run(
        chat, MeteredLLM(ScriptedLLM([]), ctx), params("re2", **given), ctx
    )
    return changed


@pytest.mark.parametrize(
    ("chat", "expected"),
    [
        pytest.param(
            (*HISTORY, Message("user", "6 * 7?")),
            (*HISTORY, Message("user", TWICE)),
            id="only the last user turn, without a label",
        ),
        pytest.param(
            (Message("user", ({"type": "text", "text": "6 * 7?"}, IMAGE)),),
            (Message("user", ({"type": "text", "text": TWICE}, IMAGE)),),
            id="an image stays, once",
        ),
        pytest.param(
            (Message("user", "6 * 7?"), Message("tool", "42", {"tool_call_id": "1"})),
            (Message("user", TWICE), Message("tool", "42", {"tool_call_id": "1"})),
            id="a question before tool results",
        ),
        pytest.param((Message("user", (IMAGE,)),), (Message("user", (IMAGE,)),), id="no text"),
        pytest.param((Message("user", " \n"),), (Message("user", " \n"),), id="blanks"),
        pytest.param(HISTORY[:1], HISTORY[:1], id="no user turn"),
    ],
)
async def test_the_question_is_read_twice(chat: Chat, expected: Chat) -> None:
    assert await rewritten(chat) == expected


async def test_the_trigger_for_thinking_is_a_switch() -> None:
    asked = (Message("user", "6 * 7?"),)
    assert TRIGGER not in (await rewritten(asked))[0].text
    assert (await rewritten(asked, think=True))[0].text == f"{TWICE}\n\n{TRIGGER}"


async def ended(replies: list[Reply], **fields: object) -> tuple[Outcome, ScriptedLLM]:
    llm = ScriptedLLM(replies)
    chat = (*HISTORY, Message("user", "6 * 7?"))
    client = Sampling(temperature=0.2, top_p=0.9, max_tokens=50)
    request = Request(plan=resolve(parse("re2")), base="base", chat=chat, client=client, **fields)  # type: ignore[arg-type] # forwarded
    found = await run_plan(request, {"base": llm}.__getitem__)
    llm.assert_used_up()
    return found, llm


async def test_it_costs_the_plain_call_with_the_clients_sampling() -> None:
    found, llm = await ended(["42"])
    assert (found.answers[0].text, found.report.calls, found.report.depth) == ("42", 1, 1)
    [(_, sampling)] = llm.calls
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (0.2, 0.9, 50)


async def test_a_cut_answer_is_returned_and_says_so() -> None:
    found, _ = await ended([Completion("4", "length", usage=ONE_CALL)])
    assert (found.answers[0].text, found.answers[0].finish_reason) == ("4", "length")


async def test_n_choices_are_n_calls_at_once_of_which_failed_ones_are_left_out() -> None:
    found, _ = await ended(["a", ProviderFailed("busy", status=429), "c"], n=3)
    assert [answer.text for answer in found.answers] == ["a", "c"]
    assert found.report.depth == 1


async def test_no_choice_at_all_is_an_error_and_not_an_empty_list() -> None:
    busy = ProviderFailed("busy", status=429)
    with pytest.raises(ProviderFailed):
        await ended([busy, busy], n=2)
