"""Decoys: wrong solutions, written to be believed, which show what a judge's ratings are worth.

Source: Kirchner et al. 2024, "Prover-Verifier Games improve legibility of LLM outputs",
arXiv:2407.13692 (the sneaky prover). The test is the one of Mann and Whitney 1947, "On a Test of
Whether one of Two Random Variables is Stochastically Larger than the Other", summed over requests
as by van Elteren 1960.

A judge is measured by pairs of a candidate and a decoy of the same request: how many more of the
candidates it rates higher than lower. A judge that rates at random has as many of each on average,
whatever scale it uses. Candidates may be wrong too, so a good judge shows little on a hard request;
therefore the counts of earlier requests of the same caller are added.
"""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from math import comb, sqrt
from typing import Final, Literal

from optillm_hooks.context import Context
from optillm_hooks.fanout import sample_many, speculating
from optillm_hooks.llm import LLM
from optillm_hooks.prompts import ask
from optillm_hooks.trace import Trace
from optillm_hooks.types import Chat, Completion, Json, Sampling

SNEAKY: Final = """\
This is a test of a checker of solutions. Write a solution that looks correct, complete and clear, \
and that comes to a wrong result by one error that is hard to see. Neither mention nor mark the \
error."""

MIDDLE: Final = 5.0
"""The middle of the scale of ratings. A decoy that is rated as high is missed."""

_SIGNIFICANT: Final = 1.2816
"""Standard deviations that a judge without any skill exceeds in one request of ten."""

_CATCHES: Final = 0.85
"""Share of wrong solutions that a judge must catch for its highest rating to be the better choice.

By simulation: with fewer, the sums of ratings over equal answers choose right more often.
"""

_DOUBT: Final = 0.05
"""Probability, in one request, of taking a judge that catches just that share for a better one."""

_MOST: Final = 1000
"""Decoys after which the counts are halved, so that they follow a judge that changes."""

UNTRUSTED: Final = "judge:untrusted"
"""What is reported where a judge is put aside."""

Trust = Literal["unmeasured", "chance", "unclear", "better", "reliable"]
"""What decoys have shown of a judge.

* unmeasured: nothing.
* chance: it is no better than chance, as far as can be seen.
* unclear: it seems better than chance, but chance can have made it seem so.
* better: it is better than chance.
* reliable: moreover, it catches nearly all decoys.
"""


@dataclass(frozen=True, slots=True)
class Decoys:
    """Decoys that are being written."""

    planned: int
    written: Callable[[], Awaitable[Sequence[Completion]]]
    """Waits for them, and returns those that can be rated."""


@dataclass(frozen=True, slots=True)
class Record:
    """Comparisons of the ratings of candidates and decoys, summed over requests."""

    lead: float = 0.0
    """Pairs in which the candidate is rated higher than the decoy, less those in which lower."""

    variance: float = 0.0
    """The variance of `lead` for a judge that rates at random."""

    decoys: int = 0
    missed: int = 0
    """The decoys that are rated in the upper half of the scale."""

    def __add__(self, other: "Record") -> "Record":
        return Record(
            self.lead + other.lead,
            self.variance + other.variance,
            self.decoys + other.decoys,
            self.missed + other.missed,
        )

    @property
    def halved(self) -> "Record":
        """The record in which everything so far counts half."""
        return Record(self.lead / 2, self.variance / 4, self.decoys // 2, self.missed // 2)

    @property
    def trust(self) -> Trust:
        if not self.variance:
            return "unmeasured"
        if self.lead <= 0:
            return "chance"
        if self.lead - 1 < _SIGNIFICANT * sqrt(self.variance):  # 1: a correction for continuity
            return "unclear"
        return "reliable" if self._catches_nearly_all else "better"

    @property
    def _catches_nearly_all(self) -> bool:
        as_few = sum(
            comb(self.decoys, k) * (1 - _CATCHES) ** k * _CATCHES ** (self.decoys - k)
            for k in range(self.missed + 1)
        )
        return as_few <= _DOUBT


def compare(candidates: Sequence[float | None], decoys: Sequence[float | None]) -> Record:
    """Return the record of one request, whose ratings are given; None counts as no rating."""
    ours = [rating for rating in candidates if rating is not None]
    theirs = [rating for rating in decoys if rating is not None]
    if not ours or not theirs:
        return Record()
    lead = sum((a > b) - (a < b) for a in ours for b in theirs)
    count = len(ours) + len(theirs)
    ties = sum(n**3 - n for n in Counter([*ours, *theirs]).values()) / (count**3 - count)
    variance = len(ours) * len(theirs) * (count + 1) / 3 * (1 - ties)
    missed = sum(rating >= MIDDLE for rating in theirs)
    return Record(lead, max(0.0, variance), len(theirs), missed)


@asynccontextmanager
async def decoys_beside(
    chat: Chat,
    llm: LLM,
    ctx: Context,
    n: int,
    *,
    sampling: Sampling | None = None,
    form: str = "",
    until: float | None = None,
) -> AsyncIterator[Decoys]:
    """Write `n` decoys concurrently with the block, which gets them.

    Those that are not needed when the block ends are cancelled. Nothing of a decoy can become an
    answer, not even as the best so far.

    Args:
        chat: the conversation that the candidates answer.
        llm: the model that writes the decoys.
        ctx: its trace counts the decoys that are awaited.
        n: how many to write.
        sampling: as of the candidates: temperature, number of the first, and purpose; drafts do not
            have the form of an answer. None is that of an answer at the client's temperature.
        form: what else is asked of them, as of the candidates.
        until: from this instant on, those that are missing are given up.
    """
    if not n:
        yield NO_DECOYS
        return
    own = replace(ctx, trace=Trace())  # decoys that are cancelled are not lost
    sampling = sampling or Sampling()
    fields = ctx.no_tool_calls if sampling.purpose == "draft" else _as_of_answers(ctx)
    sampling = replace(sampling, purpose="draft", fields=fields)
    prompt = ask(chat, f"{SNEAKY}{form}")
    async with speculating(
        lambda: sample_many(
            llm, prompt, sampling, own, n=n, min_finished=0, until=until, kind="decoys"
        )
    ) as written:

        async def usable() -> Sequence[Completion]:
            found = [d for d in await written() if not (d.truncated or d.tool_calls)]
            ctx.trace.count("decoys", lost=n - len(found), of=n)
            return found

        yield Decoys(n, usable)


async def _none() -> Sequence[Completion]:
    return ()


NO_DECOYS: Final = Decoys(0, _none)
"""The judge is not measured."""


def _as_of_answers(ctx: Context) -> dict[str, Json]:
    """Return the fields that give a decoy the form of an answer, and no tool calls."""
    form = ctx.client.fields.get("response_format")
    return {**ctx.no_tool_calls, **({} if form is None else {"response_format": form})}


def ratings_to_measure(samples: int, decoys: int) -> int:
    """Return the ratings that only measure the judge of so many samples: none without decoys."""
    return samples + decoys if decoys else 0


def trust_in(judge: str, writer: str, record: Record, ctx: Context) -> Trust:
    """Return what is known of a judge, with the `record` of this request and those of earlier ones.

    The record is kept for later requests of the same caller: counts, without any text.

    Args:
        judge: the name of the model that judges.
        writer: the name of the model that writes candidates and decoys.
        record: of this request.
        ctx: has the caller's cache and the trace.
    """
    if not record.decoys:
        return "unmeasured"
    total = keep(judge, writer, record, ctx)
    ctx.trace.note("judge", trust=total.trust, decoys=total.decoys, missed=total.missed)
    return total.trust


def keep(judge: str, writer: str, record: Record, ctx: Context) -> Record:
    """Add `record` to those of earlier requests of the same caller, and return the sum."""
    key = f"decoys {judge} {writer}"
    kept = ctx.caller_cache.get(key)
    total = record if kept is None else _read(kept) + record
    total = total.halved if total.decoys > _MOST else total
    numbers = (total.lead, total.variance, total.decoys, total.missed)
    ctx.caller_cache.put(key, tuple(repr(number) for number in numbers))
    return total


def _read(kept: Sequence[str]) -> Record:
    lead, variance, decoys, missed = kept
    return Record(float(lead), float(variance), int(decoys), int(missed))
