"""Fits a policy for `auto` to the outcomes of an evaluation, and shows how it has kept its word.

The calibration needs a model that always answers with its cheap samples, such as
`auto(agree=0)-gpt-4o-mini`, and one or more that it could escalate to.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final

import yaml

import optillm_hooks.approaches  # noqa: F401 (prefixes of model names are known by them)
from optillm_hooks.config_files import CannotRun
from optillm_hooks.evaluation.asking import Outcome
from optillm_hooks.gateway.model_names import from_prefix
from optillm_hooks.policies import Level, Policy

KEPT: Final = 0.98
"""The share of the best method's accuracy that the cheapest policy must keep."""


@dataclass(frozen=True, slots=True)
class _Option:
    """A policy, with its accuracy and its price on the calibration problems, on average."""

    policy: Policy
    accuracy: float
    price: float


def fit(
    outcomes: Iterable[Outcome], models: Sequence[str], usd_per_point: float | None = None
) -> Policy:
    """Return the best policy of those that `models` allow.

    Without a price of a point of accuracy, it is the cheapest that keeps 98 % of the accuracy of
    the best method, in dollars if all are known, else in calls. With one, it is that with the most
    accuracy for its price.

    Raises:
        CannotRun: there is nothing to learn from; the message says what to ask.
    """
    by_model = _graded(outcomes, models)
    cheap = next((model for model in models if _is_cheap(by_model[model].values())), None)
    if cheap is None:
        raise CannotRun("a policy needs a model that always answers: add auto(agree=0)-MODEL")
    options = [
        option
        for model in models
        if model != cheap
        for option in _options(model, by_model[cheap], by_model[model])
    ]
    if not options:
        raise CannotRun("a policy needs a model or method besides the cheap one that has replies")
    if usd_per_point is not None:
        return max(
            options, key=lambda each: 100 * each.accuracy * usd_per_point - each.price
        ).policy
    least = KEPT * max(_accuracy(found.values()) for found in by_model.values() if found)
    reached = min(least, max(each.accuracy for each in options))
    return min((each for each in options if each.accuracy >= reached), key=_price).policy


def _price(option: _Option) -> float:
    return option.price


def _graded(outcomes: Iterable[Outcome], models: Sequence[str]) -> dict[str, dict[str, Outcome]]:
    found: dict[str, dict[str, Outcome]] = {model: {} for model in models}
    for each in outcomes:
        if each.model in found and each.grade is not None:
            found[each.model][each.problem] = each
    return found


def _is_cheap(outcomes: Iterable[Outcome]) -> bool:
    choices = {each.auto.chosen if each.auto else None for each in outcomes}
    return "answer" in choices and choices <= {"answer", "plain"}


def _options(
    model: str, cheap: Mapping[str, Outcome], strong: Mapping[str, Outcome]
) -> Iterator[_Option]:
    """Yield the policies that escalate to `model`, by the problems that both have answered."""
    pairs = [
        (cheap[problem], strong[problem])
        for problem in sorted(cheap.keys() & strong.keys())
        if (choice := cheap[problem].auto) is not None and choice.chosen == "answer"
    ]
    if not pairs or any(right.approach is not None for _, right in pairs) != _is_method(model):
        return
    named = from_prefix(model)
    votes = [first.auto.votes if first.auto else 0 for first, _ in pairs]
    samples = next(first.auto.samples for first, _ in pairs if first.auto)
    levels = tuple(_level(count, votes, pairs) for count in sorted(set(votes)))
    known = all(each.cost_usd is not None for pair in pairs for each in pair)
    base = fmean(_cost(first, known) for first, _ in pairs), _accuracy(a for a, _ in pairs)
    for agree in range(samples + 1):
        used = [
            pair[:1] if count >= agree else pair for count, pair in zip(votes, pairs, strict=True)
        ]
        price = fmean(sum(_cost(each, known) for each in asked) for asked in used)
        accuracy = _accuracy(asked[-1] for asked in used)
        gained = 100 * (accuracy - base[1])
        yield _Option(
            Policy(
                samples=samples,
                agree=agree,
                escalate=named.expression if named else "none",
                strong=named.base if named else model,
                levels=levels,
                usd_per_point=(price - base[0]) / gained if known and gained > 0 else None,
            ),
            accuracy,
            price,
        )


def _is_method(model: str) -> bool:
    return from_prefix(model) is not None


def _level(count: int, votes: Sequence[int], pairs: Sequence[tuple[Outcome, Outcome]]) -> Level:
    of = [pair for number, pair in zip(votes, pairs, strict=True) if number == count]
    return Level(
        votes=count,
        of=len(of),
        right=sum(first.grade == "right" for first, _ in of),
        escalated_right=sum(second.grade == "right" for _, second in of),
    )


def _accuracy(outcomes: Iterable[Outcome]) -> float:
    return fmean(each.grade == "right" for each in outcomes)


def _cost(outcome: Outcome, known: bool) -> float:
    return outcome.cost_usd if known and outcome.cost_usd is not None else float(outcome.calls)


def as_yaml(policy: Policy) -> str:
    """Return the text of a policy file."""
    return yaml.safe_dump(policy.model_dump(exclude_none=True, mode="json"), sort_keys=False)


def calibration_lines(outcomes: Iterable[Outcome]) -> list[str]:
    """Return what `auto` expected and what was observed, a line for each model and choice."""
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
    seen = "" if chosen == "abstain" else f", {100 * right / len(of):.1f} % right"
    return f"{model}: {chosen} on {len(of)}: {told}{seen}"
