import math
from collections import Counter

import pytest
import torch

from optillm_hooks.local_provider.engine_request import EngineRequest, SamplingParams
from optillm_hooks.local_provider.sampling import add_offsets, sample, token_logprobs

PROBABILITIES = [0.05, 0.4, 0.03, 0.25, 0.15, 0.12]
LOGITS = torch.tensor(PROBABILITIES).log()[None]


def exact(sampling: SamplingParams) -> list[float]:
    """Return the distribution of `sampling`, worked out over plain numbers."""
    tempered = [p ** (1 / sampling.temperature) for p in PROBABILITIES]
    order = sorted(range(len(tempered)), key=lambda i: -tempered[i])
    order = order[: sampling.top_k or len(order)]
    total = sum(tempered[i] for i in order)
    nucleus: list[int] = []
    mass = 0.0
    for i in order:
        if mass >= sampling.top_p:
            break
        nucleus.append(i)
        mass += tempered[i] / total
    nucleus = [i for i in nucleus if tempered[i] >= sampling.min_p * tempered[order[0]]]
    total = sum(tempered[i] for i in nucleus)
    return [tempered[i] / total if i in nucleus else 0.0 for i in range(len(tempered))]


@pytest.mark.parametrize(
    "sampling",
    [
        pytest.param(SamplingParams(), id="plain"),
        pytest.param(SamplingParams(temperature=0.5), id="cold"),
        pytest.param(SamplingParams(temperature=1.7), id="hot"),
        pytest.param(SamplingParams(top_k=3), id="top_k"),
        pytest.param(SamplingParams(top_p=0.7), id="top_p"),
        pytest.param(SamplingParams(min_p=0.3), id="min_p"),
        pytest.param(
            SamplingParams(temperature=1.4, top_k=5, top_p=0.9, min_p=0.15), id="all together"
        ),
    ],
)
def test_a_grid_of_uniform_numbers_gives_the_exact_shares(sampling: SamplingParams) -> None:
    """Deterministic: with n evenly spaced numbers a share is within 1/n of its probability."""
    n = 2000
    tokens = sample(LOGITS.expand(n, -1), [sampling] * n, [(i + 0.5) / n for i in range(n)])
    counts = Counter(tokens)
    for token, probability in enumerate(exact(sampling)):
        assert abs(counts[token] / n - probability) <= 1.01 / n


@pytest.mark.parametrize(
    "sampling", [SamplingParams(1e-300), SamplingParams(1e-45, top_p=0.9), SamplingParams(1e-6)]
)
def test_a_temperature_next_to_zero_is_like_zero(sampling: SamplingParams) -> None:
    assert sample(
        torch.tensor([[1.0, 3.0, 2.0], [-80.0, -90.0, 80.0]]), [sampling] * 2, [0.99, 0.5]
    ) == [
        1,
        2,
    ]


def test_temperature_zero_takes_the_likeliest_and_the_first_of_equals() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0], [5.0, 0.0, 1.0]])
    assert sample(logits, [SamplingParams(temperature=0)] * 2, [0.99, 0.99]) == [1, 0]


def test_a_row_draws_the_same_token_alone_and_in_a_crowd() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 5000, generator=generator) * 3
    params = [
        SamplingParams(),
        SamplingParams(top_p=0.8),
        SamplingParams(top_k=400),
        SamplingParams(0),
        SamplingParams(min_p=0.1),
        SamplingParams(1.5, 0.999),
    ]
    uniforms = torch.rand(6, generator=generator).tolist()
    together = sample(logits, params, uniforms)
    alone = [sample(logits[b : b + 1], params[b : b + 1], uniforms[b : b + 1])[0] for b in range(6)]
    assert together == alone


def test_a_nucleus_wider_than_the_sorted_head_is_drawn_from_in_full() -> None:
    """4,000 equal tokens, top_p 0.9: the last of the nucleus is number 3,599 of the order."""
    logits = torch.zeros(1, 4000)
    drawn = {
        sample(logits, [SamplingParams(top_p=0.9)], [(i + 0.5) / 3600])[0] for i in range(3600)
    }
    assert len(drawn) == 3600


def test_scores_are_of_the_model_and_hold_the_chosen_token() -> None:
    (scored,) = token_logprobs(LOGITS, [2], top=2)
    assert scored.id == 2
    assert scored.logprob == pytest.approx(math.log(0.03), abs=1e-5)
    assert [token for token, _ in scored.top] == [1, 3]
    assert [p for _, p in scored.top] == pytest.approx([math.log(0.4), math.log(0.25)], abs=1e-5)


def test_penalties_and_bias_are_those_that_openai_defines() -> None:
    """z - frequency * count - presence * [count > 0] + bias, over what the choice wrote."""
    request = EngineRequest(
        messages=[], presence_penalty=0.5, frequency_penalty=-0.25, logit_bias={1: 3.0, 4: -100.0}
    )
    shifts = request.logit_offsets({1: 2, 2: 1})
    assert shifts == {1: 3.0 + 0.5 - 0.5, 4: -100.0, 2: 0.25 - 0.5}
    logits = add_offsets(torch.ones(2, 5), [shifts, {}])
    assert logits.tolist() == [[1.0, 4.0, 0.75, 1.0, -99.0], [1.0] * 5]


@pytest.mark.parametrize(
    "sampling", [SamplingParams(), SamplingParams(top_k=3)], ids=["plain", "cut"]
)
def test_a_number_next_to_one_draws_a_token_that_can_be_drawn(sampling: SamplingParams) -> None:
    """In float32 the largest number below 1 in float64 is 1."""
    logits = torch.tensor([[0.0, 1.0, -torch.inf, 0.5, -torch.inf, -torch.inf]])
    assert sample(logits, [sampling], [1 - 2**-53])[0] in (0, 1, 3)
