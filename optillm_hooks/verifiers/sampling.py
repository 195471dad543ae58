"""Sampling until an answer is verified."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from optillm_hooks.answers.voting import contenders, leaders
from optillm_hooks.context import Context
from optillm_hooks.fanout import Decision, Waves, finished, sample_many
from optillm_hooks.judging.voting import count_votes, elected, vote
from optillm_hooks.llm import LLM
from optillm_hooks.registry import SamplerParams
from optillm_hooks.types import Chat, Completion, Sampling
from optillm_hooks.verifiers.panel import Panel
from optillm_hooks.verifiers.protocol import UNKNOWN, Verdict
from optillm_hooks.waves import PATIENCE, first_wave, sureness

SAMPLING_SHARE: Final = 0.9
"""Share of the remaining time after which missing samples are no longer awaited."""

_RANKS: Final = {"pass": 2, "unknown": 1, "fail": 0}


async def sample_until_verified(
    writers: Sequence[LLM],
    panel: Panel,
    sampling: Sampling,
    params: SamplerParams,
    *,
    n: int,
    known: Sequence[tuple[Completion, Verdict]] = (),
) -> Completion:
    """Return the first of up to `n` samples that is proven, or else the best one.

    Those that pass are better than those of which nothing is known, and these than those that fail;
    of equals, the highest score decides, then the vote, then the earlier call. If most samples call
    tools, which are not verified, the first of the most frequent calls is returned. Without proofs,
    sampling stops after the first wave if its answers pass and agree.

    Args:
        writers: the models, which are sampled in turn.
        panel: what verifies the samples, and the request they answer.
        sampling: as in `sample_many`.
        params: when the samples agree.
        n: the maximum number of samples.
        known: further samples, which were taken before and are not proven, with their verdicts.

    Raises:
        SamplesFailed: no sample finished, and none is known.
    """
    asked = panel.asked
    trial = _Trial(asked.chat, asked.llm, asked.ctx, params, n + len(known), panel, [*known])
    left = trial.first - len(known)
    first = left if left > 0 else n
    samples = await sample_many(
        writers,
        asked.chat,
        sampling,
        asked.ctx,
        n=n,
        min_finished=0 if known else 1,
        until=asked.ctx.within(SAMPLING_SHARE),
        waves=Waves(first=first, decide=trial.decide, patience=asked.ctx.within(PATIENCE)),
    )
    return await trial.best([*(each for each, _ in known), *samples])


def proving_wave(n: int) -> int:
    """Return how many of `n` samples are best taken first if one that is right ends the sampling.

    It is the minimum of the expected calls, f + (n - f) / (f + 1), where every share of right
    samples is as likely as any other.
    """
    return min(range(1, n + 1), key=lambda first: first + (n - first) / (first + 1))


@dataclass(slots=True)
class _Trial:
    """The samples so far, with their verdicts."""

    chat: Chat
    llm: LLM
    ctx: Context
    params: SamplerParams
    n: int
    panel: Panel
    judged: list[tuple[Completion, Verdict]] = field(
        default_factory=list[tuple[Completion, Verdict]]
    )

    @property
    def first(self) -> int:
        """The number of samples in the first wave."""
        if self.params.first_m is not None:
            return self.n
        if self.panel.proves:
            return proving_wave(self.n)
        return first_wave(self.n, self.params.confidence)

    async def decide(self, arrived: Sequence[Completion]) -> Decision:
        """Return what further samples are, now that `arrived` have come."""
        verdicts = await finished([partial(self.panel.verdict, each) for each in arrived])
        self.judged += zip(arrived, verdicts, strict=True)
        best, verdict = max(self.judged, key=lambda pair: _rank(pair[1]))
        if verdict != UNKNOWN:
            self.ctx.offer(best)
        if verdict.proven:
            return "stop"
        if (m := self.params.first_m) is not None:
            return "stop" if len(self.judged) >= m else "wait"
        in_first = len(self.judged) == self.first < self.n
        return "stop" if in_first and await self._is_settled() else "wait"

    async def _is_settled(self) -> bool:
        """Return whether the answers that do not fail agree, and no proof is to be expected."""
        verdicts = [verdict for _, verdict in self.judged]
        if self.panel.proves and any(each != UNKNOWN for each in verdicts):
            return False
        left = contenders([each for each, verdict in self.judged if verdict.outcome != "fail"])
        if not left:
            return False
        votes = (await count_votes(left, self.chat, self.ctx)).votes
        lead = max(votes.values(), default=0)
        return sureness(lead, len(self.judged) - lead) >= self.params.confidence

    async def best(self, samples: Sequence[Completion]) -> Completion:
        """Return the best of `samples`; one whose verdict has not come counts as unknown."""
        verdicts = {id(each): verdict for each, verdict in self.judged}
        proven = [each for each, verdict in self.judged if verdict.proven]
        rivals = proven[:1] or contenders(samples)
        found = [verdicts.get(id(each), UNKNOWN) for each in rivals]
        top = max(_RANKS[verdict.outcome] for verdict in found)
        pool = [at for at, verdict in enumerate(found) if _RANKS[verdict.outcome] == top]
        lead = leaders([found[at].score for at in pool])
        self._report()
        chosen = [rivals[pool[at]] for at in lead]
        if all(verdict == UNKNOWN for verdict in found):
            return await vote(chosen, self.chat, self.llm, self.ctx)
        return await elected(chosen, self.chat, self.ctx)

    def _report(self) -> None:
        verdicts = [verdict for _, verdict in self.judged]
        passed = sum(verdict.passed for verdict in verdicts)
        self.ctx.trace.note(
            "verified",
            verifiers=sorted(self.panel.checks),
            answers=len(verdicts),
            passed=passed,
            proven=any(verdict.proven for verdict in verdicts),
        )
        if any(verdict.outcome != "unknown" for verdict in verdicts):
            self.ctx.trace.count("verified_answers", lost=int(not passed), of=1)


def _rank(verdict: Verdict) -> tuple[bool, int, float]:
    return verdict.proven, _RANKS[verdict.outcome], verdict.score or 0.0
