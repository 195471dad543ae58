"""The sampling parameters of each decoding method: the request's, or adapted to the uncertainty.

The engine's step in small: measure the uncertainty, ask the branch for its sampling parameters,
draw with the row's own rng. The distributions of entropy decoding are worked out here over plain
numbers.
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from pydantic import BaseModel

from optillm_hooks.decoding.autothink import AutoThinkSettings
from optillm_hooks.decoding.cot_decoding import CotSettings
from optillm_hooks.decoding.deepconf import DeepConfSettings
from optillm_hooks.decoding.entropy_decoding import EntropySettings
from optillm_hooks.decoding.thinkdeeper import ThinkSettings
from optillm_hooks.local_provider.decoding.base import Branch, BranchOutput, Vocabulary
from optillm_hooks.local_provider.decoding.cot_decoding import CotDecoding
from optillm_hooks.local_provider.decoding.entropy_decoding import Adaptive, State, state
from optillm_hooks.local_provider.decoding.methods import start_decoding
from optillm_hooks.local_provider.engine_request import EngineRequest, SamplingParams
from optillm_hooks.local_provider.sampling import sample
from optillm_hooks.local_provider.uncertainty import Uncertainty, measure_uncertainty

DRAWS = 20_000
SAMPLING = SamplingParams(temperature=0.8, top_p=0.95, top_k=40, min_p=0.05)


def critical(freedom: int) -> float:
    """Return what a chi-square of `freedom` degrees exceeds once in ten million times.

    Wilson and Hilferty's approximation; 5.2 is that quantile of the normal distribution.
    """
    spread = 2 / (9 * freedom)
    return float(freedom * (1 - spread + 5.2 * math.sqrt(spread)) ** 3)


def drawn(branch: Branch, probabilities: Sequence[float], seed: int) -> Counter[int]:
    """Return how often each token is drawn."""
    logits = torch.tensor(probabilities).log()[None]
    [seen] = measure_uncertainty(logits, branch.metrics)
    rng = random.Random(seed)
    sampling = branch.sampling_params(seen)
    size = 500
    counts: Counter[int] = Counter()
    for _ in range(DRAWS // size):
        counts.update(
            sample(logits.expand(size, -1), [sampling] * size, [rng.random() for _ in range(size)])
        )
    return counts


def tempered(probabilities: Sequence[float], temperature: float) -> list[float]:
    powers = [p ** (1 / temperature) for p in probabilities]
    return [power / sum(powers) for power in powers]


def cut(probabilities: Sequence[float], keep: Callable[[list[int]], list[int]]) -> list[float]:
    """Return the probabilities over the tokens that `keep` leaves of them, likeliest first."""
    kept = set(keep(sorted(range(len(probabilities)), key=lambda i: -probabilities[i])))
    total = sum(probabilities[i] for i in kept)
    return [p / total if i in kept else 0.0 for i, p in enumerate(probabilities)]


def nucleus(probabilities: Sequence[float], top_p: float) -> Callable[[list[int]], list[int]]:
    def keep(order: list[int]) -> list[int]:
        mass, kept = 0.0, list[int]()
        for i in order:
            if mass >= top_p:
                break
            kept.append(i)
            mass += probabilities[i]
        return kept

    return keep


SLOPE = [2.0 ** -(i / 4) for i in range(16)]


def half_and(tail: int) -> list[float]:
    """Return half of the probability on one token, half on `tail` others, falling very slowly."""
    weights = [0.9999**i for i in range(tail)]
    return [0.5, *[0.5 * weight / sum(weights) for weight in weights]]


SHAPES: dict[State, list[float]] = {
    "certain": [0.9995, 0.0003, 0.0002],
    "hesitant": [p / sum(SLOPE) for p in SLOPE],
    "fork": half_and(128),  # surprises of 1 and 8 bits
    "fog": half_and(512),  # of 1 and 10
    "ordinary": [0.4, 0.3, 0.15, 0.1, 0.03, 0.02],
}
SETTINGS: dict[State, EntropySettings] = {
    "certain": EntropySettings(),
    "hesitant": EntropySettings(low_varentropy=2.0, hesitant_entropy=2.5),
    "fork": EntropySettings(),
    "fog": EntropySettings(),
    "ordinary": EntropySettings(),
}
EXPECTED: dict[State, tuple[SamplingParams, list[float]]] = {
    "certain": (SamplingParams(0.9), [1.0, 0.0, 0.0]),
    "hesitant": (SamplingParams(0.8), tempered(SHAPES["hesitant"], 0.8 * 1.3)),
    # 1.2 warmer; the top_k of 2 is raised to 5.
    "fork": (
        SamplingParams(0.9, top_k=2),
        cut(tempered(SHAPES["fork"], 0.9 * 1.2), lambda order: order[:5]),
    ),
    # 1.5 warmer; of a top_p of 1 there remain 0.9 - 0.2.
    "fog": (
        SamplingParams(0.7),
        cut(tempered(SHAPES["fog"], 0.7 * 1.5), nucleus(tempered(SHAPES["fog"], 0.7 * 1.5), 0.7)),
    ),
    # Entropy and varentropy come to 2.85: a min_p of 0.08 falls to 0.0572, and 0.03 / 0.4 passes.
    "ordinary": (SamplingParams(1.0, min_p=0.08), cut(SHAPES["ordinary"], lambda order: order[:5])),
}


@pytest.mark.parametrize("name", SHAPES)
def test_entropy_decoding_samples_by_the_state_it_finds(name: State) -> None:
    """A right implementation fails once in ten million runs."""
    probabilities, (sampling, exact) = SHAPES[name], EXPECTED[name]
    branch = Adaptive(sampling, SETTINGS[name])
    [seen] = measure_uncertainty(torch.tensor(probabilities).log()[None], {"entropy"})
    assert state(seen, SETTINGS[name]) == name
    counts = drawn(branch, probabilities, seed=len(name))
    assert sum(counts.values()) == DRAWS
    assert not [i for i in counts if exact[i] == 0]
    possible = [i for i, p in enumerate(exact) if p > 0]
    if len(possible) > 1:
        chi_square = sum((counts[i] - DRAWS * exact[i]) ** 2 / (DRAWS * exact[i]) for i in possible)
        assert chi_square < critical(len(possible) - 1)


def test_a_chi_square_would_see_a_temperature_that_is_a_little_off() -> None:
    """The test of the test: a temperature of 1.2 where 1.3 is right is noticed."""
    right, wrong = EXPECTED["hesitant"][1], tempered(SHAPES["hesitant"], 0.8 * 1.2)
    shift = sum((w - r) ** 2 / r for w, r in zip(wrong, right, strict=True)) * DRAWS
    assert shift > critical(len(right) - 1) - (len(right) - 1)


@pytest.mark.parametrize(
    "settings",
    [ThinkSettings(), AutoThinkSettings(), DeepConfSettings()],
    ids=["thinkdeeper", "autothink", "deepconf"],
)
def test_the_methods_that_sample_use_the_requests_own_parameters(
    settings: ThinkSettings | AutoThinkSettings | DeepConfSettings,
) -> None:
    vocabulary = Vocabulary(lambda text: list(text.encode()), lambda token: bytes([token]))
    request = EngineRequest(messages=(), sampling=SAMPLING, decoding=settings)
    branch = start_decoding(request, "6 * 7?", 100, vocabulary).open()
    assert branch is not None
    assert (
        branch.sampling_params(Uncertainty(entropy=6.0, varentropy=6.0, confidence=1.0)) == SAMPLING
    )


@pytest.mark.parametrize(("asked", "temperature"), [(None, 0.0), (0.7, 0.7)])
def test_branches_of_cot_decoding_are_greedy_or_as_warm_as_asked_for(
    asked: float | None, temperature: float
) -> None:
    vocabulary = Vocabulary(lambda _: [], lambda _: b"")
    settings = CotSettings(k=2, branch_temperature=asked)
    found = start_decoding(
        EngineRequest(messages=(), sampling=SAMPLING, decoding=settings), "", 100, vocabulary
    )
    found.begin([(7, 0.5), (9, 0.3), (4, 0.2)])
    branches = [found.open(), found.open()]
    assert found.wanted == 0
    firsts = [list(b.emit(1, Uncertainty(), end=False)) for b in branches if b is not None]
    assert firsts == [[7], [9]]
    expected = replace(SAMPLING, temperature=temperature)
    assert {b.sampling_params(Uncertainty()) for b in branches if b is not None} == {expected}


@pytest.mark.parametrize(
    ("settings", "answer"),
    [
        (CotSettings(), "8"),
        (CotSettings(first_token_exponent=0), "9"),
        (CotSettings(every_mention=False), "1, that is 1"),
    ],
)
def test_unlikely_beginnings_and_copied_answers_count_less_in_cot_decoding(
    settings: CotSettings, answer: str
) -> None:
    found = CotDecoding(settings, SAMPLING)
    found.begin([(7, 0.5), (6, 0.4), (8, 0.001), (9, 0.001)])
    for text, margins in (
        ("1, that is 1", (0.1, 1.0)),
        ("8", (0.5,)),
        ("9", (0.5,)),
        ("9", (0.5,)),
    ):
        branch = found.open()
        assert branch is not None
        for margin in margins:
            branch.emit(1, Uncertainty(margin=margin), end=False)
        ends = (len("1,"), len(text))[-len(margins) :]
        found.close(branch, BranchOutput(text, (1,) * len(margins), ends, "stop"))
    assert found.outcome().text == answer


@pytest.mark.parametrize("settings", [EntropySettings(), ThinkSettings(), AutoThinkSettings()])
def test_each_choice_of_a_request_is_decoded(settings: BaseModel) -> None:
    vocabulary = Vocabulary(lambda text: list(text.encode()), lambda token: bytes([token]))
    request = EngineRequest(messages=(), sampling=SAMPLING, decoding=settings, n=3)
    assert start_decoding(request, "", 100, vocabulary).wanted == 3


def test_autothink_budgets_by_the_question() -> None:
    vocabulary = Vocabulary(lambda text: list(text.encode()), lambda token: bytes([token]))
    request = EngineRequest(messages=(), sampling=SAMPLING, decoding=AutoThinkSettings())
    hard = "Prove that x^2 + 1 > 0 if x is real, and compute how many roots it has."
    easy, harder = (
        start_decoding(request, question, 1000, vocabulary).outcome().facts
        for question in ("Hi", hard)
    )
    assert isinstance(easy["most_thinking"], int)
    assert isinstance(harder["most_thinking"], int)
    assert easy["most_thinking"] < harder["most_thinking"]
