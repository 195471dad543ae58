"""Fits a policy for `auto` to the outcomes of an evaluation, and shows how it has kept its word.

The calibration needs a model that always answers with its cheap samples, such as
`auto(agree=0)-gpt-4o-mini`, and one or more that it could escalate to.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean, median_low
from typing import Final, Literal

import yaml

import optillm_hooks.approaches  # noqa: F401 (prefixes of model names are known by them)
from optillm_hooks.config_files import CannotRun
from optillm_hooks.evaluation.asking import Outcome
from optillm_hooks.evaluation.statistics import wilson
from optillm_hooks.gateway.model_names import from_prefix
from optillm_hooks.policies import KINDS, Entry, Level, Policy, Signals

KEPT: Final = 0.98
"""The share of the best method's accuracy that the cheapest policy must keep."""

LEAST: Final = 100
"""Problems that a class of requests needs for an entry of its own."""

_FOLDS: Final = 5
"""Parts of the problems: what is learned from all but one is tried on that one."""


_GAIN: Final = 1.05
"""How much more accuracy for their price classes must show: less may be chance."""


_Unit = Literal["USD", "calls"]
"""Of all prices that are compared."""


@dataclass(frozen=True, slots=True)
class Fitted:
    policy: Policy
    said: tuple[str, ...] = ()
    """What the user should know: models that were of no use, the unit in which prices were
    compared, and what the classes are worth."""


@dataclass(frozen=True, slots=True)
class _Case:
    """A calibration problem: what came of the samples and of the escalation, and their prices."""

    votes: int
    right: bool
    escalated_right: bool
    price: float
    escalated_price: float
    signals: Signals


@dataclass(frozen=True, slots=True)
class _Found:
    """The accuracy and the price of a policy on some problems, on average."""

    accuracy: float
    price: float


@dataclass(frozen=True, slots=True)
class _Aim:
    """What makes a policy better than another one."""

    usd_per_point: float | None

    def best(self, found: Sequence[_Found], best_accuracy: float) -> int:
        """Return the index of the best one, where a single method reaches `best_accuracy`."""
        worth = self.usd_per_point
        if worth is not None:
            return max(range(len(found)), key=lambda at: _value(found[at], worth))
        least = min(KEPT * best_accuracy, max(each.accuracy for each in found))
        kept = (at for at, each in enumerate(found) if each.accuracy >= least)
        return min(kept, key=lambda at: found[at].price)

    def prefers(self, new: _Found, old: _Found, best_accuracy: float) -> bool:
        """Return whether `new` is better, and has clearly more accuracy for its price too."""
        if new.accuracy * old.price <= _GAIN * old.accuracy * new.price:
            return False
        if self.usd_per_point is not None:
            return _value(new, self.usd_per_point) > _value(old, self.usd_per_point)
        return new.accuracy >= min(KEPT * best_accuracy, old.accuracy)


def _value(found: _Found, usd_per_point: float) -> float:
    return 100 * found.accuracy * usd_per_point - found.price


@dataclass(frozen=True, slots=True)
class _Escalation:
    """A model that could be escalated to, and the problems that it and the samples answered."""

    model: str
    samples: int
    cases: Sequence[_Case]
    unit: _Unit


def fit(
    outcomes: Iterable[Outcome], models: Sequence[str], usd_per_point: float | None = None
) -> Fitted:
    """Return the best policy of those that `models` allow.

    Without a price of a point of accuracy, it is the cheapest that keeps 98 % of the accuracy of
    the best method, in dollars if all are known, else in calls. With one, it is that with the most
    accuracy for its dollars. Classes of requests have entries of their own where these do better on
    problems from which they were not learned.

    Raises:
        CannotRun: there is nothing to learn from, or a price of a point and no dollars to compare
            it with; the message says what to do.
    """
    by_model = _graded(outcomes, models)
    cheap = next((model for model in models if _is_cheap(by_model[model].values())), None)
    if cheap is None:
        raise CannotRun("a policy needs a model that always answers: add auto(agree=0)-MODEL")
    others = [model for model in models if model != cheap]
    reasons = {model: _useless(model, by_model[cheap], by_model[model]) for model in others}
    pairs = {m: _pairs(by_model[cheap], by_model[m]) for m in others if reasons[m] is None}
    said = tuple(f"{model}: not used: {reason}" for model, reason in reasons.items() if reason)
    if not pairs:
        hint = "a policy needs a model or method besides the cheap one that has replies"
        raise CannotRun("; ".join((hint, *said)))
    unit, compared = _unit([each for some in pairs.values() for each in some], usd_per_point)
    escalations = [_escalation(model, some, unit) for model, some in pairs.items()]
    best = max(_accuracy(found.values()) for found in by_model.values() if found)
    options = [(each, agree) for each in escalations for agree in range(each.samples + 1)]
    found = [_tried(each.cases, _needed((), agree)) for each, agree in options]
    aim = _Aim(usd_per_point)
    escalation, agree = options[aim.best(found, best)]
    entries, gain = _entries(escalation, agree, aim)
    return Fitted(_policy(escalation, agree, entries), (*said, compared, *gain))


def _graded(outcomes: Iterable[Outcome], models: Sequence[str]) -> dict[str, dict[str, Outcome]]:
    found: dict[str, dict[str, Outcome]] = {model: {} for model in models}
    for each in outcomes:
        if each.model in found and each.grade is not None:
            found[each.model][each.problem] = each
    return found


def _is_cheap(outcomes: Iterable[Outcome]) -> bool:
    choices = {each.auto.chosen if each.auto else None for each in outcomes}
    return "answer" in choices and choices <= {"answer", "plain"}


def _useless(model: str, cheap: Mapping[str, Outcome], strong: Mapping[str, Outcome]) -> str | None:
    """Return why `auto` cannot escalate to a model; None if it can."""
    pairs = _pairs(cheap, strong)
    if not pairs:
        return "it has no reply to a problem that the cheap samples have answered"
    is_method = from_prefix(model) is not None
    if any(right.approach is not None for _, right in pairs) == is_method:
        return None
    if is_method:
        return "no report says that its approach has answered"
    return "it is an alias: name its approach as a prefix, such as bon-MODEL"


def _pairs(
    cheap: Mapping[str, Outcome], strong: Mapping[str, Outcome]
) -> list[tuple[Outcome, Outcome]]:
    """Return the outcomes of both for the problems whose samples could be compared."""
    return [
        (cheap[problem], strong[problem])
        for problem in sorted(cheap.keys() & strong.keys())
        if (choice := cheap[problem].auto) is not None and choice.chosen == "answer"
    ]


def _unit(
    pairs: Iterable[tuple[Outcome, Outcome]], usd_per_point: float | None
) -> tuple[_Unit, str]:
    """Return the unit of all prices, and a line that says why it is that.

    Raises:
        CannotRun: a point has a price in dollars, and not all replies have one.
    """
    every = [each for pair in pairs for each in pair]
    unknown = sorted({each.model for each in every if each.cost_usd is None})
    if unknown and usd_per_point is not None:
        raise CannotRun(
            f"--usd-per-point needs the dollars of all replies, and some of {', '.join(unknown)} "
            "name none: give the models prices in the proxy, or leave the option out"
        )
    if unknown:
        return (
            "calls",
            f"prices are compared in calls: some replies of {', '.join(unknown)} name no dollars",
        )
    if usd_per_point is None and not any(each.cost_usd for each in every):
        return "calls", "prices are compared in calls: no reply has cost anything"
    return "USD", "prices are compared in US dollars"


def _escalation(model: str, pairs: Sequence[tuple[Outcome, Outcome]], unit: _Unit) -> _Escalation:
    cases = [
        _Case(
            votes=choice.votes,
            right=first.grade == "right",
            escalated_right=second.grade == "right",
            price=_cost(first, unit),
            escalated_price=_cost(second, unit),
            signals=Signals(choice.kind, choice.size),
        )
        for first, second in pairs
        if (choice := first.auto) is not None
    ]
    samples = next(first.auto.samples for first, _ in pairs if first.auto)
    return _Escalation(model, samples, cases, unit)


def _tried(cases: Sequence[_Case], agree_of: Callable[[_Case], int]) -> _Found:
    """Return what a policy comes to that needs `agree_of` a problem to agree on it."""
    answered = [case.votes >= agree_of(case) for case in cases]
    each = [*zip(cases, answered, strict=True)]
    return _Found(
        fmean(case.right if at_once else case.escalated_right for case, at_once in each),
        fmean(case.price + (0 if at_once else case.escalated_price) for case, at_once in each),
    )


def _best_of_two(cases: Sequence[_Case]) -> float:
    """Return the accuracy of the samples alone or of the escalation alone, whichever is better."""
    return max(fmean(c.right for c in cases), fmean(c.escalated_right for c in cases))


def _agree(cases: Sequence[_Case], samples: int, aim: _Aim) -> int:
    """Return how many samples have to agree on problems like these."""
    found = [_tried(cases, _needed((), agree)) for agree in range(samples + 1)]
    return aim.best(found, _best_of_two(cases))


def _entries(
    escalation: _Escalation, agree: int, aim: _Aim
) -> tuple[tuple[Entry, ...], tuple[str, ...]]:
    """Return the entries of classes, and what they are worth; none if they are worth nothing.

    They have to do better than `agree`, and better on problems from which they were not learned
    (cross-validation).
    """
    cases, samples = [*escalation.cases], escalation.samples
    random.Random(0).shuffle(cases)  # noqa: S311
    best, pooled = _best_of_two(cases), _tried(cases, _needed((), agree))
    chosen: tuple[Entry, ...] = ()
    found = old = pooled
    for split in (_by_kind, _by_size):
        learn = partial(split, samples=samples, aim=aim)
        entries = learn(cases)
        if not aim.prefers(_tried(cases, _needed(entries, agree)), pooled, best):
            continue
        if not chosen:
            found = old = _held_out(cases, lambda _: (), samples, aim)
        if aim.prefers(new := _held_out(cases, learn, samples, aim), found, best):
            chosen, found = entries, new
    if not chosen:
        return (), ()
    needed = ", ".join(f"{entry.label}: {entry.agree}" for entry in chosen)
    return chosen, (
        f"classes with an agreement of their own ({needed}): on problems held out "
        f"{100 * found.accuracy:.1f} % right for {found.price:.3g} {escalation.unit}; without "
        f"classes {100 * old.accuracy:.1f} % for {old.price:.3g}",
    )


def _needed(entries: Sequence[Entry], agree: int) -> Callable[[_Case], int]:
    """Return how many samples have to agree on a problem, by its class; `agree` without one."""

    def needed(case: _Case) -> int:
        covering = (entry for entry in entries if entry.covers(case.signals))
        return next((entry.agree for entry in covering), agree)

    return needed


def _held_out(
    cases: Sequence[_Case],
    learn: Callable[[Sequence[_Case]], tuple[Entry, ...]],
    samples: int,
    aim: _Aim,
) -> _Found:
    """Return what policies come to on the problems from which they were not learned."""
    votes_needed = dict[int, int]()
    for fold in range(min(_FOLDS, len(cases))):
        others = [case for at, case in enumerate(cases) if at % _FOLDS != fold] or cases
        needed = _needed(learn(others), _agree(others, samples, aim))
        votes_needed |= {id(case): needed(case) for case in cases[fold::_FOLDS]}
    return _tried(cases, lambda case: votes_needed[id(case)])


def _by_kind(cases: Sequence[_Case], samples: int, aim: _Aim) -> tuple[Entry, ...]:
    """Return an entry for each kind of question of which there are enough."""
    kinds = sorted({case.signals.kind for case in cases} & KINDS)
    of = {kind: [case for case in cases if case.signals.kind == kind] for kind in kinds}
    return tuple(
        Entry.model_validate({"kind": kind, **_learned(some, samples, aim)})
        for kind, some in of.items()
        if len(some) >= LEAST
    )


def _by_size(cases: Sequence[_Case], samples: int, aim: _Aim) -> tuple[Entry, ...]:
    """Return entries for the longer and the shorter half of the requests."""
    middle = int(median_low(case.signals.size for case in cases))
    longer = [case for case in cases if case.signals.size > middle]
    shorter = [case for case in cases if case.signals.size <= middle]
    if min(len(longer), len(shorter)) < LEAST:
        return ()
    return (
        Entry.model_validate({"larger_than": middle, **_learned(longer, samples, aim)}),
        Entry.model_validate(_learned(shorter, samples, aim)),
    )


def _learned(cases: Sequence[_Case], samples: int, aim: _Aim) -> dict[str, object]:
    return {"agree": _agree(cases, samples, aim), "levels": _levels(cases)}


def _policy(escalation: _Escalation, agree: int, entries: tuple[Entry, ...]) -> Policy:
    cases, named = escalation.cases, from_prefix(escalation.model)
    ours, base = _tried(cases, _needed(entries, agree)), _tried(cases, _needed((), 0))
    gained = 100 * (ours.accuracy - base.accuracy)
    is_priced = escalation.unit == "USD" and gained > 0
    return Policy(
        samples=escalation.samples,
        agree=agree,
        escalate=named.expression if named else "none",
        strong=named.base if named else escalation.model,
        levels=_levels(cases),
        entries=entries,
        usd_per_point=(ours.price - base.price) / gained if is_priced else None,
    )


def _levels(cases: Sequence[_Case]) -> tuple[Level, ...]:
    counts = sorted({case.votes for case in cases})
    return tuple(_level(count, [c for c in cases if c.votes == count]) for count in counts)


def _level(votes: int, cases: Sequence[_Case]) -> Level:
    return Level(
        votes=votes,
        of=len(cases),
        right=sum(case.right for case in cases),
        escalated_right=sum(case.escalated_right for case in cases),
    )


def _accuracy(outcomes: Iterable[Outcome]) -> float:
    return fmean(each.grade == "right" for each in outcomes)


def _cost(outcome: Outcome, unit: _Unit) -> float:
    return (outcome.cost_usd or 0.0) if unit == "USD" else float(outcome.calls)


def as_yaml(policy: Policy) -> str:
    """Return the text of a policy file."""
    told = policy.model_dump(exclude_none=True, mode="json")
    return yaml.safe_dump({k: v for k, v in told.items() if v != []}, sort_keys=False)


def calibration_lines(outcomes: Iterable[Outcome]) -> list[str]:
    """Return what `auto` expected and what was observed, with its 95 % interval.

    A line for each model and choice.
    """
    latest = {(each.model, each.problem): each for each in outcomes if each.grade is not None}
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for each in latest.values():
        if each.auto is not None:
            groups.setdefault((each.model, each.auto.chosen), []).append(each)
    return [_calibration(model, chosen, of) for (model, chosen), of in sorted(groups.items())]


def _calibration(model: str, chosen: str, of: Sequence[Outcome]) -> str:
    expected = [each.auto.expected for each in of if each.auto and each.auto.expected is not None]
    told = f"{100 * fmean(expected):.1f} % expected" if expected else "nothing expected"
    right = Counter(each.grade for each in of)["right"]
    low, high = (100 * bound for bound in wilson(right, len(of)))
    seen = f", {100 * right / len(of):.1f} % right [{low:.0f}, {high:.0f}]"
    seen = "" if chosen == "abstain" else seen
    return f"{model}: {chosen} on {len(of)}: {told}{seen}"
