"""The verifiers of a request: those that apply to it, and what they say together."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from statistics import fmean
from typing import Final

from optillm_hooks.answers.extraction import without_reasoning
from optillm_hooks.errors import Refused, SampleError
from optillm_hooks.fanout import outcomes, speculating
from optillm_hooks.packages import allowed_entries
from optillm_hooks.services import Services
from optillm_hooks.types import Answer
from optillm_hooks.verifiers.calculator import Calculator
from optillm_hooks.verifiers.constraints import Constraints
from optillm_hooks.verifiers.equation import Equation
from optillm_hooks.verifiers.http_check import HttpCheck
from optillm_hooks.verifiers.protocol import UNKNOWN, Asked, Check, Verdict, Verifier
from optillm_hooks.verifiers.regex import Regex
from optillm_hooks.verifiers.request_tests import RequestTests
from optillm_hooks.verifiers.schema import Schema

ENTRY_POINT_GROUP: Final = "optillm_hooks.verifiers"
"""Other packages name a verifier under it."""

AUTO: Final = "auto"

_GIVEN_UP: Final = 2
"""Failures in a row after which a check is not run again: each may have taken all of its time."""


@cache
def all_verifiers() -> Mapping[str, Verifier]:
    """Return the built-in verifiers and those of the packages that the operator allows, by name."""
    built_in: dict[str, Verifier] = {
        "tests": RequestTests(),
        "sympy": Equation(),
        "z3": Constraints(),
        "schema": Schema(),
        "regex": Regex(),
        "calculator": Calculator(),
        "http": HttpCheck(),
    }
    others = {entry.name: entry.load() for entry in allowed_entries(ENTRY_POINT_GROUP)}
    return {**others, **built_in}


def check_names(names: Sequence[str]) -> None:
    """Raise `ValueError` if one of `names` is no verifier."""
    known = all_verifiers()
    if unknown := [name for name in names if name != AUTO and name not in known]:
        raise ValueError(f"unknown verifier {unknown[0]!r}; known: {', '.join([AUTO, *known])}")


def missing(names: Sequence[str], services: Services) -> str:
    """Return what the verifiers that `names` name need and do not have; "" if nothing."""
    wanting = [
        f"verifier {name!r}: {problem}"
        for name in names
        if name != AUTO and (problem := all_verifiers()[name].missing(services))
    ]
    return "; ".join(wanting)


@dataclass(frozen=True, slots=True)
class Panel:
    """The checks of the answers to one request."""

    asked: Asked
    checks: Mapping[str, Check]
    ready: Mapping[str, Callable[[], Awaitable[None]]]
    failures: dict[str, list[SampleError]] = field(default_factory=dict[str, list[SampleError]])
    """The failures of each check since it last said anything."""

    @property
    def proves(self) -> bool:
        """Whether one of the checks can prove an answer."""
        return any(check.proves for check in self.checks.values())

    async def verdict(self, answer: Answer) -> Verdict:
        """Return what the checks say together: an answer passes if one passes it and none fails it.

        It is proven if one has proven it besides. Its score is the mean of the scores. A check that
        cannot be run is counted, and says nothing, and so does one of a truncated answer. One that
        fails again and again is not run any more.
        """
        text = without_reasoning(answer.text) or answer.text
        if answer.tool_calls or answer.truncated or not text.strip():
            return UNKNOWN
        ended = await outcomes([partial(self._verify, name, text) for name in self.checks])
        lost = sum(isinstance(each, SampleError) for each in ended)
        self.asked.ctx.trace.count("verifications", lost=lost, of=len(ended))
        return together([each for each in ended if not isinstance(each, SampleError)])

    async def _verify(self, name: str, text: str) -> Verdict:
        try:
            await self.ready[name]()
        except SampleError:
            return UNKNOWN  # counted where it was prepared
        failures = self.failures.setdefault(name, [])
        if len(failures) >= _GIVEN_UP:
            raise failures[-1]
        try:
            verdict = await self.checks[name].verify(text)
        except SampleError as exc:
            failures.append(exc)
            raise
        failures.clear()
        return verdict


def together(verdicts: Sequence[Verdict]) -> Verdict:
    """Return the verdict of several checks together; see `Panel.verdict`."""
    scores = [each.score for each in verdicts if each.score is not None]
    score = fmean(scores) if scores else None
    if any(each.outcome == "fail" for each in verdicts):
        return Verdict("fail", score)
    if not any(each.passed for each in verdicts):
        return Verdict("unknown", score)
    return Verdict("pass", score, proven=any(each.proven for each in verdicts))


@asynccontextmanager
async def panel_for(names: Sequence[str], asked: Asked) -> AsyncIterator[Panel]:
    """Yield the verifiers among `names` that apply to a request; they prepare within the block.

    A verifier that was named and does not apply is counted, as is one that fails to begin.

    Raises:
        Refused: a parameter of a verifier is not valid.
    """
    known = all_verifiers()
    automatic = [name for name, each in known.items() if each.automatic] if AUTO in names else []
    wanted = list(dict.fromkeys([*(name for name in names if name != AUTO), *automatic]))
    begun = await outcomes([partial(known[name].check_for, asked) for name in wanted])
    for each in begun:
        if isinstance(each, Refused):
            raise each
    checks = {
        name: each
        for name, each in zip(wanted, begun, strict=True)
        if each is not None and not isinstance(each, SampleError)
    }
    failed = {n for n, each in zip(wanted, begun, strict=True) if isinstance(each, SampleError)}
    lost = failed | (set(names) - {AUTO} - set(checks))
    asked.ctx.trace.count("verifiers", lost=len(lost), of=len(checks) + len(lost))
    async with AsyncExitStack() as stack:
        ready = {
            name: await stack.enter_async_context(speculating(check.prepare))
            for name, check in checks.items()
        }
        yield Panel(asked, checks, ready)
