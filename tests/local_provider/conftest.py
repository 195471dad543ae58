"""The real embedded model, loaded once for all tests of a run."""

from collections.abc import Iterator
from typing import Any

import litellm
import pytest
from litellm.utils import custom_llm_setup

from optillm_hooks.local_provider import models
from optillm_hooks.local_provider.chat_format import ChatFormat
from optillm_hooks.local_provider.custom_llm import PROVIDER, LocalProvider


@pytest.fixture(scope="session")
def loaded() -> models.LoadedModel:
    return models.load(models.find("smollm2"))


@pytest.fixture(scope="session")
def chat_format(loaded: models.LoadedModel) -> ChatFormat:
    return ChatFormat(loaded.tokenizer, {loaded.tokenizer.eos_token_id})


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
