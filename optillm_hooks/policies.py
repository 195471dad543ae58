"""Policies of `auto`: what the agreement of its samples was worth on the operator's own problems.

Source: Angelopoulos et al. 2021, "Learn then Test: Calibrating Predictive Algorithms to Achieve
Risk Control", arXiv:2110.01052 (each rule is tested on the calibration results, and the tests are
corrected for their number); Geifman and El-Yaniv 2017, "Selective Classification for Deep Neural
Networks", arXiv:1705.08500 (exact binomial bounds).
"""

import math
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from optillm_hooks.config_files import CannotRun, read_yaml
from optillm_hooks.wrong_values import wrong_value

RISK: Final = 0.05
"""The probability, at most, that a calibration promises an error rate which does not hold."""

MOST_SAMPLES: Final = 8
MOST_ENTRIES: Final = 16


class Level(BaseModel):
    """Calibration problems for which as many samples agreed."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    votes: int = Field(ge=0, le=MOST_SAMPLES, description="Samples that agreed.")
    of: int = Field(ge=1, le=10_000_000, description="Problems.")
    right: int = Field(ge=0, description="Problems that the agreed answer solves.")
    escalated_right: int = Field(ge=0, description="Problems that the escalation solves.")

    @model_validator(mode="after")
    def _right_of_them(self) -> Self:
        if max(self.right, self.escalated_right) > self.of:
            raise ValueError(f"right and escalated_right must be at most of ({self.of})")
        return self


def check_levels(levels: tuple[Level, ...], samples: int) -> tuple[Level, ...]:
    """Return the levels of a calibration with `samples` samples.

    Raises:
        ValueError: two are of the same number of votes, or one has more votes than samples.
    """
    votes = [level.votes for level in levels]
    if len(set(votes)) < len(votes):
        raise ValueError("each number of votes may have one level only")
    if max(votes, default=0) > samples:
        raise ValueError(f"votes of a level must be at most samples ({samples})")
    return levels


Kind = Literal["yes_or_no", "name", "number", "time", "choice", "anything"]
KINDS: Final = frozenset(get_args(Kind))
"""What a request may ask for whose answers can be compared; "anything": it is not known."""


class Signals(NamedTuple):
    """What is known of a request before any call."""

    kind: str
    """What its last message asks for, as the reader of answers sees it: "number", "choice", ..."""

    size: int
    """Bytes of its text (UTF-8): a token has about four, in any language."""


class Entry(BaseModel):
    """What holds for the requests of one class, in place of what the policy has learned of all."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    kind: Kind | None = Field(
        default=None, description="What a request of the class asks for; unset: anything."
    )
    larger_than: int | None = Field(
        default=None, ge=0, description="Bytes that its text has more than; unset: any size."
    )
    agree: int = Field(ge=0, le=MOST_SAMPLES, description="Samples whose agreement is enough.")
    levels: tuple[Level, ...] = Field(
        max_length=MOST_SAMPLES + 1, description="What agreement was worth in the class."
    )

    @property
    def label(self) -> str:
        """The class, for reports; "others" if it covers any request."""
        size = "" if self.larger_than is None else f"over {self.larger_than} bytes"
        return " ".join(filter(None, (self.kind, size))) or "others"

    def covers(self, signals: Signals) -> bool:
        """Return whether a request is of the class."""
        is_kind = self.kind is None or self.kind == signals.kind
        return is_kind and (self.larger_than is None or signals.size > self.larger_than)


def check_entries(entries: tuple[Entry, ...], samples: int) -> None:
    """Raise `ValueError` if an entry is not of a calibration with `samples` samples."""
    for entry in entries:
        check_levels(entry.levels, samples)
        if entry.agree > samples:
            raise ValueError(f"agree of an entry must be at most samples ({samples})")


class Policy(BaseModel):
    """A policy file: parameters of `auto`, and what they were learned from."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True, allow_inf_nan=False)

    samples: int = Field(ge=2, le=MOST_SAMPLES, description="Cheap samples.")
    agree: int = Field(ge=0, description="Samples whose agreement is enough.")
    escalate: str = Field(min_length=1, max_length=1000, description="The approach otherwise.")
    strong: str | None = Field(default=None, description="The model group that it runs on.")
    levels: tuple[Level, ...] = Field(min_length=1, description="What agreement was worth.")
    entries: tuple[Entry, ...] = Field(
        default=(),
        max_length=MOST_ENTRIES,
        description="Classes of requests with values of their own; the first that fits holds.",
    )
    usd_per_point: float | None = Field(
        default=None, description="What a point of accuracy costs by this policy, for a request."
    )

    @model_validator(mode="after")
    def _of_the_samples(self) -> Self:
        if self.agree > self.samples:
            raise ValueError(f"agree must be at most samples ({self.samples})")
        check_levels(self.levels, self.samples)
        check_entries(self.entries, self.samples)
        return self

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters of `auto`."""
        return self.model_dump(exclude={"usd_per_point"}, exclude_none=True)


@cache
def read_policy(path: str) -> Policy:
    """Return the policy in a YAML file, as it was when this process first read it.

    Raises:
        ValueError: it cannot be read, or is no policy; the message says why.
    """
    try:
        return Policy.model_validate(read_yaml(Path(path)))
    except CannotRun as exc:
        raise ValueError(str(exc)) from None
    except ValidationError as exc:
        error = exc.errors()[0]
        place = ".".join(map(str, error["loc"])) or "policy"
        raise ValueError(f"{path}: {place}: {wrong_value(error)}") from None


def holds(errors: int, of: int, max_error: float, tests: int) -> bool:
    """Return whether `errors` in `of` problems prove an error rate of at most `max_error`.

    It is the exact binomial test (the bound of Clopper and Pearson), with `RISK` shared by `tests`
    (Bonferroni): among so many tests, any that wrongly passes has at most the probability `RISK`.
    """
    return at_most(errors, of, max_error) <= RISK / tests


def at_most(errors: int, of: int, rate: float) -> float:
    """Return the probability of at most `errors` errors in `of` problems, each with `rate`.

    The smaller tail is summed, from its largest term on: a client may send a calibration with
    millions of problems, and all terms would take half a minute.
    """
    if errors > of * rate:
        return 1 - _sum_of_falling(range(errors + 1, of + 1), of, rate)
    return _sum_of_falling(range(errors, -1, -1), of, rate)


def _sum_of_falling(errors: Iterable[int], of: int, rate: float) -> float:
    """Return the sum of the probabilities of `errors`, which fall, until they add nothing."""
    total = 0.0
    for k in errors:
        term = math.exp(
            math.lgamma(of + 1)
            - math.lgamma(k + 1)
            - math.lgamma(of - k + 1)
            + k * math.log(rate)
            + (of - k) * math.log1p(-rate)
        )
        if total + term == total:
            break
        total += term
    return total
