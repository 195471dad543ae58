"""Auto: cheap samples answer where they agree; elsewhere it escalates, or abstains.

`optillm-hooks eval --policy FILE` learns from your own problems how many samples have to agree,
what to escalate to, and how often each is right; `optillm_settings.auto.policies` names the file.
Where it pays, the number depends on what is asked for (a number, a choice, ...) or on the length.
Without a policy all samples have to agree, `self_consistency` decides otherwise, and the report
says that no accuracy is expected. With `max_error`, an answer is only given where the calibration
proves that it is wrong no more often; elsewhere `auto` abstains. The promise is for questions like
those of the calibration. The report's note `auto` has the choice, its reason and the expected
accuracy.

Good for: answers that can be compared.
Worth it when: easy and hard questions come mixed, and you have some with known answers.
Source: Wang et al. 2022, arXiv:2203.11171, section 3.3 (agreement measures certainty); Chen et al.
2023, "FrugalGPT", arXiv:2305.05176 (escalation by a learned threshold); Angelopoulos et al. 2021,
"Learn then Test", arXiv:2110.01052, and Geifman and El-Yaniv 2017, arXiv:1705.08500 (a bound of the
error by exact tests). Deviation: the tests share their risk equally (Bonferroni), so that each
number of agreeing samples can be answered, escalated or left by itself.
On reasoning models: the same; they are not asked to reason step by step.
Cost: `samples` calls, all concurrent; then at most those of `escalate`, where they disagree. A
request for a text, with tools or with a format of its own cannot be compared: it gets the plain
call, or with `max_error` no answer.
"""

import asyncio
from typing import Any, Final, Literal, Self

from pydantic import Field, ValidationInfo, model_validator

from optillm_hooks.answers.questions import asked_for
from optillm_hooks.answers.voting import contenders
from optillm_hooks.context import Context
from optillm_hooks.errors import SampleError
from optillm_hooks.fanout import sample_many
from optillm_hooks.final_answer import needs_mark, reasoning_aloud, without_mark
from optillm_hooks.judging.voting import agreement, wants_text
from optillm_hooks.llm import LLM
from optillm_hooks.policies import (
    MOST_ENTRIES,
    MOST_SAMPLES,
    Entry,
    Level,
    Signals,
    check_entries,
    check_levels,
    holds,
)
from optillm_hooks.prompts import question
from optillm_hooks.registry import Aside, Cost, Params, Rest, Result, over_named, wrapper
from optillm_hooks.types import Answer, Chat, Sampling

SETTING: Final = "optillm_settings.auto.policies"
ABSTAINS: Final = "I abstain: no answer to this is certain enough."
"""The answer where none is within `max_error`."""

_SHARE: Final = 0.9
"""Share of the remaining time after which an escalation is given up."""

_LEARNED: Final = frozenset({"samples", "escalate", "strong", "levels", "entries"})
"""Parameters that a policy sets, and that a request may not change."""

Choice = Literal["answer", "escalate", "abstain"]


class AutoParams(Params):
    """Parameters that are not given take the values of the policy, if one is named."""

    model_group_fields = ("strong",)

    policy: str | None = Field(
        default=None, description="A policy of the operator's, by its name in the settings."
    )
    samples: int = Field(default=3, ge=2, le=MOST_SAMPLES, description="Cheap samples.")
    agree: int | None = Field(
        default=None,
        ge=0,
        le=MOST_SAMPLES,
        description="Samples whose agreement is enough; 0 always answers, as a calibration needs; "
        "unset: all.",
    )
    escalate: str = Field(
        default="self_consistency",
        min_length=1,
        max_length=1000,
        description="The approach that answers otherwise, as an expression without `|`; in quotes "
        "if it has parameters or several stages. `none` is a plain call.",
    )
    strong: str | None = Field(
        default=None, description="Model group that it runs on; unset: the base model."
    )
    max_error: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="The share of wrong answers that is permitted; needs a policy. Unset: any.",
    )
    levels: tuple[Level, ...] = Field(
        default=(),
        max_length=MOST_SAMPLES + 1,
        description="The calibration: right answers by agreeing samples, from the policy.",
    )
    entries: tuple[Entry, ...] = Field(
        default=(),
        max_length=MOST_ENTRIES,
        description="Classes of requests with an `agree` and levels of their own, from the policy; "
        "not used with `max_error`.",
    )
    temperature: float = Field(
        default=0.7, gt=0, le=2, description="Samples must differ, so 0 is not allowed."
    )

    @model_validator(mode="before")
    @classmethod
    def _from_policy(cls, given: Any, info: ValidationInfo) -> Any:
        """Return `given` over the values of its policy, which the context has by name."""
        if not isinstance(given, dict) or given.get("policy") is None:
            return given
        merged = over_named(given, "policy", info, SETTING)
        if learned := sorted(_LEARNED & given.keys()):
            raise ValueError(f"{learned[0]} cannot be given beside a policy, which was learned so")
        return {**merged, "entries": ()} if "agree" in given else merged

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.agree is not None and self.agree > self.samples:
            raise ValueError(f"agree must be at most samples ({self.samples}), got {self.agree}")
        check_levels(self.levels, self.samples)
        check_entries(self.entries, self.samples)
        if self.max_error is not None and not self.levels:
            raise ValueError("max_error needs a policy, which says how often answers are right")
        return self

    def aside(self) -> Aside:
        return Aside(
            expression=self.escalate,
            parameter="escalate",
            times=1,
            model=self.strong,
            answers=True,
        )

    def entry(self, signals: Signals) -> Entry | None:
        """Return the entry of a request's class; None if what was learned of all holds for it.

        With `max_error` that always holds: a class alone has too few problems to prove much.
        """
        if self.max_error is not None:
            return None
        return next((entry for entry in self.entries if entry.covers(signals)), None)

    def chosen(self, votes: int, entry: Entry | None = None) -> Choice:
        """Return what to do if so many samples agree."""
        needed = self.samples if self.agree is None else self.agree
        if entry is not None:
            needed = entry.agree
        first: Choice = "answer" if votes >= needed else "escalate"
        if self.max_error is None:
            return first
        other: Choice = "escalate" if first == "answer" else "answer"
        return next((each for each in (first, other) if self._is_safe(each, votes)), "abstain")

    def expected(self, choice: Choice, votes: int, entry: Entry | None = None) -> float | None:
        """Return the calibrated accuracy of a choice; None if it is not known, or abstains."""
        level = None if choice == "abstain" else self._level(votes, entry)
        return None if level is None else _right(choice, level) / level.of

    def _is_safe(self, choice: Choice, votes: int) -> bool:
        level, permitted = self._level(votes), self.max_error
        if level is None or permitted is None:
            return False
        return holds(level.of - _right(choice, level), level.of, permitted, 2 * len(self.levels))

    def _level(self, votes: int, entry: Entry | None = None) -> Level | None:
        levels = self.levels if entry is None else (*entry.levels, *self.levels)
        return next((level for level in levels if level.votes == votes), None)


def _right(choice: Choice, level: Level) -> int:
    return level.right if choice == "answer" else level.escalated_right


def _cost(params: AutoParams) -> Cost:
    """Return the cost without the escalation, and without the plain call that may replace both."""
    return Cost(calls=params.samples - 1, depth=1)


@wrapper("auto", AutoParams, cost=_cost)
async def auto(chat: Chat, rest: Rest, llm: LLM, params: AutoParams, ctx: Context) -> Result:
    """Return the answer on which the samples agree, that of the escalation, or an abstention.

    If the escalation fails, the most frequent sample is returned; with `max_error`, none, and a
    part of an escalation that was cut short is none either. The stages after this one answer what
    cannot be compared.

    Raises:
        SamplesFailed: no sample finished.
    """
    strict = params.max_error is not None
    signals = _signals(chat)
    entry = params.entry(signals)
    if strict:
        ctx.offer(_abstention())  # what an early end returns, in place of a sample
    if ctx.client.fields.get("tools") or ctx.forms_answers or wants_text(chat, ctx):
        _note(ctx, params, "abstain" if strict else "plain", "nothing_to_compare", signals)
        return _abstention() if strict else await rest(chat)
    marked = needs_mark(chat, ctx)
    asked = reasoning_aloud(chat, llm, ctx, marked=marked)
    sampling = Sampling(temperature=params.temperature)
    voters = contenders(await sample_many(llm, asked, sampling, ctx, n=params.samples))
    tally = await agreement(voters, chat, ctx)
    votes = 0 if voters[0].truncated else max(tally.votes.values(), default=0)
    first: Answer = voters[tally.winner]
    if marked:
        first = without_mark(first)
    choice = params.chosen(votes, entry)
    if not strict:
        ctx.offer(first)
    reason = "max_error" if choice == "abstain" else "agreement"
    answer: Answer | None = first if choice == "answer" else None
    if choice == "escalate" and (answer := await _escalated(chat, rest, ctx, strict)) is None:
        choice, reason = ("abstain" if strict else "answer"), "escalation_failed"
        answer = None if strict else first
    expected = params.expected(choice, votes, entry)
    _note(ctx, params, choice, reason, signals, entry, votes=votes, expected=expected)
    return answer or _abstention()


def _signals(chat: Chat) -> Signals:
    size = sum(len(each.text.encode(errors="replace")) for each in chat)
    return Signals(asked_for(question(chat)).name.lower(), size)


async def _escalated(chat: Chat, rest: Rest, ctx: Context, strict: bool) -> Answer | None:
    """Return the answer of the escalation, None if it failed.

    If `strict`, it has also failed if it lost a step or ran out of time: what is left of it is not
    what was calibrated.
    """
    ctx.progress("the samples disagree: escalating")
    until, lost = ctx.within(_SHARE), ctx.trace.lost
    try:
        with ctx.trace.step("escalations"):
            answer = await rest.aside(chat, until=until)
    except SampleError:
        return None
    cut_short = ctx.trace.lost != lost or asyncio.get_running_loop().time() >= until
    return None if strict and cut_short else answer


def _abstention() -> Answer:
    return Answer(ABSTAINS, "stop")


def _note(
    ctx: Context,
    params: AutoParams,
    chosen: str,
    reason: str,
    signals: Signals,
    entry: Entry | None = None,
    **facts: object,
) -> None:
    """Say in the report what was chosen and why, and by which calibration."""
    levels = params.levels if entry is None else entry.levels
    ctx.trace.note(
        "auto",
        chosen=chosen,
        reason=reason,
        samples=params.samples,
        calibrated_on=sum(level.of for level in levels),
        **signals._asdict(),
        entry="all" if entry is None else entry.label,
        **facts,
    )
