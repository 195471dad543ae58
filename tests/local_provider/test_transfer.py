"""Transfers to a device, and that sampling waits for the device once."""

from typing import Any, ClassVar

import pytest
import torch

from optillm_hooks.local_provider.engine_request import SamplingParams
from optillm_hooks.local_provider.sampling import sample
from optillm_hooks.local_provider.transfer import to_device
from optillm_hooks.local_provider.uncertainty import measure_uncertainty


def test_lists_travel_together_and_arrive_apart() -> None:
    first, none, last = to_device(torch.device("cpu"), [1, 2], [], range(3))
    assert [first.tolist(), none.tolist(), last.tolist()] == [[1, 2], [], [0, 1, 2]]
    assert first.dtype == torch.int64
    assert first.untyped_storage().data_ptr() == last.untyped_storage().data_ptr()


class Watched(torch.Tensor):
    """A tensor that counts how often its numbers are asked for: a GPU is waited for each time."""

    waits: ClassVar[int] = 0

    def tolist(self) -> Any:
        Watched.waits += 1
        return self.as_subclass(torch.Tensor).tolist()


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Watched, "waits", 0)


def test_sampling_waits_for_the_device_once_whatever_the_rows_ask_for() -> None:
    torch.manual_seed(0)
    logits = 8 * torch.randn(4, 1000)
    params = [
        SamplingParams(temperature=0),
        SamplingParams(temperature=1),
        SamplingParams(temperature=1, top_p=0.9),
        SamplingParams(temperature=0.7, top_k=5),
    ]
    numbers = [0.1, 0.5, 0.2, 0.9]
    tokens = sample(logits.as_subclass(Watched), params, numbers)
    assert Watched.waits == 1
    alone = [sample(logits[[b]], params[b : b + 1], numbers[b : b + 1])[0] for b in range(4)]
    assert tokens == alone


def test_all_metrics_of_uncertainty_come_in_one_transfer() -> None:
    logits = torch.randn(3, 50)
    measured = measure_uncertainty(logits.as_subclass(Watched), {"margin", "confidence", "entropy"})
    assert Watched.waits == 1
    for metric in ("margin", "confidence", "entropy"):
        (alone, *_) = measure_uncertainty(logits, {metric})
        assert getattr(alone, metric) == getattr(measured[0], metric)


def test_metrics_that_nobody_asked_for_are_zero() -> None:
    (found,) = measure_uncertainty(torch.randn(1, 50), {"entropy"})
    assert found.margin == found.confidence == 0 < found.entropy
