"""LRU eviction of idle models: several models in one process share its memory."""

import asyncio
import gc
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import litellm
import pytest

from optillm_hooks.errors import ProviderFailed
from optillm_hooks.local_provider import models
from optillm_hooks.local_provider.batch import Batch, Capacity
from optillm_hooks.local_provider.custom_llm import LocalProvider
from optillm_hooks.local_provider.engine import Engine
from optillm_hooks.local_provider.engine_request import EngineRequest
from optillm_hooks.local_provider.eviction import make_room
from optillm_hooks.local_provider.runner import Runner
from tests.local_provider import tiny

pytestmark = pytest.mark.anyio
MESSAGES = [{"role": "user", "content": "Hi"}]
ENDLESS = {tiny.SPELLED[-1]: 90.0}
"""A word for every token, so that none ends a reply."""


@dataclass
class Model:
    name: str
    bytes: int
    last_used: float
    busy: bool = False

    def unload(self) -> bool:
        self.bytes = self.bytes if self.busy else 0
        return not self.busy


def test_the_least_recently_used_are_evicted_and_no_more_than_necessary() -> None:
    old, middle, new = Model("a", 30, 1), Model("b", 20, 2), Model("c", 10, 3)
    make_room("x", 40, 100, [new, middle, old])
    assert [old.bytes, middle.bytes, new.bytes] == [30, 20, 10]
    make_room("x", 50, 100, [new, middle, old])
    assert [old.bytes, middle.bytes, new.bytes] == [0, 20, 10]


def test_what_is_in_use_stays_and_the_next_one_leaves() -> None:
    old, new = Model("a", 30, 1, busy=True), Model("b", 30, 2)
    make_room("x", 60, 100, [old, new])
    assert [old.bytes, new.bytes] == [30, 0]
    with pytest.raises(
        ProviderFailed, match="not enough memory for x while these models are in use: a"
    ) as full:
        make_room("x", 80, 100, [old, new])
    assert full.value.status == 503


def test_a_model_that_never_fits_is_refused_and_evicts_none() -> None:
    other = Model("a", 30, 1)
    with pytest.raises(ProviderFailed, match=r"x needs 0\.0 GiB") as never:
        make_room("x", 101, 100, [other])
    assert never.value.status == 500
    assert other.bytes == 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = tmp_path_factory.mktemp("tiny")
    tiny.model(8192).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


def test_the_bytes_of_a_model_are_known_before_it_is_read(folder: str) -> None:
    for dtype in ("auto", "bfloat16", "float32"):
        spec = models.find("tiny", {"path": folder, "dtype": dtype, "device": "cpu"})
        assert models.weight_bytes(spec) == Runner(models.load(spec).model).weight_bytes


def call(folder: str, share: float, **fields: Any) -> dict[str, Any]:
    """A request to a model of which `share` fit into the memory of its device."""
    spec = {"path": folder, "device": "cpu"}
    gib = share * models.weight_bytes(models.find("tiny", spec)) / 2**30
    return {
        "messages": MESSAGES,
        "optional_params": {"max_tokens": 3, **fields},
        "litellm_params": {"model_info": {"optillm_local": {**spec, "models_gib": gib}}},
    }


def counted_loads(monkeypatch: pytest.MonkeyPatch) -> list[models.ModelSpec]:
    loads: list[models.ModelSpec] = []
    start = models.start

    def counted(spec: models.ModelSpec) -> Batch:
        loads.append(spec)
        return start(spec)

    monkeypatch.setattr(models, "start", counted)
    return loads


async def test_an_idle_model_leaves_for_another_and_comes_back(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = counted_loads(monkeypatch)
    provider = LocalProvider()
    one = call(folder, 1.5)
    async with asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(provider.acompletion("a", **one))
    assert len(loads) == 1
    held = weakref.ref(next(iter(provider._engines.values()))._batch)
    await provider.acompletion("b", **one)
    a, b = provider._engines.values()
    assert (a.loaded, b.loaded) == (False, True)
    gc.collect()
    assert held() is None
    again = call(folder, 1.5, logit_bias=ENDLESS)
    assert (await provider.acompletion("a", **again)).usage.completion_tokens == 3
    assert (a.loaded, b.loaded, len(loads)) == (True, False, 3)
    for engine in (a, b):
        engine.close()


async def test_models_that_fit_together_stay_and_first_requests_load_each_once(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = counted_loads(monkeypatch)
    provider = LocalProvider()
    async with asyncio.TaskGroup() as group:
        for name in "abc" * 4:
            group.create_task(provider.acompletion(name, **call(folder, 1000)))
    assert len(loads) == 3
    assert all(engine.loaded for engine in provider._engines.values())
    for engine in provider._engines.values():
        engine.close()


async def test_a_model_in_use_does_not_leave(folder: str) -> None:
    provider = LocalProvider()
    endless = call(folder, 1.5, max_tokens=8000, logit_bias=ENDLESS)
    busy: Any = provider.astreaming("a", **endless)
    await anext(busy)
    with pytest.raises(
        litellm.ServiceUnavailableError,
        match="not enough memory for b while these models are in use: a",
    ):
        await provider.acompletion("b", **call(folder, 1.5))
    (a, _) = provider._engines.values()
    assert a.loaded
    assert await anext(busy)
    await busy.aclose()
    while not a.unload():  # noqa: ASYNC110 (another thread lets go of the row)
        await asyncio.sleep(0)
    await provider.acompletion("b", **call(folder, 1.5))
    for engine in provider._engines.values():
        engine.close()


async def test_an_engine_asked_to_unload_between_requests_does_and_in_one_does_not() -> None:
    runner, chat_format = tiny.runner(), tiny.chat_format()
    engine = Engine("tiny", lambda: Batch(runner, chat_format, Capacity()))
    assert engine.unload()
    assert engine.bytes == 0
    events = engine.stream(EngineRequest(messages=MESSAGES, max_tokens=1000, logit_bias=ENDLESS))
    await anext(events)
    assert engine.bytes > runner.weight_bytes > 0
    assert not engine.unload()
    assert engine.loaded
    await events.aclose()
    while not engine.unload():  # noqa: ASYNC110 (another thread lets go of the row)
        await asyncio.sleep(0)
    assert engine.bytes == 0
    engine.close()
