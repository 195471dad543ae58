"""deepthink: planned steps, samples that have to agree, one more call only where they do not."""

import json
from collections.abc import Sequence

import pytest

from optillm_hooks.caller_cache import CallerCache
from optillm_hooks.errors import ProviderFailed
from optillm_hooks.llm import Reasoning
from optillm_hooks.pipeline.events import Outcome, Request
from optillm_hooks.pipeline.expression import parse
from optillm_hooks.pipeline.plan import resolve
from optillm_hooks.pipeline.run import run
from optillm_hooks.testing import Reply, ScriptedLLM, chat
from optillm_hooks.types import Chat, Json, Message, Sampling

pytestmark = pytest.mark.anyio

PLAN = (
    '{"numbers": [3, 99, 22, 3]}',
    '{"advice": ["Split the sum.", "Check the units."]}',
    '{"steps": [{"title": "Given", "to_do": "List the numbers."}]}',
)
WORDY = [
    "Six times seven: six fives are thirty, two more sixes are twelve.\nANSWER: 42",
    "I know the table of seven by heart.\nANSWER: 42.0",
    "Let me add seven six times, patiently, with all the steps.\nANSWER: $42$",
]


async def ended(
    replies: Sequence[Reply],
    expression: str = "deepthink",
    asked: Chat | None = None,
    *,
    cache: CallerCache | None = None,
    reasoning: Reasoning = "never",
    client: Sampling | None = None,
) -> tuple[Outcome, ScriptedLLM]:
    llm = ScriptedLLM(replies, reasoning=reasoning)
    request = Request(
        plan=resolve(parse(expression)),
        base="base",
        chat=asked or chat("6 * 7?"),
        client=client or Sampling(),
        caller_cache=cache or CallerCache(),
    )
    outcome = await run(request, {"base": llm}.__getitem__)
    llm.assert_used_up()
    assert "stage_failed" not in outcome.report.degraded, "a call was not in the script"
    return outcome, llm


async def test_samples_that_agree_are_the_answer_however_they_are_worded() -> None:
    outcome, llm = await ended([*PLAN, *WORDY])
    assert outcome.answers[0].text.startswith("Six times seven")
    assert "ANSWER:" not in outcome.answers[0].text
    assert len(llm.calls) == 6
    note = {"steps": 1, "samples": 3, "share": 1.0, "agreed": True}
    assert ("deepthink", note) in outcome.report.notes


@pytest.mark.parametrize(
    ("threshold", "answers", "agreed"),
    [
        (0.6, (41, 42, 42), True),
        (1.0, (42, 42, 42), True),
        (0.7, (41, 42, 42), False),
        (0.0, (40, 41, 42), True),
        (0.6, (40, 41, 42), False),
        (0.6, (420, 421, 422), False),  # alike as texts, but not equal
    ],
)
async def test_the_share_decides_whether_another_call_is_made(
    threshold: float, answers: tuple[int, ...], agreed: bool
) -> None:
    samples = [f"It is so.\nANSWER: {answer}" for answer in answers]
    expression = f"deepthink(self_discover=false;confidence_threshold={threshold})"
    outcome, llm = await ended([*samples, *([] if agreed else ["It is 42."])], expression)
    if agreed:
        common = max(answers, key=answers.count)
        assert outcome.answers[0].text == f"It is so.\n\n{common}"
    else:
        assert outcome.answers[0].text == "It is 42."
        assert llm.calls[-1][1].temperature == 0.0
        assert "ANSWER:" not in llm.calls[-1][0][0].text


async def test_if_the_deciding_call_fails_the_most_frequent_answer_counts() -> None:
    samples = [f"ANSWER: {answer}" for answer in (41, 42, 42)]
    expression = "deepthink(self_discover=false;confidence_threshold=1.0)"
    outcome, _ = await ended([*samples, ProviderFailed("busy", status=429)], expression)
    assert outcome.answers[0].text == "42"


async def test_the_steps_are_planned_from_the_selection_and_shown_with_the_question() -> None:
    rules = (Message("system", "Be terse."), Message("user", "6 * 7?"))
    _, llm = await ended([*PLAN, *WORDY], asked=rules)
    prompts = [asked[-1].text for asked, _ in llm.calls]
    assert "1. Split the task into parts" in prompts[1]
    assert "2. Check units" in prompts[1]
    assert "3." not in prompts[1].partition("selected")[2].partition("Rewrite")[0]
    assert "1. Split the sum." in prompts[2]
    assert all("Given: List the numbers." in prompt for prompt in prompts[3:])
    assert all(asked[0].role == "system" for asked, _ in llm.calls)
    assert all(asked[0].text.startswith("Be terse.") for asked, _ in llm.calls)
    assert "Be terse." not in "\n".join(prompts)


@pytest.mark.parametrize(
    ("system", "first", "second", "same"),
    [
        ("You are a tutor.", "How many legs has a spider?", "How many days has May?", True),
        ("You are a tutor.", "How many legs has a spider?", "Who wrote Faust?", False),
        ("", "How many are 3 * 4?", "How many are 17 * 5?", True),
        ("", "How many legs has a spider?", "How many days has May?", False),
    ],
)
async def test_the_steps_are_kept_for_the_task(
    system: str, first: str, second: str, same: bool
) -> None:
    cache = CallerCache()
    rules = (Message("system", system),) if system else ()
    for number, text in enumerate((first, second)):
        planning = () if same and number else PLAN
        asked = (*rules, Message("user", text))
        await ended([*planning, *WORDY], asked=asked, cache=cache.for_caller("a"))
    await ended([*PLAN, *WORDY], asked=asked, cache=cache.for_caller("b"))


@pytest.mark.parametrize("bad", ['{"numbers": [0, 99]}', '{"numbers": []}', "No.", ""])
async def test_without_usable_steps_the_samples_are_drawn_all_the_same(bad: str) -> None:
    cache = CallerCache()
    second = () if "99" in bad else (bad,)
    for _ in range(2):  # a failure is not kept
        outcome, _ = await ended([bad, *second, *WORDY], cache=cache)
        assert outcome.answers[0].text.startswith("Six times")
        assert outcome.report.degraded == ("plans:1/1",)


async def test_a_model_that_reasons_plans_for_itself() -> None:
    outcome, llm = await ended(WORDY, reasoning="always")
    assert len(llm.calls) == 3
    assert "step by step" not in llm.calls[0][0][0].text
    assert dict(outcome.report.notes)["deepthink"]["steps"] == 0


@pytest.mark.parametrize(
    "asked", ["Explain how tides work.", "Schreibe ein Gedicht.", "为什么天是蓝的？"]
)
async def test_a_question_for_a_text_is_answered_once_by_the_steps(asked: str) -> None:
    outcome, llm = await ended([*PLAN, "The moon pulls."], asked=chat(asked))
    assert outcome.answers[0].text == "The moon pulls."
    assert len(llm.calls) == 4


async def test_samples_of_json_vote_as_json() -> None:
    wanted: Json = {"type": "json_object"}
    samples = ['{"a": 1, "b": 2}', '{"b": 2, "a": 1}', '{"a": 3}']
    outcome, llm = await ended(
        samples,
        "deepthink(self_discover=false)",
        client=Sampling(fields={"response_format": wanted}),
    )
    assert json.loads(outcome.answers[0].text) == {"a": 1, "b": 2}
    assert [message.text for message in llm.calls[0][0]] == ["6 * 7?"]


async def test_the_answer_keeps_its_end() -> None:
    code = "```python\nprint(42)\n```"
    outcome, _ = await ended(["x", "y", "z", code], "deepthink(self_discover=false)")
    assert outcome.answers[0].text == code
