"""The real embedded model, loaded once for all tests of a run."""

from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import litellm
import pytest
import torch
from litellm.utils import custom_llm_setup

from optillm_hooks.local_provider import models
from optillm_hooks.local_provider.batch import Batch
from optillm_hooks.local_provider.chat_format import ChatFormat
from optillm_hooks.local_provider.custom_llm import PROVIDER, LocalProvider
from optillm_hooks.local_provider.runner import Runner

# Threads of torch wait for one another by spinning: beside other work on the same cores, two are
# slower than one.
torch.set_num_threads(1)

MAX_STEPS = 20_000
"""Far above what any test takes: the longest reply has 4,000 tokens."""


@pytest.fixture(autouse=True)
def _bounded_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the requests of a batch that never becomes idle: the test fails instead of hanging."""
    step = Batch.step
    taken = WeakKeyDictionary[Batch, int]()  # tests see that idle models leave memory

    def bounded(batch: Batch) -> None:
        taken[batch] = taken.get(batch, 0) + 1
        assert taken[batch] <= MAX_STEPS, f"the batch is not idle after {MAX_STEPS} steps"
        step(batch)

    monkeypatch.setattr(Batch, "step", bounded)


@pytest.fixture(scope="session")
def loaded() -> models.LoadedModel:
    """Transformers' own model, untouched: the reference."""
    return models.load(models.find("smollm2"))


@pytest.fixture(scope="session")
def runner() -> Runner:
    return Runner(models.load(models.find("smollm2")).model)


@pytest.fixture(scope="session")
def chat_format(loaded: models.LoadedModel) -> ChatFormat:
    return ChatFormat(loaded.tokenizer, models.end_ids(loaded))


@pytest.fixture(scope="session")
def token_ids(loaded: models.LoadedModel, chat_format: ChatFormat) -> dict[bytes, int]:
    """The id of each token that is not special, by its spelling."""
    return {chat_format.token_bytes(token): token for token in range(17, len(loaded.tokenizer))}


@pytest.fixture(scope="session")
def provider() -> LocalProvider:
    return LocalProvider()


@pytest.fixture
def served(provider: LocalProvider) -> Iterator[dict[str, Any]]:
    """LiteLLM with the provider; gives the arguments that every call shares."""
    before = litellm.custom_provider_map
    litellm.custom_provider_map = [{"provider": PROVIDER, "custom_handler": provider}]
    custom_llm_setup()
    question = {"role": "user", "content": "What is the capital of France?"}
    yield {"model": f"{PROVIDER}/smollm2", "messages": [question]}
    litellm.custom_provider_map = before
