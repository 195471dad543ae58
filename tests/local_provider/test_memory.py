"""Memory and threads of local models: what is free decides, and what is unloaded is given back."""

import ctypes
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from optillm_hooks.local_provider import eviction, models
from optillm_hooks.local_provider.batch import Batch, Capacity
from optillm_hooks.local_provider.engine import Engine
from optillm_hooks.local_provider.engine_request import EngineRequest
from tests.local_provider import tiny

GIB = 1 << 30
KEPT = 1000
"""Bytes that torch keeps of the GPU's memory without using them."""


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The free bytes of each device and of the container, for a test to set."""
    found: dict[str, float] = {"cpu": 64 * GIB, "cuda:0": 10 * GIB, "cgroup": float("inf")}
    monkeypatch.setattr(
        psutil, "virtual_memory", lambda: SimpleNamespace(available=found["cpu"], total=1 << 50)
    )
    monkeypatch.setattr(eviction, "memory_left_by_cgroup", lambda: found["cgroup"])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (found[device], 1 << 50))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 5 * KEPT)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 4 * KEPT)
    return found


def spec(**settings: Any) -> models.ModelSpec:
    return models.find("mine", {"path": "x", **settings})


def test_models_may_have_a_share_of_what_is_free_and_what_they_have(free: dict[str, float]) -> None:
    assert models.memory_limit(spec(device="cpu"), 7) == 7 + int(0.8 * 64 * GIB)
    free["cgroup"] = 5 * GIB
    assert models.memory_limit(spec(device="cpu"), 0) == 4 * GIB
    assert models.memory_limit(spec(device="cuda"), 7) == 7 + int(0.8 * (10 * GIB + KEPT))
    assert models.memory_limit(spec(device="cuda", models_gib=2), 7) == 2 * GIB


def test_a_kv_cache_has_a_share_of_what_the_weights_leave_free(free: dict[str, float]) -> None:
    assert eviction.memory_for_kv("cuda:0", 4000) == int(0.4 * (10 * GIB + KEPT - 4000))
    assert eviction.memory_for_kv("cpu", 0) == 4 * GIB
    free["cpu"] = 5 * GIB
    assert eviction.memory_for_kv("cpu", GIB) == int(0.4 * 4 * GIB)
    free["cgroup"] = -1.0  # a group that is over its limit already
    assert eviction.memory_for_kv("cpu", GIB) == 0


@pytest.mark.parametrize(("kv_gib", "kv_bytes"), [(None, 2 * GIB), (3.0, 3 * GIB)])
def test_the_kv_cache_of_a_model_is_bounded_by_its_setting_or_by_free_memory(
    free: dict[str, float], tmp_path: Path, kv_gib: float | None, kv_bytes: int
) -> None:
    tiny.model().save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    free["cpu"] = 5 * GIB
    settings = {"device": "cpu", "kv_gib": kv_gib, "prefix_gib": 0, "threads": 1}
    batch = models.start(spec(path=str(tmp_path), **settings))
    assert batch._capacity.kv_bytes == kv_bytes


@pytest.mark.parametrize(
    ("cpus", "cores", "threads"),
    [(64, 32, 32), (2, 2, 1), (1, 1, 1), (8, 8, 7)],
    ids=["two threads per core", "two cores, or a quota of 2", "one", "eight cores"],
)
def test_there_is_a_thread_for_each_core_and_a_processor_for_the_event_loop(
    monkeypatch: pytest.MonkeyPatch, cpus: int, cores: int, threads: int
) -> None:
    monkeypatch.setattr(models, "cpus", lambda: cpus)
    monkeypatch.setattr(models, "cores", lambda: cores)
    assert models.default_threads() == threads


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc")
def test_freed_main_memory_goes_back_to_the_system() -> None:
    weights = [torch.ones(20_000) for _ in range(2000)]
    after = torch.ones(100)  # what lies above them keeps them from being given back
    held = psutil.Process().memory_info().rss
    del weights
    eviction.release_memory()
    assert psutil.Process().memory_info().rss < held - 100e6
    assert after.sum() == 100


@pytest.mark.anyio
async def test_an_unloaded_model_gives_back_the_memory_of_its_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    emptied: list[Any] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    engine = Engine("tiny", lambda: Batch(tiny.runner(), tiny.chat_format(), Capacity()))
    async for _ in engine.stream(
        EngineRequest(messages=[{"role": "user", "content": "Hi"}], max_tokens=2)
    ):
        pass
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(engine._batch))
    while not engine.unload():
        pass
    engine.close()
    assert emptied
    assert emptied[-1] is None
