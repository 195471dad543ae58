"""AB-MCTS: what values solutions, what is refined, when it ends, and how often it is right."""

import random
import re
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import pytest

from optillm_hooks.budget import Limits
from optillm_hooks.context import Context
from optillm_hooks.errors import ProviderFailed, SamplesFailed, UnusableReply
from optillm_hooks.judging.decoys import SNEAKY
from optillm_hooks.registry import get_approach
from optillm_hooks.services import Services
from optillm_hooks.testing import (
    HANG,
    AnsweringLLM,
    Reply,
    ScriptedLLM,
    answer,
    chat,
    context,
    params,
)
from optillm_hooks.types import Chat, Completion, Fields, Message, Sampling, ToolCall

pytestmark = pytest.mark.anyio
RIGHT, WRONG = "ANSWER: 42", "ANSWER: 41"
CALL = Completion("", finish_reason="tool_calls", tool_calls=(ToolCall("1", "f", "{}"),))
DRAFT = "Below is a draft"


async def search(
    replies: Sequence[Reply],
    request: str = "6 * 7?",
    ctx: Context | None = None,
    **given: Any,
) -> tuple[str, ScriptedLLM]:
    llm, ctx = ScriptedLLM(replies), ctx or context(limits=Limits())
    ctx.models = {"base": llm}.__getitem__
    found = await answer("abmcts", chat(request), llm, ctx, **given)
    llm.assert_used_up()
    assert llm.inside == 0
    return found.text, llm


async def test_it_ends_at_the_first_solution_that_is_proven() -> None:
    ctx = context(limits=Limits())
    text, llm = await search([WRONG, WRONG, WRONG, RIGHT], ctx=ctx)
    assert text == RIGHT
    assert ctx.trace.calls_saved == 8 - 4
    assert all(sampling.purpose == "answer" for _, sampling in llm.calls), "no judge is asked"
    assert not ctx.trace.lost
    [note] = [facts for name, facts in ctx.trace.events if name == "search"]
    assert (note["valued_by"], note["solutions"], note["proven"]) == ("verifiers", 4, True)


async def test_without_a_proof_the_highest_value_wins_and_the_report_says_so() -> None:
    ctx = context(limits=Limits())
    better = "3 + 3 = 6. ANSWER: 41"
    text, _ = await search([WRONG, WRONG, better, WRONG], ctx=ctx, rollouts=4)
    assert text == better
    assert ctx.trace.lost == ("verified_answers:1/1",)


async def test_a_solution_of_unknown_value_is_worth_what_is_usual() -> None:
    """The first one is worth the middle of the scale, and so is better than a bad one."""

    async def check(_: str, text: str, /) -> tuple[bool | None, float | None]:
        return (False, 0.1) if text == "Bad" else (None, None)

    ctx = context(limits=Limits())
    ctx.services = Services(answer_check=check)
    given: dict[str, Any] = {"rollouts": 2, "parallel": 1, "verifiers": ("http",)}
    assert (await search(["Who knows?", "Bad"], "Why?", ctx, **given))[0] == "Who knows?"


async def test_a_proof_beats_a_higher_score_and_a_whole_answer_one_that_is_cut_off() -> None:
    async def check(_: str, text: str, /) -> tuple[bool | None, float | None]:
        return text == "Right", 0.3 if text == "Right" else 0.4

    cut = Completion("Wron", finish_reason="length")
    cases: list[tuple[list[Reply], str]] = [
        (["Wrong", "Right"], "Right"),
        ([cut, "Wrong"], "Wrong"),
    ]
    for replies, best in cases:
        ctx = context(limits=Limits())
        ctx.services = Services(answer_check=check)
        assert (await search(replies, "Why?", ctx, rollouts=2, verifiers=("http",)))[0] == best
        assert ctx.best is not None
        assert ctx.best.text == best


async def test_a_refinement_sees_its_draft_as_data_with_its_score() -> None:
    async def half(_: str, __: str, /) -> tuple[bool | None, float | None]:
        return False, 0.5

    for seed in range(20):
        ctx = context(limits=Limits(), seed=seed)
        ctx.services = Services(answer_check=half)
        given = {"rollouts": 4, "parallel": 1, "verifiers": ("http",)}
        _, llm = await search([f"Try {n}" for n in range(4)], "Why?", ctx, **given)
        refined = [asked[-1].text for asked, _ in llm.calls if DRAFT in asked[-1].text]
        if refined:
            break
    assert refined, "none of 20 searches has gone deeper"
    assert "\nTry " in refined[0]
    assert "it reaches 50%" in refined[0]
    assert "never an instruction" in refined[0]


@pytest.mark.parametrize("fails", [False, True])
async def test_where_verifiers_know_nothing_the_solutions_vote(fails: bool) -> None:
    async def check(_: str, __: str, /) -> tuple[bool | None, float | None]:
        if fails:
            raise UnusableReply("the endpoint does not answer")
        return None, None

    for seed in range(8):
        ctx = context(limits=Limits(), seed=seed)
        ctx.services = Services(answer_check=check)
        given = {"rollouts": 5, "parallel": 1, "verifiers": ("http",)}
        replies = ["ANSWER: 41", "ANSWER: 42", "ANSWER: 40", "So. ANSWER: 42", "ANSWER: 39"]
        text, llm = await search(replies, "Which number?", ctx, **given)
        assert text == "ANSWER: 42"
        assert "it reaches" not in "".join(asked[-1].text for asked, _ in llm.calls)
        [note] = [facts for name, facts in ctx.trace.events if name == "search"]
        assert note["valued_by"] == "nothing"
        assert ctx.trace.lost == (("verifications:5/5",) if fails else ())


async def test_where_verifiers_know_nothing_solutions_that_agree_are_enough() -> None:
    async def check(_: str, __: str, /) -> tuple[bool | None, float | None]:
        return None, None

    ctx = context(limits=Limits())
    ctx.services = Services(answer_check=check)
    given = {"parallel": 1, "verifiers": ("http",)}
    assert (await search([RIGHT] * 3, "Which number?", ctx, **given))[0] == RIGHT
    assert ctx.trace.calls_saved == 8 - 3


async def test_of_solutions_that_are_worth_the_same_the_most_frequent_answer_is_returned() -> None:
    replies = ["ANSWER: 40", "ANSWER: 41", "So. ANSWER: 41", "ANSWER: 43"]
    text, _ = await search(replies, rollouts=4)
    assert text == "ANSWER: 41"


async def test_a_refinement_is_not_told_what_the_judge_thinks() -> None:
    def reply(asked: Chat, sampling: Sampling) -> str:
        return "RATING: 6" if sampling.purpose == "judge" else f"Way {len(asked[-1].text)}"

    refined: list[str] = []
    for seed in range(5):
        llm = AnsweringLLM(reply)
        ctx = context(limits=Limits(), seed=seed, models=[llm])
        await answer("abmcts", chat("Which way?"), llm, ctx, judge="base", parallel=1)
        asked = [asked[-1].text for asked, _ in llm.calls]
        refined += [text for text in asked if DRAFT in text]
    assert refined
    assert not any("reaches" in text for text in refined)


async def test_where_no_verifier_applies_a_judge_rates() -> None:
    ctx = context(limits=Limits())
    replies: list[Reply] = ["A long way", "A short way", "RATING: 3", "RATING: 9"]
    text, llm = await search(replies, "Which way?", ctx, rollouts=2, judge="base")
    assert text == "A short way"
    assert [s.purpose for _, s in llm.calls] == ["answer", "answer", "judge", "judge"]
    [note] = [facts for name, facts in ctx.trace.events if name == "search"]
    assert (note["valued_by"], note["value"]) == ("judge", 0.9)
    assert not ctx.trace.lost


async def test_without_a_judge_either_the_solutions_vote() -> None:
    ctx = context(limits=Limits())
    assert (await search([RIGHT] * 3, "Which number?", ctx))[0] == RIGHT
    assert (ctx.trace.calls_saved, ctx.trace.depth) == (5, 1)


async def test_without_a_judge_either_the_form_counts_all_the_same() -> None:
    replies: list[Reply] = ["ANSWER: 1", "ANSWER: 1", "ANSWER: B", "ANSWER: 1"]
    text, _ = await search(replies, "Which letter?", rollouts=4, pattern="[A-D]$")
    assert text == "ANSWER: B"


async def test_ratings_of_equal_answers_add_up() -> None:
    replies: list[Reply] = [
        *("So. ANSWER: 1", "Thus. ANSWER: 2", "RATING: 6", "RATING: 9"),
        *("Hence. ANSWER: 1", "Or. ANSWER: 3", "RATING: 6", "RATING: 1"),
    ]
    text, _ = await search(replies, "Which number?", rollouts=4, judge="base")
    assert text == "So. ANSWER: 1"


async def test_answers_that_agree_are_not_judged() -> None:
    ctx = context(limits=Limits())
    given = {"rollouts": 8, "parallel": 3, "judge": "base"}
    text, _ = await search([RIGHT] * 3, "Which number?", ctx, **given)
    assert text == RIGHT
    assert ctx.trace.calls_saved == 13


async def test_texts_of_earlier_solutions_are_not_rated_again() -> None:
    first: list[Reply] = ["A long way", "A short way", "RATING: 3", "RATING: 9"]
    later: list[Reply] = ["A long way", "Another way", "RATING: 5"]
    text, _ = await search([*first, *later], "Which way?", rollouts=4, judge="base")
    assert text == "A short way"


async def test_of_rated_solutions_one_that_is_cut_off_is_left_out() -> None:
    cut = Completion("A long way and", finish_reason="length")
    replies: list[Reply] = [cut, "A short way", "RATING: 9", "RATING: 2"]
    assert (await search(replies, "Which way?", rollouts=2, judge="base"))[0] == "A short way"


async def test_a_form_that_does_not_fit_is_worth_nothing() -> None:
    replies: list[Reply] = ["ANSWER: 1", "ANSWER: B", "RATING: 9", "RATING: 2"]
    text, _ = await search(replies, "Which letter?", rollouts=2, pattern="[A-D]$", judge="base")
    assert text == "ANSWER: B"


async def test_equal_texts_are_rated_once() -> None:
    replies: list[Reply] = ["So be it", "So be it", "RATING: 5", "Or not", "Or not", "RATING: 7"]
    assert (await search(replies, "What?", rollouts=4, judge="base"))[0] == "Or not"


async def test_models_are_drawn_by_their_solutions() -> None:
    """One of two models is always right in part: it is asked more often. Seeded."""

    async def check(_: str, text: str, /) -> tuple[bool | None, float | None]:
        return False, 0.9 if text == "good" else 0.1

    asked = {"good": 0, "bad": 0}
    for seed in range(30):
        models = [AnsweringLLM(lambda *_, n=n: n, model=n) for n in asked]
        ctx = context(limits=Limits(), seed=seed, models=models)
        ctx.services = Services(answer_check=check)
        given = {"models": ("good", "bad"), "rollouts": 16, "verifiers": ("http",)}
        found = await answer("abmcts", chat("Why?"), ScriptedLLM([]), ctx, **given)
        assert found.text == "good"
        for model in models:
            asked[model.model] += len(model.calls)
    assert asked["good"] > 1.5 * asked["bad"]


async def test_tool_calls_of_the_first_solutions_are_returned_as_they_are() -> None:
    llm = ScriptedLLM([CALL, CALL])
    assert await answer("abmcts", chat("6 * 7?"), llm, context(limits=Limits())) == CALL


async def test_what_fails_is_left_out() -> None:
    ctx = context(limits=Limits())
    replies: list[Reply] = [ProviderFailed("502"), WRONG, WRONG, RIGHT]
    assert (await search(replies, ctx=ctx))[0] == RIGHT
    assert ctx.trace.lost == ("solutions:1/4",)
    with pytest.raises(SamplesFailed) as caught:
        await search([ProviderFailed("busy", status=429)] * 2)
    assert caught.value.status == 429


@pytest.mark.parametrize("calls", [1, 3, 5])
async def test_a_budget_ends_it_with_the_best_so_far(calls: int) -> None:
    ctx = context(limits=Limits(max_calls=calls))
    assert (await search([WRONG] * calls, ctx=ctx))[0] == WRONG


async def test_at_the_deadline_the_best_so_far_is_kept() -> None:
    """In the context of tests it has passed: only calls that wait are cut."""
    assert (await search([WRONG, HANG, WRONG, RIGHT], ctx=context()))[0] == RIGHT


async def test_images_and_tool_results_stay_in_every_call() -> None:
    picture: Fields = {"type": "image_url", "image_url": {"url": "data:,x"}}
    asked: Chat = (
        Message("assistant", None, {"tool_calls": [{"id": "1"}]}),
        Message("tool", "7", {"tool_call_id": "1"}),
        Message("user", ({"type": "text", "text": "6 * 7?"}, picture)),
    )
    llm = ScriptedLLM([WRONG] * 8)
    await answer("abmcts", asked, llm, context(limits=Limits()))
    for sent, _ in llm.calls:
        assert sent[:2] == asked[:2]
        assert picture in tuple(sent[2].content or ())


async def test_with_a_verifier_that_is_right_it_finds_what_samples_find() -> None:
    """Solutions and refinements are right with probability p, independently: accuracy is that of
    repeated sampling, 1 - (1 - p)^8. By Hoeffding, 700 trials stray by 0.105 with probability
    under 2 * exp(-15.4) = 4e-7."""
    p, trials, right = 0.2, 700, 0
    rng = random.Random(1)

    async def check(_: str, text: str, /) -> tuple[bool | None, float | None]:
        return text == RIGHT, None

    for seed in range(trials):
        llm = AnsweringLLM(lambda *_: RIGHT if rng.random() < p else WRONG)
        ctx = context(limits=Limits(), seed=seed)
        ctx.services = Services(answer_check=check)
        found = await answer("abmcts", chat("Why?"), llm, ctx, verifiers=("http",))
        right += found.text == RIGHT
    assert abs(right / trials - (1 - (1 - p) ** 8)) < 0.105


@pytest.mark.parametrize("belief", ["gaussian", "beta"])
async def test_where_refining_helps_it_reaches_what_no_sample_does(belief: str) -> None:
    """Samples have a quality of at most 3 of 10, and a refinement has 2 more than its draft. 60
    searches of 24 solutions each, seeded."""

    def write(rng: random.Random, asked: Chat) -> str:
        _, is_draft, text = asked[-1].text.partition("quality ")
        return f"quality {min(10, int(text.split()[0]) + 2) if is_draft else rng.randrange(4)}"

    async def check(_: str, text: str, /) -> tuple[bool | None, float | None]:
        return text == "quality 10", int(text.split()[1]) / 10

    reached: list[int] = []
    for seed in range(60):
        rng = random.Random(seed)
        llm = AnsweringLLM(lambda asked, _: write(rng, asked))  # noqa: B023 (done within the turn)
        ctx = context(limits=Limits(), seed=seed)
        ctx.services = Services(answer_check=check)
        given = {"verifiers": ("http",), "rollouts": 24, "parallel": 1, "belief": belief}
        found = await answer("abmcts", chat("Why?"), llm, ctx, **given)
        reached.append(int(found.text.split()[1]))
    assert min(reached) > 3
    assert fmean(reached) > 7


async def test_the_client_gets_json_as_it_asked_for_it() -> None:
    fields: Fields = {"response_format": {"type": "json_object"}}
    ctx = context(limits=Limits(), client=Sampling(fields=fields))
    replies: list[Reply] = ["ANSWER: 42", WRONG, '{"answer": 42}', WRONG]
    assert (await search(replies, ctx=ctx))[0] == '{"answer": 42}'


# ------------------------------------------------------------------------------------ decoys


class Raters(AnsweringLLM):
    """Solutions answer 1 and 2 in turn, and 2 is rated higher; decoys are rated `decoy`."""

    def __init__(self, decoy: int) -> None:
        super().__init__(self._reply)
        self._decoy = decoy
        self.first_solutions = 0

    def _reply(self, asked: Chat, sampling: Sampling) -> Reply:
        text = asked[-1].text
        if SNEAKY in text:
            return "Surely. ANSWER: 99"
        if sampling.purpose == "judge":
            found = str(re.findall(r"ANSWER: (\d+)", text)[-1])
            return f"RATING: {({'1': 3, '2': 8, '99': self._decoy})[found]}"
        self.first_solutions += DRAFT not in text
        return f"Way {sampling.sample}. ANSWER: {(1, 2, 1)[sampling.sample % 3]}"


@pytest.mark.parametrize(
    ("decoy", "expected", "lost"),
    [
        pytest.param(1, "2", (), id="decoys are rated lower: the search goes on"),
        pytest.param(9, "1", ("judge:untrusted",), id="higher: new solutions, and all vote"),
    ],
)
async def test_a_judge_that_rates_decoys_higher_ends_the_search(
    decoy: int, expected: str, lost: tuple[str, ...]
) -> None:
    """Solutions that were rated before vote too: of six, numbers 0, 2, 3 and 5 answer 1."""
    llm, ctx = Raters(decoy), context(limits=Limits())
    ctx.models = {"base": llm}.__getitem__
    given: dict[str, Any] = {"rollouts": 6, "judge": "base", "decoys": 2}
    found = await answer("abmcts", chat("Which number?"), llm, ctx, **given)
    assert (found.text[-1], ctx.trace.lost) == (expected, lost)
    declared = get_approach("abmcts").cost(params("abmcts", **given))
    calls = ctx.budget.usage.calls
    assert calls + ctx.trace.calls_saved == declared.calls
    assert ctx.trace.depth <= declared.depth
    assert (calls == 2 + 2 + 4 + 4) == (llm.first_solutions == 6) == bool(lost)
    numbers = sorted(sampling.sample for _, sampling in llm.calls if sampling.purpose == "answer")
    assert numbers == [*range(6)], "or seeds and response caches would repeat solutions"


@pytest.mark.parametrize(
    ("parallel", "depth"),
    [
        pytest.param(2, 2 + 2, id="three that agree would settle it: two more waves"),
        pytest.param(4, 2 + 1, id="so many did not: all others at the same time"),
    ],
)
async def test_solutions_without_a_judge_are_sampled_in_as_few_waves_as_are_of_use(
    parallel: int, depth: int
) -> None:
    llm, ctx = Raters(9), context(limits=Limits())
    ctx.models = {"base": llm}.__getitem__
    given: dict[str, Any] = {"rollouts": 8, "parallel": parallel, "judge": "base", "decoys": 1}
    await answer("abmcts", chat("Which number?"), llm, ctx, **given)
    assert (ctx.trace.lost, ctx.trace.depth) == (("judge:untrusted",), depth)


async def test_decoys_of_solutions_that_agree_are_not_rated() -> None:
    def reply(asked: Chat, _: Sampling) -> Reply:
        return HANG if SNEAKY in asked[-1].text else RIGHT

    llm, ctx = AnsweringLLM(reply), context(limits=Limits())
    ctx.models = {"base": llm}.__getitem__
    given: dict[str, Any] = {"parallel": 3, "judge": "base", "decoys": 2}
    assert (await answer("abmcts", chat("Which number?"), llm, ctx, **given)).text == RIGHT
    declared = get_approach("abmcts").cost(params("abmcts", **given))
    assert (llm.inside, ctx.trace.calls_saved) == (0, declared.calls - 3 - 2)


async def test_a_judge_may_be_put_aside_when_no_solution_is_left_to_write() -> None:
    llm, ctx = Raters(9), context(limits=Limits())
    ctx.models = {"base": llm}.__getitem__
    given: dict[str, Any] = {"rollouts": 3, "parallel": 3, "judge": "base", "decoys": 2}
    found = await answer("abmcts", chat("Which number?"), llm, ctx, **given)
    assert (found.text, ctx.budget.usage.calls) == ("Way 0. ANSWER: 1", 3 + 2 + 3 + 2)


async def test_where_a_verifier_values_solutions_no_decoy_is_written() -> None:
    given: dict[str, Any] = {"judge": "base", "decoys": 2}
    text, _ = await search([WRONG, RIGHT], rollouts=2, **given)
    assert text == RIGHT
