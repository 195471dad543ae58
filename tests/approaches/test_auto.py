"""auto: when samples answer, when it escalates or abstains, and that it says so."""

import math
import time
from collections.abc import Mapping
from typing import Any

import pytest

from optillm_hooks.approaches.auto import ABSTAINS, AutoParams
from optillm_hooks.budget import Limits
from optillm_hooks.errors import ProviderFailed, RequestRejected
from optillm_hooks.pipeline.events import Outcome, Request
from optillm_hooks.pipeline.expression import parse
from optillm_hooks.pipeline.plan import resolve
from optillm_hooks.pipeline.run import run
from optillm_hooks.policies import Level, at_most, holds
from optillm_hooks.testing import HANG, Reply, ScriptedLLM, chat

pytestmark = pytest.mark.anyio
ASKED = "What is 6 * 7?"
A, B, C = "ANSWER: 41", "ANSWER: 42", "ANSWER: 43"
BUSY = ProviderFailed("busy", status=429)
SURE = {"votes": 3, "of": 400, "right": 399, "escalated_right": 399}
"""Three of three are nearly always right, two of three escalated so, the rest nothing."""
PAIR = {"votes": 2, "of": 400, "right": 300, "escalated_right": 398}
ODD = {"votes": 1, "of": 400, "right": 100, "escalated_right": 300}
POLICY: Mapping[str, Any] = {
    "samples": 3, "agree": 2, "escalate": "none", "strong": "strong", "levels": [SURE, PAIR, ODD],
}  # fmt: skip


async def ended(
    cheap: list[Reply],
    strong: list[Reply],
    expression: str = "auto(policy=mine)",
    asked: str = ASKED,
    policy: Mapping[str, Any] = POLICY,
    **how: Any,
) -> Outcome:
    groups = {"base": ScriptedLLM(cheap), "strong": ScriptedLLM(strong, model="strong")}
    plan = resolve(parse(expression), presets={"auto": {"mine": policy}})
    request = Request(plan=plan, base="base", chat=chat(asked), **how)
    outcome = await run(request, groups.__getitem__)
    for llm in groups.values():
        llm.assert_used_up()
    assert "stage_failed" not in outcome.report.degraded
    return outcome


def note(outcome: Outcome) -> Mapping[str, object]:
    return dict(outcome.report.notes)["auto"]


@pytest.mark.parametrize(
    ("cheap", "strong", "expression", "text", "chosen", "expected"),
    [
        ([B, B, B], [], "auto(policy=mine)", "42", "answer", 399 / 400),
        ([B, A, B], [], "auto(policy=mine)", "42", "answer", 300 / 400),
        ([A, B, C], ["It is 42."], "auto(policy=mine)", "It is 42.", "escalate", 300 / 400),
        ([B, B, B], [], "auto(policy=mine;max_error=0.05)", "42", "answer", 399 / 400),
        ([B, A, B], ["42."], "auto(policy=mine;max_error=0.05)", "42.", "escalate", 398 / 400),
        ([A, B, C], [], "auto(policy=mine;max_error=0.05)", ABSTAINS, "abstain", None),
        ([B, B, BUSY], ["42."], "auto(policy=mine;max_error=0.05)", "42.", "escalate", 398 / 400),
        ([A, B, BUSY], ["42."], "auto(policy=mine;agree=3)", "42.", "escalate", 300 / 400),
        ([A, B, C], [], "auto(policy=mine;agree=0)", "41", "answer", 100 / 400),
        ([B, B, B], [], "auto", "42", "answer", None),
        ([A, B, B, B, B, A, B, B], [], "auto", "42", "escalate", None),
    ],
)
async def test_what_it_chooses(
    cheap: list[Reply],
    strong: list[Reply],
    expression: str,
    text: str,
    chosen: str,
    expected: float | None,
) -> None:
    outcome = await ended(cheap, strong, expression)
    assert outcome.answers[0].text == text
    assert note(outcome)["chosen"] == chosen
    assert note(outcome)["expected"] == expected


CLASSES = [
    {"kind": "choice", "agree": 3, "levels": [{**PAIR, "right": 200}]},
    {"larger_than": 1000, "agree": 0, "levels": []},
    {
        "kind": "number",
        "agree": 2,
        "levels": [{**PAIR, "of": 50, "right": 49, "escalated_right": 9}],
    },
]


@pytest.mark.parametrize(
    ("expression", "asked", "entry", "chosen", "expected"),
    [
        ("auto(policy=mine)", "How much is 6 * 7?", "number", "answer", 49 / 50),
        ("auto(policy=mine)", "Which? A) 41 B) 42 C) 43", "choice", "escalate", 398 / 400),
        ("auto(policy=mine)", "Is it 42?", "all", "escalate", 398 / 400),
        ("auto(policy=mine)", "七" * 334, "over 1000 bytes", "answer", 300 / 400),
        ("auto(policy=mine;agree=3)", "How much is 6 * 7?", "all", "escalate", 398 / 400),
        ("auto(policy=mine;max_error=0.05)", "How much is 6 * 7?", "all", "escalate", 398 / 400),
    ],
)
async def test_classes_of_requests_have_values_of_their_own(
    expression: str, asked: str, entry: str, chosen: str, expected: float
) -> None:
    """They hold unless the request says how many have to agree, or wants a promise."""
    policy = {**POLICY, "agree": 3, "entries": CLASSES}
    strong: list[Reply] = ["42."] if chosen == "escalate" else []
    outcome = await ended([B, A, B], strong, expression, asked, policy=policy)
    told = note(outcome)
    assert (told["entry"], told["chosen"], told["expected"]) == (entry, chosen, expected)


async def test_a_text_gets_the_plain_call_and_no_promise() -> None:
    outcome = await ended(["Tides rise."], [], asked="Explain how tides work.")
    assert outcome.answers[0].text == "Tides rise."
    assert note(outcome)["reason"] == "nothing_to_compare"
    strict = "auto(policy=mine;max_error=0.05)"
    outcome = await ended([], [], strict, "Explain how tides work.")
    assert outcome.answers[0].text == ABSTAINS


@pytest.mark.parametrize("expression", ["auto(policy=mine)", "auto(policy=mine;max_error=0.4)"])
async def test_a_failed_escalation_leaves_a_sample_or_nothing(expression: str) -> None:
    outcome = await ended([A, B, C], [BUSY], expression)
    strict = "max_error" in expression
    assert outcome.answers[0].text == (ABSTAINS if strict else "41")
    assert outcome.report.degraded


async def test_the_callers_limit_is_kept() -> None:
    outcome = await ended([A, B, C], [], limits=Limits(max_calls=3))
    assert outcome.answers[0].text == "41"
    assert outcome.report.calls == 3


STRICT = "auto(policy=mine;max_error=0.05)"
VOTING = {**POLICY, "escalate": "self_consistency(n=3)"}


async def stopped(
    base: ScriptedLLM, strong: ScriptedLLM, expression: str, limits: Limits
) -> Outcome:
    plan = resolve(parse(expression), presets={"auto": {"mine": VOTING}})
    request = Request(plan=plan, base="base", chat=chat(ASKED), limits=limits)
    return await run(request, {"base": base, "strong": strong}.__getitem__)


@pytest.mark.parametrize("limits", [Limits(max_calls=5), Limits(deadline_s=1.0)], ids=str)
@pytest.mark.parametrize("expression", ["auto(policy=mine;agree=3)", STRICT])
async def test_a_part_of_an_escalation_is_not_what_was_promised(
    limits: Limits, expression: str
) -> None:
    """It is cut short by calls or by time after a wrong sample of the strong model."""
    strong = ScriptedLLM([A, HANG, HANG] if limits.max_calls is None else [A, A], model="strong")
    outcome = await stopped(ScriptedLLM([B, A, B]), strong, expression, limits)
    is_strict = expression == STRICT
    assert outcome.answers[0].text.removeprefix("ANSWER: ") == (ABSTAINS if is_strict else "41")
    assert note(outcome)["chosen"] == ("abstain" if is_strict else "escalate")


async def test_a_deadline_before_any_sample_ends_in_an_abstention() -> None:
    limits = Limits(deadline_s=0.0)
    base, strong = ScriptedLLM([HANG, HANG, HANG]), ScriptedLLM([], model="strong")
    outcome = await stopped(base, strong, STRICT, limits)
    assert outcome.answers[0].text == ABSTAINS


def test_what_a_policy_learned_cannot_be_changed_beside_it() -> None:
    with pytest.raises(RequestRejected, match="samples cannot be given beside a policy"):
        resolve(parse("auto(policy=mine;samples=2)"), presets={"auto": {"mine": POLICY}})


def test_the_binomial_bound() -> None:
    """By hand: 0.95^59 is just below 0.05, and two of two coins show at most one head in 3/4."""
    assert holds(0, 59, 0.05, 1)
    assert not holds(0, 58, 0.05, 1)
    assert not holds(0, 59, 0.05, 2)
    assert at_most(1, 2, 0.5) == pytest.approx(0.75)
    for errors in range(31):
        exactly = sum(math.comb(30, k) * 0.3**k * 0.7 ** (30 - k) for k in range(errors + 1))
        assert at_most(errors, 30, 0.3) == pytest.approx(exactly)


@pytest.mark.parametrize("right", [0, 5_000_000, 9_500_000, 10_000_000])
def test_a_clients_calibration_does_not_hold_the_event_loop(right: int) -> None:
    """All terms of the sum would take half a minute."""
    level = {"votes": 3, "of": 10_000_000, "right": right, "escalated_right": right}
    before = time.thread_time()
    for max_error in (0.05, 0.5):
        AutoParams.model_validate({"levels": [level], "max_error": max_error}).chosen(3)
    assert time.thread_time() - before < 0.2


def test_a_group_of_few_problems_promises_nothing() -> None:
    levels = (Level(votes=3, of=50, right=50, escalated_right=50),)
    params = AutoParams(levels=levels, max_error=0.05)
    assert params.chosen(3) == "abstain"
    assert params.expected("answer", 3) == 1.0
