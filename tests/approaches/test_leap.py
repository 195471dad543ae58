"""LEAP: where mistakes come from, what is learnt from them, and what the final prompt holds."""

import json

import pytest

from optillm_hooks.approaches.leap import SOLVE, Example, may_hold_examples, read_examples
from optillm_hooks.caller_cache import CallerCache
from optillm_hooks.context import Context
from optillm_hooks.errors import ProviderFailed
from optillm_hooks.llm import FinalCall
from optillm_hooks.registry import get_approach
from optillm_hooks.testing import (
    AnsweringLLM,
    Reply,
    ScriptedLLM,
    answer,
    context,
    params,
    run,
)
from optillm_hooks.types import Chat, Completion, Message, Sampling, ToolCall
from tests.simulated import kind, solution

pytestmark = pytest.mark.anyio
EXAMPLES = [{"question": f"{n} * {n}?", "answer": str(n * n)} for n in (2, 3, 4)]
CHAT = (
    Message("system", "Be terse."),
    Message("user", "Hello."),
    Message("assistant", "Hello!"),
    Message("user", "2 * 2 = 4; 3 * 3 = 9; 4 * 4 = 16; 5 * 5 = ?"),
)
LISTED = json.dumps(EXAMPLES)
PRINCIPLES = "1. Multiply, do not add.\n2. Check by dividing."


def remembering(memory: CallerCache) -> Context:
    ctx = context()
    ctx.caller_cache = memory
    return ctx


def learner(chat: Chat, sampling: Sampling) -> str:
    """Finds the examples, and is wrong on each."""
    match kind(chat, sampling):
        case "find":
            return LISTED
        case "attempt":
            return solution("5")
        case "diagnose":
            return "Multiply."
        case "condense":
            return f"Here they are:\n\n{PRINCIPLES}"
        case _:
            return "25"


JSON_MODE = Sampling(fields={"response_format": {"type": "json_object"}})


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param("25", id="an answer"),
        pytest.param("There are none. It is 25.", id="an answer that says so"),
        pytest.param('["2 * 2 = 4"]', id="a list"),
        pytest.param('{"question": 1}', id="an object"),
        pytest.param('```json\n[{"city": "Rome"}]\n```', id="a block"),
        pytest.param(f"<think>{LISTED}</think>25", id="a list that was only thought of"),
    ],
)
async def test_without_examples_the_first_call_is_the_answer(reply: str) -> None:
    llm, ctx = ScriptedLLM([reply]), context()
    assert (await answer("leap", CHAT, llm, ctx)).text == reply
    assert (len(llm.calls), ctx.trace.depth) == (1, 1)
    [(_, sampling)] = llm.calls
    assert (sampling.purpose, sampling.temperature) == ("draft", None)
    assert not ctx.trace.lost


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param('{"worked_examples": []}', id="none"),
        pytest.param('{"worked_examples": [{"question"', id="no JSON"),
        pytest.param(ProviderFailed("502"), id="the call failed"),
        pytest.param("", id="an empty reply"),
    ],
)
async def test_a_look_that_brings_nothing_is_followed_by_the_plain_call(reply: Reply) -> None:
    llm, ctx = ScriptedLLM([reply, "25"]), context()
    assert (await answer("leap", CHAT, llm, ctx)).text == "25"
    assert llm.calls[-1][0] == CHAT
    assert (len(llm.calls), ctx.trace.depth) == (2, 2)


async def test_tools_may_be_called_instead_of_looking_for_examples() -> None:
    calling = Completion("", tool_calls=(ToolCall("1", "add", "{}"),), finish_reason="tool_calls")
    assert (await answer("leap", CHAT, ScriptedLLM([calling]))).tool_calls == calling.tool_calls


@pytest.mark.parametrize("reply", ['{"worked_examples": []}', "[]", "None."])
async def test_where_the_answer_has_a_form_of_its_own_the_look_is_another_call(reply: str) -> None:
    llm, ctx = ScriptedLLM([reply, "{}"]), context(client=JSON_MODE)
    assert (await answer("leap", CHAT, llm, ctx)).text == "{}"
    (_, looking), (asked, answering) = llm.calls
    assert "response_format" not in looking.fields
    assert "response_format" in answering.fields
    assert asked == CHAT


async def test_an_answer_is_no_longer_than_the_client_allows() -> None:
    ctx = context(client=Sampling(max_tokens=3))
    found = await answer("leap", CHAT, ScriptedLLM(["one two three four five six"]), ctx)
    assert (found.text.split(), found.finish_reason) == (["one", "two", "three"], "length")


@pytest.mark.parametrize(
    ("text", "may"),
    [
        ("5 * 5?", False),
        ("What is the capital of France?", False),
        ("Wie heißt du?", False),
        ("你是谁？", False),
        ("2 * 2 = 4; 5 * 5 = ?", True),
        ("2+2=4, 5+5=?", True),
        ("cat -> Katze\ndog", True),
        ("cat: Katze, dog: ?", True),
        ("猫是Katze，狗是什么？", False),
        ("猫是Katze，牛是Kuh，狗是什么？", True),
        ("Q: 1? A: 2", True),
        ("First sentence. Second one. A third", True),
    ],
)
def test_a_short_question_holds_no_example(text: str, may: bool) -> None:
    assert may_hold_examples((Message("user", text),)) == may


async def test_a_short_question_is_the_plain_call() -> None:
    llm = ScriptedLLM(["25"])
    asked = (Message("user", "5 * 5?"),)
    result = await run("leap", asked, llm)
    assert isinstance(result, FinalCall)
    assert result.chat == asked
    assert not llm.calls


async def test_calls_and_critical_path_with_examples() -> None:
    ctx = context()
    llm = AnsweringLLM(learner)
    assert (await answer("leap", CHAT, llm, ctx)).text == "25"
    assert (ctx.budget.usage.calls, ctx.trace.depth) == (9, 5)
    assert ctx.trace.events == [("leap", {"examples": 3, "principles": 2})]


@pytest.mark.parametrize(
    ("given", "calls", "depth"),
    [
        pytest.param({}, 1, 1, id="none listed"),
        pytest.param({"examples": EXAMPLES}, 8, 4, id="three listed"),
        pytest.param({"examples": EXAMPLES, "samples": 4}, 17, 4, id="four attempts at each"),
        pytest.param({"examples": EXAMPLES, "condense": False}, 7, 3, id="not condensed"),
    ],
)
async def test_the_stated_cost_is_that_of_listed_examples(
    given: dict[str, object], calls: int, depth: int
) -> None:
    ctx = context()
    llm = AnsweringLLM(lambda c, s: "25" if kind(c, s) == "find" else learner(c, s))
    await answer("leap", CHAT, llm, ctx, **given)
    assert (ctx.budget.usage.calls, ctx.trace.depth) == (calls, depth)
    cost = get_approach("leap").cost(params("leap", **given))
    assert (cost.calls, cost.depth) == (calls, depth)


async def test_principles_are_learnt_once_for_the_same_examples() -> None:
    llm, memory = AnsweringLLM(learner), CallerCache()
    await answer("leap", CHAT, llm, remembering(memory))
    learning = len(llm.calls)
    await answer("leap", CHAT, llm, remembering(memory))
    assert [kind(*call) for call in llm.calls[learning:]] == ["find", "solve"]
    assert "Check by dividing." in llm.calls[-1][0][-1].text


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"chat": (Message("system", "Be kind."), *CHAT[1:])}, id="system message"),
        pytest.param({"model": "other"}, id="model"),
        pytest.param({"examples": EXAMPLES[:2]}, id="examples"),
        pytest.param({"max_principles": 1}, id="parameters"),
    ],
)
async def test_they_are_learnt_again_with_another(change: dict[str, object]) -> None:
    memory = CallerCache()
    await answer("leap", CHAT, AnsweringLLM(learner), remembering(memory), examples=EXAMPLES)
    llm = AnsweringLLM(learner, model=str(change.pop("model", "base")))
    asked = change.pop("chat", CHAT)
    assert isinstance(asked, tuple)
    await answer("leap", asked, llm, remembering(memory), **{"examples": EXAMPLES, **change})
    assert "attempt" in {kind(*call) for call in llm.calls}


async def test_what_was_learnt_while_a_call_failed_is_not_kept() -> None:
    failing = ScriptedLLM([solution("5"), ProviderFailed("502"), "Multiply.", PRINCIPLES, "25"])
    ctx = context()
    await answer("leap", CHAT, failing, ctx, examples=EXAMPLES[:2])
    assert ctx.trace.events[-1][1]["principles"] == 2
    llm = AnsweringLLM(learner)
    await answer("leap", CHAT, llm, remembering(ctx.caller_cache), examples=EXAMPLES[:2])
    assert [kind(*call) for call in llm.calls].count("attempt") == 2


async def test_memory_is_bounded_and_keeps_what_was_used_last() -> None:
    memory = CallerCache(max_entries=2)
    learnt: list[bool] = []
    for number in (1, 2, 1, 3, 1, 2):  # 3 drives out 2, which was used before 1
        llm = AnsweringLLM(learner)
        examples = [{"question": f"{number}?", "answer": "0"}]
        await answer("leap", CHAT, llm, remembering(memory), examples=examples)
        learnt.append(len(llm.calls) > 1)
    assert learnt == [True, True, False, True, False, True]


async def test_what_one_caller_learnt_is_not_told_to_another() -> None:
    memory = CallerCache()
    for caller, calls in (("a", 8), ("b", 8), ("a", 1)):
        llm = AnsweringLLM(learner)
        await answer("leap", CHAT, llm, remembering(memory.for_caller(caller)), examples=EXAMPLES)
        assert len(llm.calls) == calls


async def test_learning_takes_nothing_from_the_request_but_examples_and_rules() -> None:
    llm = AnsweringLLM(learner)
    client = Sampling(temperature=0.0, max_tokens=7, fields={"logit_bias": {"1": 2}})
    await answer("leap", CHAT, llm, context(client=client), examples=EXAMPLES)
    for chat, sampling in llm.calls[:-1]:
        assert chat[0] == CHAT[0]
        assert len(chat) == 2
        assert CHAT[-1].text not in chat[-1].text
        assert (sampling.max_tokens, sampling.fields) == (None, {})


async def test_mistakes_are_not_asked_for() -> None:
    llm = AnsweringLLM(learner)
    await answer("leap", CHAT, llm, examples=EXAMPLES)
    attempts = [c for c, s in llm.calls if kind(c, s) == "attempt"]
    assert [c[-1].text for c in attempts] == [f"{e['question']}\n\n{SOLVE}" for e in EXAMPLES]
    assert all(s.temperature == 0.7 for c, s in llm.calls if kind(c, s) == "attempt")


async def test_without_mistakes_nothing_is_invented() -> None:
    def perfect(chat: Chat, sampling: Sampling) -> str:
        squares = {SOLVE: {"2 *": "4.", "3 *": "9", "4 *": "sixteen"}}
        if kind(chat, sampling) == "attempt":
            return solution("x").replace("x", squares[SOLVE][chat[-1].text[:3]])
        return learner(chat, sampling)

    llm = AnsweringLLM(perfect)
    await answer("leap", CHAT, llm)
    assert [kind(*call) for call in llm.calls] == ["find", *["attempt"] * 3, "solve"]
    assert llm.calls[-1][0] == CHAT


async def test_the_final_prompt_keeps_the_conversation_and_adds_the_principles() -> None:
    llm = AnsweringLLM(learner)
    await answer("leap", CHAT, llm)
    final, sampling = llm.calls[-1]
    assert final[:3] == CHAT[:3]
    assert final[3].text.endswith(CHAT[3].text)
    assert "Multiply, do not add." in final[3].text
    assert sampling.purpose == "answer"


async def test_the_final_prompt_holds_the_listed_examples() -> None:
    llm = AnsweringLLM(learner)
    await answer("leap", CHAT, llm, examples=EXAMPLES)
    final = llm.calls[-1][0][-1].text
    assert all(f"Question: {e['question']}\nAnswer: {e['answer']}" in final for e in EXAMPLES)


async def test_lessons_are_used_as_they_are_if_condensing_fails() -> None:
    llm = ScriptedLLM([solution("5"), "Multiply.", ProviderFailed("502"), "25"])
    await answer("leap", CHAT, llm, examples=EXAMPLES[:1])
    assert "Multiply." in llm.calls[-1][0][-1].text
    again = AnsweringLLM(learner)
    await answer("leap", CHAT, again, examples=EXAMPLES[:1])
    assert len(again.calls) == 4


async def test_lessons_are_used_as_they_are_if_condensing_says_nothing() -> None:
    llm = ScriptedLLM([solution("5"), "Multiply.", "<think>Hm.</think>", "25"])
    await answer("leap", CHAT, llm, examples=EXAMPLES[:1])
    assert "Multiply." in llm.calls[-1][0][-1].text


async def test_a_lesson_that_says_nothing_is_none() -> None:
    llm = ScriptedLLM([solution("5"), "<think>Hm.</think>", "25"])
    await answer("leap", CHAT, llm, examples=EXAMPLES[:1])
    assert len(llm.calls) == 3


async def test_no_more_principles_than_asked_for() -> None:
    llm = AnsweringLLM(learner)
    ctx = context()
    await answer("leap", CHAT, llm, ctx, max_principles=1)
    assert ctx.trace.events[-1][1]["principles"] == 1


@pytest.mark.parametrize(
    "attempt",
    [
        pytest.param("I would rather not say?", id="unreadable"),
        pytest.param(Completion(solution("5"), finish_reason="length"), id="cut off"),
    ],
)
async def test_an_attempt_is_no_mistake_if_it_is(attempt: Reply) -> None:
    llm = ScriptedLLM([attempt, "25"])
    await answer("leap", CHAT, llm, examples=EXAMPLES[:1])
    llm.assert_used_up()


FOUND = (Example(question="2 * 2?", answer="4"),)


@pytest.mark.parametrize(
    ("text", "examples"),
    [
        pytest.param('[{"question": "2 * 2?", "answer": "4"}]', FOUND, id="bare"),
        pytest.param('[{"question": "2 * 2?", "answer": 4}]', FOUND, id="a number"),
        pytest.param('```json\n[{"question": "2 * 2?", "answer": "4"}]\n```', FOUND, id="fenced"),
        pytest.param(
            'Yes:\n```\n[{"question": "2 * 2?", "answer": "4"}]\n```\nThat is all.',
            FOUND,
            id="with words around",
        ),
        pytest.param('{"examples": [{"question": "2 * 2?", "answer": "4"}]}', FOUND, id="wrapped"),
        pytest.param('[1, {"question": "2 * 2?", "answer": "4"}]', FOUND, id="beside others"),
        pytest.param('[{"question": "2 * 2?"}]', (), id="no answer"),
        pytest.param('[{"question": " ", "answer": "4"}]', (), id="a blank question"),
        pytest.param('[{"question": ["2"], "answer": "4"}]', (), id="not a text"),
        pytest.param("[" * 100_000, (), id="deep"),
        pytest.param("", (), id="empty"),
    ],
)
def test_read_examples(text: str, examples: tuple[Example, ...]) -> None:
    assert read_examples(text) == examples
