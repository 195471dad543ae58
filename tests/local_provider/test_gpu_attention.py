"""The engine's layout for GPUs, on the CPU: steps as tables, slots of their own, replayed steps.

Plain torch stands in for the kernels, which read and write the slots at the table's addresses.
"""

import ctypes
import logging
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from optillm_hooks.local_provider import runner as runner_module
from optillm_hooks.local_provider.attention import Scores
from optillm_hooks.local_provider.batch import Batch, Capacity
from optillm_hooks.local_provider.engine_request import (
    EngineRequest,
    Event,
    Piece,
    SamplingParams,
    Submission,
)
from optillm_hooks.local_provider.gpu_attention import Before, Launch
from optillm_hooks.local_provider.kv_cache import LayerShape
from optillm_hooks.local_provider.runner import Runner
from optillm_hooks.local_provider.slots import anchor
from tests.local_provider import test_architectures, tiny

CPU = torch.device("cpu")


def keys_and_values(slot: Sequence[int], layer: LayerShape, before: Before) -> tuple[Tensor, ...]:
    """Return views of what a layer has in the slot [offset, capacity]: [heads, capacity, width]."""
    offset, capacity = slot
    start = anchor(CPU, torch.float32).data_ptr() + 64 * offset
    views = []
    for first, width in ((before.keys, layer.key_width), (before.values, layer.value_width)):
        numbers = layer.kind.kv_heads * capacity * width
        memory = (ctypes.c_float * numbers).from_address(start + 4 * capacity * first)
        flat = torch.frombuffer(memory, dtype=torch.float32)
        views.append(flat.view(layer.kind.kv_heads, capacity, width))
    return tuple(views)


class PlainKernels:
    """What the kernels do, one token at a time."""

    def store(
        self, key: Tensor, value: Tensor, writes: Tensor, layer: LayerShape, before: Before
    ) -> None:
        for token, (offset, capacity, place) in enumerate(writes.tolist()):
            if capacity:
                keys, values = keys_and_values((offset, capacity), layer, before)
                keys[:, place], values[:, place] = key[token], value[token]

    def attend(
        self,
        query: Tensor,
        out: Tensor,
        launch: Launch,
        positions: Tensor,
        prefixed: Tensor,
        layer: LayerShape,
        before: Before,
        scores: Scores,
    ) -> None:
        seen: dict[int, dict[int, list[int]]] = {}
        for segment, readers in zip(launch.segments.tolist(), launch.readers.tolist(), strict=True):
            for reader in readers:
                if reader >= 0:
                    assert segment[4] <= prefixed[reader]
                    seen.setdefault(reader, {})[segment[4]] = segment
        for reader, parts in seen.items():
            keys, values, places = [], [], []
            position = int(positions[reader])
            for offset, capacity, length, first, _part in parts.values():
                k, v = keys_and_values((offset, capacity), layer, before)
                keys.append(k[:, :length])
                values.append(v[:, :length])
                places.append(torch.arange(first, first + length))
            key, value, at = torch.cat(keys, 1), torch.cat(values, 1), torch.cat(places)
            visible = (at <= position) & (at >= layer.kind.first(position))
            q = query[reader].reshape(layer.kind.kv_heads, -1, layer.key_width)
            products = q @ key[:, visible].transpose(1, 2) * scores.scale
            if scores.softcap is not None:
                products = scores.softcap * torch.tanh(products / scores.softcap)
            if scores.sinks is not None:
                sinks = scores.sinks.view(layer.kind.kv_heads, -1, 1)
                products = torch.cat([products, sinks], dim=-1)
            weights = products.softmax(-1)[..., : int(visible.sum())]
            out[reader] = (weights @ value[:, visible]).reshape(-1, layer.value_width)


class Rerun:
    """Stands in for a CUDA graph: runs the same work again, on the same tensors."""

    def __init__(self, work: Callable[[], Tensor]) -> None:
        self.work = work
        self.result = work().clone()
        self.replays = 0

    def replay(self) -> Tensor:
        self.replays += 1
        self.result.copy_(self.work())
        return self.result


@pytest.fixture
def graphs() -> list[Rerun]:
    return []


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch, graphs: list[Rerun]) -> PlainKernels:
    """Models use these kernels and `graphs`, as on a GPU."""
    made = PlainKernels()

    def capture(work: Callable[[], Tensor]) -> Rerun:
        graphs.append(Rerun(work))
        return graphs[-1]

    monkeypatch.setattr(runner_module, "kernels_for", lambda _device, _dtype: made)
    monkeypatch.setattr(runner_module, "graphs_in_shared_memory", lambda: capture)
    return made


def expected(tokens: Sequence[int]) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = tiny.model()(torch.tensor([tokens])).logits[0, -1]
    return logits


def assert_as_the_model(logits: Tensor, held: Sequence[Sequence[int]]) -> None:
    for found, tokens in zip(logits, held, strict=True):
        assert (found - expected(tokens)).abs().max() < 1e-3


def test_steps_of_all_kinds_give_the_models_logits(graphs: list[Rerun]) -> None:
    """Prompts, chunks beside single tokens, shared prefixes, rows that come and go."""
    runner = tiny.runner()
    texts = [[5 + i * k % 200 for i in range(n)] for k, n in ((1, 300), (3, 5), (7, 40))]
    rows = [runner.begin(None, 0) for _ in texts]
    assert_as_the_model(runner.step(list(zip(rows, texts, strict=True))), texts)
    prefix = runner.snapshot(rows[2], texts[2])
    rows += [runner.fork(prefix, shared=True) for _ in range(3)]
    held = [*map(list, texts), *(list(texts[2]) for _ in range(3))]

    def feed(fed: dict[int, list[int]]) -> None:
        for i, tokens in fed.items():
            held[i] += tokens
        logits = runner.step([(rows[i], tokens) for i, tokens in fed.items()])
        assert_as_the_model(logits, [held[i] for i in fed])

    feed({4: [9], 0: [8, 7, 6], 1: [5], 5: [4, 3]})
    feed({i: [10 + i] for i in range(6)})
    replays = sum(graph.replays for graph in graphs)
    feed({i: [20 + i] for i in (5, 0, 3, 1, 2, 4)})
    assert sum(graph.replays for graph in graphs) == replays + 1
    for i in (3, 0):
        runner.free(rows.pop(i))
        held.pop(i)
    feed({i: [30 + i] for i in range(4)})
    feed({1: [250 % 200 + 5] * 230})
    feed({1: [77], 0: [78]})


@pytest.mark.parametrize(
    "family", ["deepseek_v3", "gemma2", "gemma4_text", "gpt_oss", "llama4_text", "qwen2"]
)
def test_models_with_windows_sinks_and_caps_write_what_generate_writes(
    family: str, graphs: list[Rerun]
) -> None:
    test_architectures.test_a_batch_writes_what_generate_writes(family)
    assert sum(graph.replays for graph in graphs) > 5


def test_rows_keep_their_slots_when_a_pool_grows() -> None:
    runner = tiny.runner()
    first = runner.begin(None, 0)
    address = first.held()[0].data_ptr()
    others = [runner.begin(None, 0) for _ in range(9)]
    assert first.held()[0].data_ptr() == address
    assert runner.kv_cache.bytes == runner.kv_cache.bytes_for(10, 1)
    for row in (first, *others):
        runner.free(row)
    assert runner.kv_cache.bytes == 0


def replies(runner: Runner, count: int) -> list[str]:
    """Return replies to concurrent requests, greedy and seeded, some with several choices."""
    batch = Batch(runner, tiny.chat_format(), Capacity())
    events: list[list[Event]] = [[] for _ in range(count)]
    for number, seen in enumerate(events):
        request = EngineRequest(
            messages=[{"role": "user", "content": f"{number} " * (1 + 30 * number)}],
            sampling=SamplingParams(temperature=number % 2),
            max_tokens=12,
            seed=number,
            n=1 + number % 3,
        )
        batch.add(Submission(request, seen.append))
    while not batch.idle:
        batch.step()
    assert not [event for seen in events for event in seen if isinstance(event, Exception)]
    return ["".join(e.text for e in seen if isinstance(e, Piece)) for seen in events]


def test_texts_are_those_of_the_layout_for_cpus(
    monkeypatch: pytest.MonkeyPatch, graphs: list[Rerun]
) -> None:
    found = replies(tiny.runner(), 7)
    assert sum(graph.replays for graph in graphs) > 5
    monkeypatch.undo()
    assert found == replies(tiny.runner(), 7)


def test_a_step_that_cannot_be_captured_runs_without_a_graph(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    attempts = 0

    def fail(_work: object) -> Rerun:
        nonlocal attempts
        attempts += 1
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(runner_module, "graphs_in_shared_memory", lambda: fail)
    with caplog.at_level(logging.WARNING):
        found = replies(tiny.runner(), 4)
    assert attempts == len(caplog.records) == 1
    assert "without CUDA graphs: RuntimeError: operation not permitted" in caplog.text
    monkeypatch.undo()
    assert found == replies(tiny.runner(), 4)


def test_kernels_that_do_not_work_are_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(PlainKernels, "attend", fail)
    runner = tiny.runner()
    assert "without the kernels for GPUs: RuntimeError: no C compiler" in caplog.text
    row = runner.begin(None, 0)
    assert_as_the_model(runner.step([(row, [5, 6, 7])]), [[5, 6, 7]])


def test_adapters_and_steering_are_not_captured(graphs: list[Rerun]) -> None:
    runner = tiny.runner()
    row = runner.begin(None, 0)
    runner.step([(row, [5, 6])])
    runner.step([(row, [7])])
    captured, replays = len(graphs), sum(graph.replays for graph in graphs)
    row.steering = {"calm": 0.5}
    runner.step([(row, [8])])
    row.steering, row.adapter = {}, "style"
    runner.step([(row, [9])])
    assert len(graphs) == captured
    assert sum(graph.replays for graph in graphs) == replays
