"""Without torch's private kernels, or with changed ones, the plain layers are used."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from optillm_hooks.local_provider import torch_ops
from optillm_hooks.local_provider.batch import Batch, Capacity
from optillm_hooks.local_provider.engine_request import EngineRequest, Piece, Submission
from optillm_hooks.local_provider.fast_layers import Packed
from optillm_hooks.local_provider.runner import Runner
from tests.local_provider import tiny

FORMAT = tiny.chat_format()
PRIVATE = {
    "mkldnn": ("_linear_pointwise", "_reorder_linear_weight", "_is_mkldnn_bf16_supported"),
    "aten": ("_scaled_dot_product_flash_attention_for_cpu",),
}
PACKS = torch_ops.can_pack_linear()


class Changed:
    """A namespace of torch's operations in which some are missing or replaced."""

    def __init__(self, namespace: Any, others: dict[str, Any]) -> None:
        self._namespace = namespace
        self._others = others

    def __getattr__(self, name: str) -> Any:
        if name not in self._others:
            return getattr(self._namespace, name)
        if self._others[name] is None:
            raise AttributeError(f"no operation {name}")
        return self._others[name]


@pytest.fixture(autouse=True)
def _probed_anew() -> Iterator[None]:
    probes = (torch_ops.can_pack_linear, torch_ops._can_flash_attend)
    for probe in probes:
        probe.cache_clear()
    yield
    for probe in probes:
        probe.cache_clear()


def change(monkeypatch: pytest.MonkeyPatch, names: dict[str, Any]) -> None:
    """Replace the operations `names`; None removes one."""
    for space, private in PRIVATE.items():
        others = {name: names[name] for name in private if name in names}
        monkeypatch.setattr(torch.ops, space, Changed(getattr(torch.ops, space), others))


def replies(runner: Runner) -> list[str]:
    """Return the texts of four samples of one shared prompt, served beside another request."""
    events: list[Any] = []
    batch = Batch(runner, FORMAT, Capacity(prefix_bytes=0))
    for text, n in (("a" * 100, 4), ("Hi", 1)):
        messages = [{"role": "user", "content": text}]
        request = EngineRequest(messages=messages, n=n, max_tokens=30, seed=5)
        batch.add(Submission(request, events.append))
    for _ in range(200):
        batch.step()
    assert batch.idle
    texts = ["", "", "", "", ""]
    for event in events:
        if isinstance(event, Piece):
            texts[event.choice] += event.text
    return texts


def other(*_args: Any, **_fields: Any) -> Any:
    raise TypeError("takes 3 positional arguments")


MISSING = dict.fromkeys(name for names in PRIVATE.values() for name in names)
ANOTHER_SIGNATURE = dict.fromkeys(("_linear_pointwise", *PRIVATE["aten"]), other)
ANOTHER_RESULT = {
    "_linear_pointwise": lambda tokens, weight, *_: tokens.new_zeros(
        *tokens.shape[:-1], len(weight)
    ),
    PRIVATE["aten"][0]: lambda query, *_, **__: (query, query[..., 0]),
}


@pytest.mark.parametrize(
    "names",
    [MISSING, ANOTHER_SIGNATURE, ANOTHER_RESULT],
    ids=["missing", "another signature", "another result"],
)
def test_without_the_private_kernels_a_model_writes_the_same_in_float32(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, names: dict[str, Any]
) -> None:
    expected = replies(tiny.runner())
    assert len(set(expected[:4])) > 1
    torch_ops._can_flash_attend.cache_clear()
    change(monkeypatch, names)
    with caplog.at_level(logging.INFO, logger=torch_ops.__name__):
        assert replies(tiny.runner()) == expected
    (line,) = [record.getMessage() for record in caplog.records]
    assert "flash attention with its logsumexp in torch.float32 not available" in line
    assert "using plain layers" in line


@pytest.mark.parametrize(
    "names",
    [MISSING, ANOTHER_SIGNATURE, ANOTHER_RESULT],
    ids=["missing", "another signature", "another result"],
)
def test_without_packed_layers_a_model_in_bfloat16_loads_with_plain_ones(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, names: dict[str, Any]
) -> None:
    change(monkeypatch, names)
    model = tiny.model().to(torch.bfloat16)
    with caplog.at_level(logging.INFO, logger=torch_ops.__name__):
        runner = Runner(model)
    assert any(replies(runner))
    assert not any(isinstance(layer, Packed) for layer in model.modules())
    lines = [record.getMessage() for record in caplog.records]
    assert sum("packed linear layers not available" in line for line in lines) == 1


def test_the_private_kernels_of_this_torch_pass_their_probe() -> None:
    """Else the comparisons above compare nothing."""
    assert torch_ops._can_flash_attend(torch.float32)
    assert torch_ops._can_flash_attend(torch.bfloat16)
    assert torch_ops.can_pack_linear() == PACKS == torch.ops.mkldnn._is_mkldnn_bf16_supported()
