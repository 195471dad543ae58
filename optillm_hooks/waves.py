"""Sampling that stops as soon as its result is settled.

Source: Aggarwal et al. 2023, "Let's Sample Step by Step: Adaptive-Consistency for Efficient
Reasoning and Coding with LLMs", arXiv:2305.11860, section 3 (the criterion of the Beta
distribution); Li et al. 2024, "Escape Sky-high Cost: Early-stopping Self-Consistency for
Multi-step Reasoning", arXiv:2401.10480 (windows of samples that agree). Deviation: there are at
most two waves, so that the latency at most doubles: the first is the smallest one that can settle
the result if all of its samples agree.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import comb
from typing import Final

from optillm_hooks.answers.extraction import AnswerFormat
from optillm_hooks.answers.voting import contenders, wants_json
from optillm_hooks.context import Context
from optillm_hooks.fanout import Decision, Waves, sample_many
from optillm_hooks.judging.voting import agreement, count_votes
from optillm_hooks.llm import LLM, Price
from optillm_hooks.registry import SamplerParams
from optillm_hooks.types import Chat, Completion, Sampling

USUAL_REPLY: Final = 500
"""Tokens of a reply of which nothing is known."""

AGREE: Final = 0.5
"""The share of requests whose first wave is expected to settle the result."""

PATIENCE: Final = 0.3
"""Share of the remaining time after which the second wave no longer waits for the first."""


def panel_of(names: Sequence[str], llm: LLM, ctx: Context) -> list[LLM]:
    """Return the models that a parameter names, or `llm` alone if it names none."""
    return [ctx.llm(name) for name in names] or [llm]


async def sample_until_settled(
    panel: Sequence[LLM],
    asked: Chat,
    sampling: Sampling,
    ctx: Context,
    params: SamplerParams,
    *,
    n: int,
    chat: Chat | None = None,
    how: AnswerFormat = "auto",
    judged: bool = False,
    escalates: bool = False,
    until: float | None = None,
    kind: str = "samples",
) -> list[Completion]:
    """Return up to `n` samples of `asked`: fewer as soon as their vote is settled.

    After the first wave it is settled if the leading answer is the most frequent one with the
    probability `params.confidence`. While a wave runs, it is settled if the samples that are
    missing cannot change the winner; their calls are cancelled. If a judge is to choose (`judged`),
    it is only settled if all samples of the first wave have the same answer. If the samples are of
    use only if it is settled (`escalates`), sampling ends as soon as that cannot be any more.

    There is a single wave if `first_m` is given, or if a model answers several times in one call
    and the prompt of a second call would cost more than it is expected to save.

    Args:
        panel: the models, which are sampled in turn.
        asked: the prompt.
        sampling: as in `sample_many`.
        ctx: its trace counts the samples, and those that were not needed as saved.
        params: when to stop.
        n: the maximum number of samples.
        chat: the conversation whose answers are read from the samples; None is `asked`.
        how: where the answers are read.
        judged: whether a judge will choose among the samples.
        escalates: whether the samples are of use only if `is_settled`.
        until: as in `sample_many`.
        kind: as in `sample_many`.

    Raises:
        SamplesFailed: no sample finished.
    """
    first = first_wave(n, params.confidence)
    if params.first_m is not None or not _pays(panel, asked, sampling, ctx, first, n):
        first = n
    race = _Race(chat or asked, ctx, how, n, first, params, judged, escalates)
    return await sample_many(
        panel,
        asked,
        sampling,
        ctx,
        n=n,
        until=until,
        kind=kind,
        waves=Waves(first=first, decide=race.decide, patience=ctx.within(PATIENCE)),
    )


def first_wave(n: int, confidence: float) -> int:
    """Return the fewest samples that settle a vote of `n` if all of them agree."""
    return next((size for size in range(1, n) if sureness(size, 0) >= confidence), n)


def depth_of(params: SamplerParams, n: int) -> int:
    """Return the maximum number of waves of `n` samples."""
    return 1 if params.first_m is not None or first_wave(n, params.confidence) == n else 2


def sureness(lead: int, second: int) -> float:
    """Return the probability that an answer with `lead` votes is more frequent than the second.

    It is that of a Beta(lead + 1, second + 1) above one half (Aggarwal et al. 2023, equation 2).
    Of a single vote, with which nothing agrees yet, nothing is known: 0.
    """
    if lead < 2:
        return 0.0
    votes = lead + second + 1
    return sum(comb(votes, k) for k in range(lead + 1)) / (1 << votes)


def is_settled(lead: int, others: int, n: int, confidence: float) -> bool:
    """Return whether an answer with `lead` votes against `others` is settled.

    All of the maximum number of samples, `n`, settle it whatever the confidence.
    """
    return sureness(lead, others) >= confidence or lead >= n


def _pays(
    panel: Sequence[LLM], asked: Chat, sampling: Sampling, ctx: Context, first: int, n: int
) -> bool:
    """Return whether two waves are expected to cost less than one.

    They do if each sample is a call of its own. Where a model answers several times in one call,
    the second wave bills the prompt once more.
    """
    several = [llm for llm in panel if llm.facts.max_n > 1]
    if not several:
        return True
    facts = several[0].facts
    price = facts.price_of(sampling) or Price(1.0, 1.0)
    reply = min(ctx.reply_limit(sampling) or USUAL_REPLY, USUAL_REPLY)
    saved = AGREE * (n - first) * reply * price.completion
    return saved > (1 - AGREE) * facts.count_tokens(asked, sampling) * price.prompt


@dataclass(slots=True)
class _Race:
    """The votes for the answers so far."""

    chat: Chat
    ctx: Context
    how: AnswerFormat
    n: int
    first: int
    params: SamplerParams
    judged: bool
    escalates: bool
    samples: list[Completion] = field(default_factory=list[Completion])
    not_before: int = 0
    """The number of samples before which the vote cannot be decided: texts are read in vain."""

    async def decide(self, arrived: Sequence[Completion]) -> Decision:
        """Return what further samples are, now that `arrived` have come."""
        self.samples += arrived
        samples = list(self.samples)
        if (m := self.params.first_m) is not None:
            return "stop" if len(samples) >= m else "wait"
        if len(samples) >= self.n:
            return "stop"  # none is missing, whatever they say
        in_first = len(samples) <= self.first < self.n
        may_be_decided = not self.judged and len(samples) >= max(self.not_before, self.n // 2 + 1)
        if not (in_first or may_be_decided or self.escalates):
            return "wait"
        voters = contenders(samples)
        count = agreement if self.judged else count_votes
        tally = await count(voters, self.chat, self.ctx, self.how)
        votes = [*sorted(tally.votes.values(), reverse=True), 0, 0]
        if self.escalates:
            if self._is_hopeless(samples, voters, votes[0]):
                return "stop"
        elif may_be_decided and self._is_decided(samples, voters, votes):
            return "stop"
        return self._in_first(samples, votes[0]) if in_first else "wait"

    def _in_first(self, samples: Sequence[Completion], lead: int) -> Decision:
        """Return what the samples of the second wave are, after those of the first.

        Equal texts agree even without a readable answer. Truncated samples settle nothing.
        """
        count, missing = len(samples), self.first - len(samples)
        if any(sample.truncated for sample in samples):
            return "more"
        if not lead and _is_one_text(samples):
            lead = count
        if sureness(lead + missing, count - lead) < self.params.confidence:
            return "more"
        return "wait" if missing else "stop"

    def _is_hopeless(
        self, samples: Sequence[Completion], voters: Sequence[Completion], lead: int
    ) -> bool:
        """Return whether the samples that are missing cannot settle the vote any more.

        Texts without a readable answer may still say the same, if all samples are such texts.
        """
        count, missing = len(samples), self.n - len(samples)
        if voters[0].truncated:
            lead = 0
        elif not (lead or voters[0].tool_calls or wants_json(self.ctx.client)):
            return len(voters) < count
        return not is_settled(lead + missing, count - lead, self.n, self.params.confidence)

    def _is_decided(
        self, samples: Sequence[Completion], voters: Sequence[Completion], votes: Sequence[int]
    ) -> bool:
        """Return whether the samples that are missing cannot change the winner.

        They can while they could make another kind of reply, or texts without a readable answer,
        the majority. Tool calls and JSON vote on their parts too, unless one has more than half.
        """
        missing, (lead, second, *_) = self.n - len(samples), votes
        self.not_before = len(samples) + max(1, (missing + second - lead) // 2 + 1)
        if voters[0].truncated:
            return False
        if 2 * lead > self.n:
            return True
        if voters[0].tool_calls or wants_json(self.ctx.client) or self.how == "json":
            return False
        others = sum(bool(sample.tool_calls) for sample in samples)
        return (
            lead > second + missing
            and len(voters) > others + missing
            and 2 * sum(votes) >= len(voters) + missing
        )


def _is_one_text(samples: Sequence[Completion]) -> bool:
    same = len({sample.text.strip() for sample in samples}) == 1
    return same and not any(sample.tool_calls for sample in samples)
