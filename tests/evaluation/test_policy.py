"""Policies of `auto`, fitted to outcomes of a known law: what they choose and promise."""

import json
import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from statistics import fmean

import pytest
import yaml

from optillm_hooks.approaches.auto import AutoParams
from optillm_hooks.cli import main
from optillm_hooks.config_files import CannotRun
from optillm_hooks.evaluation import asking
from optillm_hooks.evaluation.asking import AutoChoice, Outcome
from optillm_hooks.evaluation.policy import KEPT, Fitted, as_yaml, calibration_lines, fit
from optillm_hooks.policies import RISK, Policy, Signals, holds, read_policy
from optillm_hooks.settings import Settings

CHEAP, STRONG = "auto(agree=0)-small", "self_consistency(n=24;first_m=24)-small"
MODELS = [CHEAP, STRONG]
CALLS = 24
EASY, HARD = 0.97, 0.5
"""How often a sample solves the two kinds of problems. Three in four are easy."""

SHARES = {EASY: 0.75, HARD: 0.25}
WRONG = {"a": 0.6, "b": 0.3, "c": 0.1}
ESCALATED = {EASY: 0.995, HARD: 0.9}
"""How often the escalation solves them, independently of the samples."""

Problem = tuple[int, bool, bool]
"""The samples that agree, and whether they and the escalation are right."""


def drawn(rng: random.Random) -> Problem:
    p = EASY if rng.random() < SHARES[EASY] else HARD
    samples = [
        "right" if rng.random() < p else rng.choices([*WRONG], [*WRONG.values()])[0]
        for _ in range(3)
    ]
    [(leading, votes)] = Counter(samples).most_common(1)
    return votes, leading == "right", rng.random() < ESCALATED[p]


def law() -> dict[int, tuple[float, float, float]]:
    """Return for each number of votes its probability, and how often each choice is right."""
    found: dict[int, list[float]] = {votes: [0.0, 0.0, 0.0] for votes in (1, 2, 3)}
    for p, share in SHARES.items():
        chances = {"right": p, **{name: (1 - p) * each for name, each in WRONG.items()}}
        for samples in product(chances, repeat=3):
            chance = share * math.prod(chances[each] for each in samples)
            [(leading, votes)] = Counter(samples).most_common(1)
            found[votes][0] += chance
            found[votes][1] += chance * (leading == "right")
            found[votes][2] += chance * ESCALATED[p]
    return {votes: (p, a / p, b / p) for votes, (p, a, b) in found.items()}


def outcomes(problems: list[Problem]) -> Iterator[Outcome]:
    for number, (votes, right, escalated) in enumerate(problems):
        found = AutoChoice(chosen="answer", samples=3, votes=votes)
        name = str(number)
        yield Outcome(
            model=CHEAP, problem=name, grade="right" if right else "wrong", seconds=1, calls=3,
            approach="auto", auto=found,
        )  # fmt: skip
        yield Outcome(
            model=STRONG, problem=name, grade="right" if escalated else "wrong", seconds=1,
            calls=CALLS, approach="self_consistency",
        )  # fmt: skip


def fitted(seed: int, problems: int = 1000) -> Policy:
    rng = random.Random(seed)
    return fit(outcomes([drawn(rng) for _ in range(problems)]), MODELS).policy


def params_of(policy: Policy, max_error: float | None = None) -> AutoParams:
    return AutoParams.model_validate({**policy.parameters, "max_error": max_error})


def test_the_accuracy_of_the_best_method_at_half_of_its_calls() -> None:
    """On fresh seeds: 20 repetitions of 1,000 problems to learn from and 600 others.

    By the law, `agree: 3` has 99 % of the accuracy for 40 % of the calls. A calibration takes 2
    instead if its accuracy of 600 more problems is 5 standard errors off; the other bounds are as
    far. False alarms: less than one of 100,000 tests.
    """
    for seed in range(20):
        params = params_of(fitted(seed))
        assert params.strong == "small"
        assert params.escalate == "self_consistency(n=24;first_m=24)"
        fresh = random.Random(1000 + seed)
        right = calls = best = 0
        for _ in range(600):
            votes, agreed, escalated = drawn(fresh)
            at_once = params.chosen(votes) == "answer"
            right += agreed if at_once else escalated
            calls += 3 if at_once else 3 + CALLS
            best += escalated
        assert right >= 0.95 * best
        assert calls <= 0.5 * 600 * CALLS


def kept(params: AutoParams, permitted: float) -> bool:
    """Return whether the answers are wrong no more often than permitted, exactly by the law."""
    answered = wrong = 0.0
    for votes, (chance, *right) in law().items():
        choice = params.chosen(votes)
        if choice != "abstain":
            answered += chance
            wrong += chance * (1 - right[choice == "escalate"])
    return wrong <= permitted * answered


def test_a_promised_error_holds_in_95_percent_of_repetitions() -> None:
    """200 calibrations of 600 problems, each judged exactly by the law.

    The hardest case: a choice that the law has errs a little more often than is permitted. One of
    six tests stands at the border, so 1.7 promises are broken on average; more than the 10 that 5 %
    allow come in one of 100,000 tests.
    """
    policies = [fitted(seed, 600) for seed in range(200)]
    for right in {each for _, *shares in law().values() for each in shares}:
        permitted = (1 - right) * 0.999
        broken = sum(not kept(params_of(each, permitted), permitted) for each in policies)
        assert broken <= 10, permitted


def test_it_answers_where_the_law_permits_it() -> None:
    """A promise that is never tested by an answer would hold too.

    Of 434 problems on which three agree, 4.6 are wrong on average, and up to 12 would be permitted:
    a calibration misses that in one of 500 cases, and six of 50 do in none of 100,000 tests.
    """
    error = 1 - law()[3][1]
    params = [params_of(fitted(seed, 600), 5 * error) for seed in range(50)]
    assert sum(each.chosen(3) == "answer" for each in params) >= 45
    assert all(each.chosen(1) == "abstain" for each in params)


@pytest.mark.parametrize("of", [60, 200, 1000])
@pytest.mark.parametrize("rate", [0.02, 0.05, 0.2])
def test_a_bound_fails_as_rarely_as_it_says(of: int, rate: float) -> None:
    """Exactly: the probability that so many problems prove a rate that is just above it."""
    passing = sum(
        math.comb(of, k) * rate**k * (1 - rate) ** (of - k)
        for k in range(of // 2)
        if holds(k, of, rate, 1)
    )
    assert passing <= RISK


def with_dollars(found: Iterable[Outcome], *unpriced: str) -> list[Outcome]:
    """Return the outcomes at a dollar a call; those of `unpriced` models say no price."""
    return [
        each.model_copy(update={"cost_usd": None if each.model in unpriced else float(each.calls)})
        for each in found
    ]


def test_a_price_of_a_point_moves_the_policy() -> None:
    rng = random.Random(1)
    found = with_dollars(outcomes([drawn(rng) for _ in range(1000)]))
    assert fit(found, MODELS, usd_per_point=0.0).policy.agree == 0
    assert fit(found, MODELS, usd_per_point=1000.0).policy.agree == 3


def test_all_escalations_are_compared_in_one_unit() -> None:
    """A call of the unpriced one costs less than the calls of the other, and more dollars."""
    rng = random.Random(1)
    some = list(outcomes([drawn(rng) for _ in range(200)]))
    same = [o.model_copy(update={"model": "large", "approach": None}) for o in some[1::2]]
    large = [each.model_copy(update={"calls": 1}) for each in same]
    found = [o.model_copy(update={"cost_usd": o.calls / 1e6}) for o in some]
    assert fit([*found, *with_dollars(large)], [*MODELS, "large"]).policy.strong == "small"
    unpriced = fit([*found, *large], [*MODELS, "large"])
    assert unpriced.policy.strong == "large"
    assert unpriced.said == ("prices are compared in calls: some replies of large name no dollars",)
    assert fit(with_dollars(some), MODELS).said == ("prices are compared in US dollars",)
    with pytest.raises(CannotRun, match=f"--usd-per-point .* {re.escape(STRONG)} name none"):
        fit(with_dollars(some, STRONG), MODELS, usd_per_point=0.001)


def test_a_policy_needs_something_to_learn_from() -> None:
    some = list(outcomes([drawn(random.Random(1)) for _ in range(10)]))
    with pytest.raises(CannotRun, match=r"add auto\(agree=0\)-MODEL"):
        fit(some, [STRONG])
    with pytest.raises(CannotRun, match="besides the cheap one"):
        fit(some, [CHEAP])


def test_what_auto_cannot_escalate_to_is_told() -> None:
    some = [*outcomes([drawn(random.Random(1)) for _ in range(10)])]
    alias = [o.model_copy(update={"model": "careful"}) for o in some if o.model == STRONG]
    off = [o.model_copy(update={"model": "bon-small", "approach": None}) for o in alias]
    models = [*MODELS, "careful", "bon-small", "absent"]
    fitted = fit([*some, *alias, *off], models)
    assert fitted.policy.strong == "small"
    assert fitted.said == (
        "careful: not used: it is an alias: name its approach as a prefix, such as bon-MODEL",
        "bon-small: not used: no report says that its approach has answered",
        "absent: not used: it has no reply to a problem that the cheap samples have answered",
        f"prices are compared in calls: some replies of {CHEAP}, {STRONG} name no dollars",
    )
    with pytest.raises(CannotRun, match=r"besides the cheap one.*careful: not used"):
        fit([*some, *alias], [CHEAP, "careful"])


@dataclass(frozen=True)
class Kind:
    """Problems of a kind: how often a sample is right, and the wrong answers' shares."""

    right: float
    wrong: tuple[float, ...]
    escalated: float

    def draw(self, rng: random.Random) -> Problem:
        answers = range(len(self.wrong) + 1)
        weights = [self.right, *((1 - self.right) * each for each in self.wrong)]
        [(leading, votes)] = Counter(rng.choices(answers, weights, k=3)).most_common(1)
        return votes, leading == 0, rng.random() < self.escalated


@cache
def value(kind: Kind, agree: int) -> tuple[float, float]:
    """Return the accuracy and the calls of a policy on a kind of problems, exactly."""
    weights = [kind.right, *((1 - kind.right) * each for each in kind.wrong)]
    accuracy, calls = 0.0, 3.0
    for drawn in product(range(len(weights)), repeat=3):
        chance = math.prod(weights[each] for each in drawn)
        [(leading, votes)] = Counter(drawn).most_common(1)
        accuracy += chance * ((leading == 0) if votes >= agree else kind.escalated)
        calls += chance * CALLS * (votes < agree)
    return accuracy, calls


NUMBER = Kind(right=0.8, wrong=(0.1,) * 10, escalated=0.98)
"""Two equal numbers are nearly always right."""

CHOICE = Kind(right=0.6, wrong=(0.7, 0.2, 0.1), escalated=0.95)
"""Two equal letters are wrong in a third of the cases."""


def of_kinds(seed: int, kinds: Mapping[str, Kind], usd_per_point: float | None = None) -> Fitted:
    """Return what is learned from 600 problems, half of each kind; a long one is no different."""
    rng = random.Random(seed)
    drawn = [(name, kind.draw(rng)) for name, kind in kinds.items() for _ in range(300)]
    found = list[Outcome]()
    for (name, _), pair in zip(drawn, batched(outcomes([each for _, each in drawn])), strict=True):
        signals = {"kind": name, "size": rng.randrange(100, 1000)}
        told = pair[0].auto.model_copy(update=signals) if pair[0].auto else None
        found += [pair[0].model_copy(update={"auto": told}), pair[1]]
    return fit(with_dollars(found), MODELS, usd_per_point)


def batched(found: Iterator[Outcome]) -> Iterator[tuple[Outcome, Outcome]]:
    return zip(found, found, strict=True)


def accuracy_and_calls(policy: Policy, kinds: Mapping[str, Kind]) -> tuple[float, float]:
    """Return those of a policy, exactly by the law. The law has no requests of one size."""
    found = list[tuple[float, float]]()
    for name, kind in kinds.items():
        for size in range(100, 1000, 50):
            params = params_of(policy)
            entry = params.entry(Signals(name, size))
            found.append(value(kind, policy.agree if entry is None else entry.agree))
    accuracy, calls = map(fmean, zip(*found, strict=True))
    return accuracy, calls


def per_call(policy: Policy, kinds: Mapping[str, Kind]) -> tuple[float, float, float]:
    """Return the accuracy with classes, and their accuracy for a call with and without them."""
    accuracy, calls = accuracy_and_calls(policy, kinds)
    pooled, more = accuracy_and_calls(policy.model_copy(update={"entries": ()}), kinds)
    return accuracy, accuracy / calls, pooled / more


def test_classes_have_entries_where_these_pay() -> None:
    """On 20 seeds: about a quarter fewer calls for nearly the accuracy, exactly by the law.

    A calibration misses that in one of 60 cases; four of 20 do in one of 2,000 tests.
    """
    kinds = {"number": NUMBER, "choice": CHOICE}
    fitted = [of_kinds(seed, kinds) for seed in range(20)]
    needed = [{entry.label: entry.agree for entry in each.policy.entries} for each in fitted]
    found = [each for each in fitted if "on problems held out" in " ".join(each.said)]
    assert needed.count({"choice": 3, "number": 2}) == len(found) >= 17
    for each in found:
        accuracy, with_them, without = per_call(each.policy, kinds)
        assert with_them >= 1.3 * without
        assert accuracy >= KEPT * 0.965


def test_a_price_of_a_point_holds_for_classes_too() -> None:
    """A point is worth three calls. The third choice that agrees brings 16 points for 15 calls,
    the third number 0.4 points for 9.5."""
    fitted = of_kinds(1, {"number": NUMBER, "choice": CHOICE}, usd_per_point=3.0)
    needed = {entry.label: entry.agree for entry in fitted.policy.entries}
    assert needed == {"choice": 3, "number": 2}
    assert of_kinds(1, {"number": NUMBER, "choice": CHOICE}, 0.0).policy.entries == ()


def test_classes_that_mean_nothing_cost_nothing() -> None:
    """On 20 seeds, where two samples are just not enough and three are more than enough.

    Both kinds have the same law. Over all seeds, accuracy for a call must not get worse.
    """
    same = Kind(right=0.8, wrong=(0.1,) * 10, escalated=1.0)
    kinds = {"number": same, "choice": same}
    fitted = [of_kinds(seed, kinds) for seed in range(20)]
    gains = [(b / c) for _, b, c in (per_call(each.policy, kinds) for each in fitted)]
    assert fmean(gains) >= 0.99
    assert sum(not each.policy.entries for each in fitted) >= 15


def test_few_problems_have_no_classes() -> None:
    rng = random.Random(1)
    some = [*outcomes([drawn(rng) for _ in range(30)])]
    assert fit(some, MODELS).policy.entries == ()


def test_expected_against_observed() -> None:
    def outcome(number: int, right: bool, chosen: str = "answer") -> Outcome:
        choice = AutoChoice(chosen=chosen, samples=3, votes=3, expected=0.9)
        grade = "right" if right else "wrong"
        return Outcome(model="auto-x", problem=str(number), grade=grade, seconds=1, auto=choice)

    found = [
        outcome(1, right=True),
        outcome(2, right=False),
        outcome(3, right=True, chosen="escalate"),
    ]
    assert calibration_lines(found) == [
        "auto-x: answer on 2: 90.0 % expected, 50.0 % right [9, 91]",
        "auto-x: escalate on 1: 90.0 % expected, 100.0 % right [21, 100]",
    ]


def test_a_policy_file_becomes_parameters(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    policy = fitted(1)
    path.write_text(as_yaml(policy))
    assert read_policy(str(path)) == policy
    settings = Settings.model_validate({"auto": {"policies": {"mine": str(path)}}})
    assert settings.presets["auto"]["mine"] == policy.parameters


def test_the_command_learns_from_a_finished_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every problem has its replies, so nothing is asked; nobody listens at the address."""
    questions, policy = tmp_path / "own.jsonl", tmp_path / "policy.yaml"
    lines = [json.dumps({"id": str(n), "question": "?", "answer": 1}) for n in range(40)]
    questions.write_text("\n".join(lines))
    rng = random.Random(1)
    some = [*outcomes([drawn(rng) for _ in lines])]
    with asking.kept(tmp_path / "outcomes.jsonl") as keep:
        for each in some:
            keep(each)
            if each.model == STRONG:
                keep(each.model_copy(update={"model": "careful"}))
    models = ",".join([*MODELS, "careful"])
    options = ["--models", models, "--tasks", str(questions), "--out", str(tmp_path)]
    given = ["eval", "--base-url", "http://127.0.0.1:9/v1", *options, "--policy", str(policy)]
    assert main(given) == 0
    assert read_policy(str(policy)) == fit(some, MODELS).policy
    printed = capsys.readouterr().out
    assert "careful: not used: it is an alias" in printed
    named = yaml.safe_load(printed.partition("under litellm_settings:")[2].split("\n")[1])
    presets = Settings.model_validate(named["optillm_settings"]).presets
    assert presets["auto"]["mine"] == read_policy(str(policy)).parameters


def policy_text(agree: int, votes: int, right: int, entries: str = "") -> str:
    level = f"{{votes: {votes}, of: 1, right: {right}, escalated_right: 1}}"
    learned = f"samples: 3, agree: {agree}, escalate: none, levels: [{level}]"
    return f"{{{learned}, entries: [{entries}]}}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read"),
        ("a: [", "line 1"),
        ("{}", "samples"),
        (policy_text(4, 3, 1), "agree must be at most"),
        (policy_text(3, 4, 1), "votes of a level"),
        (policy_text(3, 3, 2), "at most of"),
        (policy_text(3, 3, 1, "{agree: 4, levels: []}"), "agree of an entry"),
        (policy_text(3, 3, 1, "{kind: poem, agree: 3, levels: []}"), "kind"),
        ("{samples: 3, agree: .nan}", "agree: must be a finite number"),
    ],
)
def test_check_names_what_is_wrong_with_a_policy_file(
    text: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy, config = tmp_path / "policy.yaml", tmp_path / "config.yaml"
    if text is not None:
        policy.write_text(text)
    config.write_text(f"""\
model_list: []
litellm_settings:
  optillm_settings: {{auto: {{policies: {{mine: {policy}}}}}}}
""")
    assert main(["check", str(config)]) == 1
    printed = capsys.readouterr()
    assert "optillm_settings.auto.policies.mine" in printed.out + printed.err
    assert said in printed.out + printed.err
