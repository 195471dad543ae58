"""Majority voting: by the user's door, with params from a dict and a metered model."""

import random
from typing import Any

import pytest

from optillm_hooks.context import Context
from optillm_hooks.errors import ProviderFailed, SamplesFailed
from optillm_hooks.judging.choosing import MOST_CONSISTENT
from optillm_hooks.registry import get_approach
from optillm_hooks.testing import HANG, AnsweringLLM, Reply, ScriptedLLM, answer, context, params
from optillm_hooks.types import Completion, Message, Sampling, ToolCall

pytestmark = pytest.mark.anyio
CHAT = (Message("system", "Be terse."), Message("user", "6 * 7?"))
CALL = Completion("", finish_reason="tool_calls", tool_calls=(ToolCall("c", "f", "{}"),))


async def vote(
    replies: list[Reply], ctx: Context | None = None, n: int | None = None, **given: object
) -> str:
    llm = ScriptedLLM(replies)
    result = await answer("majority_voting", CHAT, llm, ctx, n=n or len(replies), **given)
    llm.assert_used_up()
    return result.text


@pytest.mark.parametrize(
    ("replies", "expected"),
    [
        pytest.param(["#### 41", "#### 42", "#### 42"], "#### 42", id="most votes win"),
        pytest.param(
            ["The answer is: **42**", "The answer is 41", "Answer: 42."],
            "The answer is: **42**",
            id="emphasis is no part of an answer",
        ),
        pytest.param(
            ["A cat sat.\nThe answer is 41", "A dog ran.\nSo x = 42", "The answer is 42"],
            "A dog ran.\nSo x = 42",
            id="the article A is no choice",
        ),
        pytest.param(["\\boxed{0.5}", "#### 2", "ANSWER: 1/2"], "\\boxed{0.5}", id="by value"),
        pytest.param(["#### 41", "#### 42"], "#### 41", id="a tie goes to the earlier call"),
        pytest.param(
            ["a b c d e", "f g h i j", "F g h i  j."], "f g h i j", id="free texts vote as a whole"
        ),
        pytest.param([HANG, ProviderFailed("x"), "#### 42"], "#### 42", id="failures do not vote"),
        pytest.param(
            ["<think>a b c d</think>x y z w", "<think>e</think>x y z w", "p q r s"],
            "<think>a b c d</think>x y z w",
            id="thoughts are no part of a text",
        ),
    ],
)
async def test_winner(replies: list[Reply], expected: str) -> None:
    assert await vote(replies) == expected


async def test_the_request_goes_out_as_it_is() -> None:
    llm = AnsweringLLM(lambda *_: "#### 42")
    await answer("majority_voting", CHAT, llm, context(client=Sampling(top_p=0.5)), n=2)
    for asked, sampling in llm.calls:
        assert asked == CHAT
        assert (sampling.temperature, sampling.top_p, sampling.purpose) == (0.6, 0.5, "answer")


async def test_a_provider_that_ignores_n_is_asked_for_the_rest() -> None:
    class OneChoice(ScriptedLLM):
        async def complete_n(self, chat: Any, sampling: Sampling, _n: int, /) -> list[Completion]:
            return [await self.complete(chat, sampling)]

    llm = OneChoice(["#### 41", "#### 42", "#### 42"], max_n=8)
    result = await answer("majority_voting", CHAT, llm, n=3)
    assert result.text == "#### 42"


async def test_tool_calls_vote_as_tool_calls() -> None:
    llm = ScriptedLLM([CALL, "#### 42", CALL])
    assert (await answer("majority_voting", CHAT, llm, n=3)).tool_calls == CALL.tool_calls


async def test_json_votes_as_json() -> None:
    ctx = context(client=Sampling(fields={"response_format": {"type": "json_object"}}))
    replies: list[Reply] = ['{"a": 1}', '{"a": 2, "b": 1}', '{"b": 1.0, "a": 2}']
    assert await vote(replies, ctx) == '{"a": 2, "b": 1}'


async def test_all_failing_keeps_the_status() -> None:
    with pytest.raises(SamplesFailed) as caught:
        await vote([ProviderFailed("busy", status=429)] * 2)
    assert caught.value.status == 429


async def test_calls_and_depth_are_what_the_cost_says() -> None:
    ctx = context()
    llm = AnsweringLLM(lambda _, sampling: f"#### {max(sampling.sample, 1)}")
    await answer("majority_voting", CHAT, llm, ctx)
    cost = get_approach("majority_voting").cost(params("majority_voting"))
    assert (len(ctx.trace.calls), ctx.trace.depth) == (cost.calls, cost.depth) == (8, 2)
    assert ctx.trace.events == [
        ("samples", {"asked": 8, "finished": 8}),
        ("vote", {"voters": 8, "votes": [2, 1, 1, 1, 1, 1, 1]}),
    ]


async def test_free_texts_are_asked_to_agree_once() -> None:
    ctx = context()
    replies: list[Reply] = ["a b c d e", "f g h i j", "k l m n o", "#### 42", "BEST: 1"]
    llm = ScriptedLLM(replies)
    result = await answer("majority_voting", CHAT, llm, ctx, n=4)
    judged = llm.calls[-1][0][-1].text
    assert MOST_CONSISTENT in judged
    assert result.text == min(map(str, replies[:4]), key=judged.index)
    assert (len(llm.calls), ctx.trace.lost) == (5, ())


async def test_the_body_field_of_old_is_known() -> None:
    assert get_approach("majority_voting").params.body_fields == {"k": "n"}


async def test_accuracy_follows_the_binomial_law() -> None:
    """p = 0.6, n = 8, two possible answers: P(5 or more right) + P(4 right)/2, since a tie goes to
    the first sample, which is right as often as not: 0.594086 + 0.232243/2 = 0.710208. By
    Hoeffding, 2500 trials stray by 0.06 with probability under 2*exp(-18) = 3.1e-8."""
    rng, trials, right = random.Random(3), 2500, 0
    llm = AnsweringLLM(lambda *_: "#### 42" if rng.random() < 0.6 else "#### 41")
    for _ in range(trials):
        right += (await answer("majority_voting", CHAT, llm)).text == "#### 42"
    assert abs(right / trials - 0.710208) < 0.06


async def test_another_model_may_choose_among_free_texts() -> None:
    """Nor are the votes of several models spoilt by it: they are asked for the samples only."""
    poems = ("Roses are red, and so on", "Snow falls on roofs", "The sea is deep and wide")
    voters = [ScriptedLLM([poem], model=f"model-{at}") for at, poem in enumerate(poems)]
    judge = ScriptedLLM(["BEST: 2"], model="judge")
    ctx = context(models=[*voters, judge])
    given = {"models": tuple(llm.model for llm in voters), "judge": "judge", "n": 3}
    result = await answer(
        "majority_voting", (Message("user", "Write a line."),), ScriptedLLM([]), ctx, **given
    )
    for llm in (*voters, judge):
        llm.assert_used_up()
    assert result.text == sorted(poems, key=judge.calls[0][0][-1].text.index)[1]
    assert params("majority_voting", **given).generators() == given["models"]
    assert params("majority_voting", **given).model_groups() == (*given["models"], "judge")
