"""Models out of the operator's YAML: what is found, what is refused, and how one is loaded."""

from pathlib import Path
from typing import Any

import litellm
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from optillm_hooks.errors import ProviderFailed
from optillm_hooks.local_provider import models
from optillm_hooks.local_provider.custom_llm import PROVIDER, LocalProvider
from optillm_hooks.local_provider.generation import UnknownModel
from optillm_hooks.local_provider.models import LoadedModel

pytestmark = [
    # LiteLLM's own use of pydantic.
    pytest.mark.filterwarnings("ignore:.*`ReadOnly` qualifier:UserWarning"),
    pytest.mark.filterwarnings("ignore:Accessing the 'model_.*' attribute on the instance"),
]


@pytest.fixture(scope="module")
def tiny(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small random model, tied to the real tokenizer."""
    folder: Path = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(loaded.tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return folder


def test_an_unknown_name_loads_nothing() -> None:
    with pytest.raises(UnknownModel, match="no local model 'gpt2'; known: smollm2") as error:
        models.find("gpt2")
    assert error.value.status == 404


@pytest.mark.parametrize(
    ("configured", "message"),
    [
        ({}, "optillm_local.path: Field required"),
        ({"path": "x", "dtyp": "auto"}, "optillm_local.dtyp: Extra inputs"),
        ({"path": "x", "device": "tpu"}, "optillm_local.device"),
        ({"path": "x", "rows": 0}, "optillm_local.rows"),
    ],
    ids=["no path", "misspelt", "device", "rows"],
)
def test_a_wrong_configuration_says_where(configured: dict[str, Any], message: str) -> None:
    with pytest.raises(ProviderFailed, match=message):
        models.find("mine", configured)


@pytest.mark.anyio
async def test_the_router_serves_a_model_by_its_deployments_settings(tiny: Path) -> None:
    provider = LocalProvider()
    litellm.custom_provider_map = [{"provider": PROVIDER, "custom_handler": provider}]
    litellm.utils.custom_llm_setup()
    settings = {"path": str(tiny), "dtype": "bfloat16", "rows": 4}
    router = litellm.Router(
        [
            {
                "model_name": "mine",
                "litellm_params": {"model": f"{PROVIDER}/tiny"},
                "model_info": {"optillm_local": settings},
            }
        ]
    )
    messages = [{"role": "user", "content": "Hi"}]
    forged = {"optillm_local": {"path": "/etc"}}
    response = await router.acompletion(
        model="mine", messages=messages, max_tokens=4, seed=1, model_info=forged
    )
    assert response.usage.completion_tokens == 4
    ((name, spec),) = provider._engines
    assert (name, spec.path, spec.dtype) == ("tiny", str(tiny), "bfloat16")
    with pytest.raises(litellm.ContextWindowExceededError):
        await router.acompletion(
            model="mine", messages=[{"role": "user", "content": "word " * 300}]
        )


def test_a_model_takes_the_dtype_it_is_told(tiny: Path) -> None:
    spec = models.find("tiny", {"path": str(tiny), "dtype": "bfloat16", "device": "cpu"})
    assert models.load(spec).model.dtype == torch.bfloat16
    fastest = models.find("tiny", {"path": str(tiny), "dtype": "fastest", "device": "cpu"})
    assert models.load(fastest).model.dtype in (torch.bfloat16, torch.float32)


def test_a_folder_without_a_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=str(tmp_path)):
        models.load(models.find("empty", {"path": str(tmp_path)}))
