"""Local models through LiteLLM's router, as the proxy calls them."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import litellm
import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model

from optillm_hooks.local_provider.custom_llm import PROVIDER, LocalProvider
from tests.documents import all_blocks
from tests.local_provider import tiny

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.usefixtures("litellm_in_this_loop"),
    # LiteLLM's own use of pydantic.
    pytest.mark.filterwarnings("ignore:.*`ReadOnly` qualifier:UserWarning"),
    pytest.mark.filterwarnings("ignore:Accessing the 'model_.*' attribute on the instance"),
    # PEFT's own use of transformers.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
HI = [{"role": "user", "content": "Hi"}]
ENDLESS = {tiny.SPELLED[-1]: 90}
"""A word for every token, so that none ends a reply."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("tiny")
    tiny.model(8192).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def provider() -> Iterator[LocalProvider]:
    """A new one, which LiteLLM knows."""
    before, provider = litellm.custom_provider_map, LocalProvider()
    litellm.custom_provider_map = [{"provider": PROVIDER, "custom_handler": provider}]
    litellm.utils.custom_llm_setup()
    yield provider
    litellm.custom_provider_map = before
    for engine in provider._engines.values():
        engine.close()


async def test_the_documented_names_of_a_model_and_its_adapter_share_one_engine(
    provider: LocalProvider, folder: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    lora = LoraConfig(r=4, lora_alpha=64, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(tiny.model(8192), lora).save_pretrained(tmp_path)
    (block,) = [b for b in all_blocks() if f"{PROVIDER}/mine+polite" in b.text]
    text = block.text.replace("/models/mine", str(folder)).replace("fastest", "float32")
    config = yaml.safe_load(text.replace("/models/polite-lora", str(tmp_path)))
    router = litellm.Router(config["model_list"])
    call: dict[str, Any] = {"messages": HI, "temperature": 0, "max_tokens": 12}
    ways = ({"model": "mine"}, {"model": "mine+polite"},
            {"model": "mine", "active_adapter": "polite"})  # fmt: skip
    answers = [await router.acompletion(**call, **way) for way in ways]
    base, by_name, by_field = (answer.choices[0].message.content for answer in answers)
    assert by_name == by_field != base
    assert len(provider._engines) == 1


@pytest.mark.parametrize("stream", [True, False], ids=["stream closed", "task cancelled"])
async def test_a_request_that_its_caller_gives_up_leaves_no_row(
    provider: LocalProvider, folder: Path, stream: bool
) -> None:
    info = {"optillm_local": {"path": str(folder), "device": "cpu"}}
    model = {"model": f"{PROVIDER}/tiny", "max_retries": 0}
    router = litellm.Router([{"model_name": "mine", "litellm_params": model, "model_info": info}])
    await router.acompletion(model="mine", messages=HI, max_tokens=1)
    (engine,) = provider._engines.values()
    assert engine._batch is not None
    rows = engine._batch._runner.kv_cache
    call = {"messages": HI, "n": 2, "max_tokens": 8000, "logit_bias": ENDLESS}
    if stream:
        chunks = await router.acompletion(model="mine", **call, stream=True)
        await anext(chunks)
        assert list(rows.rows())
        await chunks.aclose()
    else:
        task = asyncio.create_task(router.acompletion(model="mine", **call))
        while len(list(rows.rows())) < 2:  # noqa: ASYNC110 (another thread makes them)
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await router.acompletion(model="mine", messages=HI, max_tokens=1)
    assert not list(rows.rows())
    assert rows.bytes == 0
