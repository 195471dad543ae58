import math

import pytest
import torch

from optillm_hooks.decoding.entropy_decoding import EntropySettings
from optillm_hooks.local_provider.decoding.entropy_decoding import adapted
from optillm_hooks.local_provider.engine_request import SamplingParams
from optillm_hooks.local_provider.uncertainty import Uncertainty, measure_uncertainty

SETTINGS = EntropySettings()
SAMPLING = SamplingParams(temperature=0.8, top_p=0.9, top_k=3, min_p=0.1)


@pytest.mark.parametrize(
    ("entropy", "varentropy", "sampling"),
    [
        (0.05, 0.05, SamplingParams(0.0, 0.9, 3, 0.1)),
        (4.0, 0.05, SamplingParams(0.8 * 1.3, 0.9, 3, 0.1)),
        (4.0, 6.0, SamplingParams(0.8 * 1.2, 0.9, 5, 0.1)),
        (6.0, 6.0, SamplingParams(0.8 * 1.5, 0.7, 3, 0.1)),
        (1.0, 1.0, SamplingParams(0.8, 0.9, 3, 0.1 * 0.8)),
    ],
    ids=["certain", "hesitant", "fork", "fog", "ordinary"],
)
def test_the_law_follows_the_uncertainty(
    entropy: float, varentropy: float, sampling: SamplingParams
) -> None:
    found = adapted(SAMPLING, Uncertainty(entropy=entropy, varentropy=varentropy), SETTINGS)
    assert found.temperature == pytest.approx(sampling.temperature)
    assert found.top_p == pytest.approx(sampling.top_p)
    assert found.top_k == sampling.top_k
    assert found.min_p == pytest.approx(sampling.min_p)


@pytest.mark.parametrize("entropy", [0.0, 4.0, 9.0])
def test_temperature_zero_stays_greedy(entropy: float) -> None:
    uncertainty = Uncertainty(entropy=entropy, varentropy=6.0)
    assert adapted(SamplingParams(temperature=0), uncertainty, SETTINGS).temperature == 0


def test_no_rule_exceeds_the_most_temperature_but_a_client_may() -> None:
    fog = Uncertainty(entropy=6.0, varentropy=6.0)
    assert adapted(SamplingParams(1.4), fog, SETTINGS).temperature == 1.5
    assert adapted(SamplingParams(1.9), fog, SETTINGS).temperature == 1.9


def test_the_measures_agree_with_values_worked_by_hand() -> None:
    """p = 1/2, 1/4, 1/4: H = 1.5 bits, V = 1/2 * 0.25 + 1/2 * 0.25 = 0.25, margin 1/4."""
    logits = torch.tensor([[0.5, 0.25, 0.25]]).log()
    (m,) = measure_uncertainty(logits, {"entropy", "margin", "confidence"})
    assert m.entropy == pytest.approx(1.5)
    assert m.varentropy == pytest.approx(0.25)
    assert m.margin == pytest.approx(0.25)
    assert m.confidence == pytest.approx(-(math.log(0.5) + 2 * math.log(0.25)) / 3)
    even = torch.zeros(1, 8)
    (m,) = measure_uncertainty(even, {"entropy"})
    assert m.entropy == pytest.approx(3.0)
    assert m.varentropy == pytest.approx(0.0, abs=1e-5)
