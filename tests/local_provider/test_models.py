"""Models in the operator's YAML: found, refused, loaded, with LoRA adapters."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import litellm
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from optillm_hooks.errors import ProviderFailed
from optillm_hooks.local_provider import models
from optillm_hooks.local_provider.custom_llm import PROVIDER, LocalProvider
from optillm_hooks.local_provider.engine_request import UnknownModel
from optillm_hooks.local_provider.loading import LoadedModel
from optillm_hooks.local_provider.runner import Runner

pytestmark = [
    # LiteLLM's own use of pydantic.
    pytest.mark.filterwarnings("ignore:.*`ReadOnly` qualifier:UserWarning"),
    pytest.mark.filterwarnings("ignore:Accessing the 'model_.*' attribute on the instance"),
    # PEFT's own use of transformers.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
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
        ({}, "optillm_local.path: is missing"),
        ({"path": "x", "dtyp": "auto"}, "optillm_local.dtyp: is unknown"),
        ({"path": "x", "device": "tpu"}, "optillm_local.device"),
        ({"path": "x", "rows": 0}, "optillm_local.rows"),
        ("/models/mine", "optillm_local: settings are expected"),
    ],
    ids=["no path", "misspelt", "device", "rows", "no settings"],
)
def test_a_wrong_configuration_says_where(configured: object, message: str) -> None:
    with pytest.raises(ProviderFailed, match=message):
        models.find("mine", configured)


@pytest.mark.anyio
@pytest.mark.usefixtures("litellm_in_this_loop")
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
    assert name == "tiny"
    assert models.ModelSpec.model_validate_json(spec).path == str(tiny)
    with pytest.raises(litellm.ContextWindowExceededError):
        await router.acompletion(
            model="mine", messages=[{"role": "user", "content": "word " * 300}]
        )


def test_a_model_is_loaded_in_the_configured_dtype(tiny: Path) -> None:
    spec = models.find("tiny", {"path": str(tiny), "dtype": "bfloat16", "device": "cpu"})
    assert models.load(spec).model.dtype == torch.bfloat16
    fastest = models.find("tiny", {"path": str(tiny), "dtype": "fastest", "device": "cpu"})
    assert models.load(fastest).model.dtype in (torch.bfloat16, torch.float32)


def test_a_folder_without_a_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=str(tmp_path)):
        models.load(models.find("empty", {"path": str(tmp_path)}))


@pytest.fixture(scope="module")
def adapters(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two LoRA adapters of the tiny model, made by PEFT."""
    torch.manual_seed(1)
    folders = {}
    for name, rslora in (("a", False), ("b", True)):
        config = LoraConfig(
            r=4,
            lora_alpha=64,
            use_rslora=rslora,
            target_modules=["q_proj", "up_proj"],
            init_lora_weights=False,  # or they would change nothing
        )
        folders[name] = str(tmp_path_factory.mktemp(name))
        made = get_peft_model(LlamaForCausalLM.from_pretrained(tiny), config)
        made.save_pretrained(folders[name])
    return folders


def reference(tiny: Path, folder: str | None) -> Any:
    """PEFT's own model, or the base's."""
    base = LlamaForCausalLM.from_pretrained(tiny)
    return base if folder is None else PeftModel.from_pretrained(base, folder)


@pytest.mark.parametrize(("dtype", "near"), [("float32", 1e-5), ("bfloat16", 0.05)])
def test_two_adapters_and_the_base_in_one_batch_give_the_logits_of_peft(
    tiny: Path, adapters: dict[str, str], dtype: str, near: float
) -> None:
    settings = {"path": str(tiny), "adapters": adapters, "dtype": dtype, "device": "cpu"}
    spec = models.find("tiny", settings)
    runner = Runner(models.load(spec).model, spec.adapters)
    prompts = {"a": [5, 6, 7, 8], "b": [9, 10], None: [11, 12, 13]}
    rows = {name: runner.begin(None, 0, name) for name in prompts}
    runner.step([(rows[name], prompt) for name, prompt in prompts.items()])
    backwards = list(reversed(prompts.items()))  # not in the order in which rows lie in memory
    logits = runner.step([(rows[name], [20]) for name, _ in backwards])
    for (name, prompt), row_logits in zip(backwards, logits, strict=True):
        ids = torch.tensor([[*prompt, 20]])
        with torch.inference_mode():
            theirs = reference(tiny, adapters[name] if name else None)(ids).logits[0, -1]
            base = reference(tiny, None)(ids).logits[0, -1]
        assert (row_logits - theirs).norm() < near * theirs.norm()
        assert name is None or (theirs - base).norm() > 0.2 * theirs.norm()


@pytest.mark.parametrize(
    ("selected", "lacks"),
    [
        ({}, True),
        ({"target_modules": r".*\.(q_proj|up_proj)"}, True),
        ({"target_modules": "all-linear"}, True),
        ({"layers_to_transform": [0]}, False),
        ({"layers_to_transform": 1}, True),
        ({"exclude_modules": ["layers.1.self_attn.q_proj"]}, False),
    ],
    ids=["names", "pattern", "all", "its layers", "other layers", "excluded"],
)
def test_an_adapter_that_lacks_a_layer_it_was_trained_for_is_refused(
    tiny: Path, adapters: dict[str, str], tmp_path: Path, selected: dict[str, Any], lacks: bool
) -> None:
    weights = load_file(Path(adapters["a"]) / "adapter_model.safetensors")
    gone = ["layers.1.self_attn.q_proj"]
    gone += ["layers.1.mlp"] if selected.get("layers_to_transform") == [0] else []
    kept = {key: w for key, w in weights.items() if not any(part in key for part in gone)}
    save_file(kept, tmp_path / "adapter_model.safetensors")
    config = json.loads((Path(adapters["a"]) / "adapter_config.json").read_text()) | selected
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    spec = models.find("tiny", {"path": str(tiny), "adapters": {"x": str(tmp_path)}})
    with pytest.raises(ProviderFailed, match="'x' lacks weights of") if lacks else nullcontext():
        models.start(spec)


@pytest.mark.parametrize("broken", ["missing", "truncated", "shape", "kind"])
def test_a_bad_adapter_is_an_error_when_it_is_loaded(
    tiny: Path, tmp_path: Path, broken: str
) -> None:
    if broken != "missing":
        kind = "IA3" if broken == "kind" else "LORA"
        config = {"peft_type": kind, "r": 4, "lora_alpha": 8}
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        key = "base_model.model.model.layers.0.self_attn.q_proj.lora"
        weights = {f"{key}_A.weight": torch.ones(4, 99), f"{key}_B.weight": torch.ones(32, 4)}
        save_file(weights, tmp_path / "adapter_model.safetensors")
    if broken == "truncated":
        file = tmp_path / "adapter_model.safetensors"
        file.write_bytes(file.read_bytes()[:-9])
    spec = models.find("tiny", {"path": str(tiny), "adapters": {"x": str(tmp_path)}})
    with pytest.raises(ProviderFailed, match="adapter 'x'"):
        models.start(spec)


@pytest.mark.parametrize(
    "key",
    [
        "layers.0.self_attn.q_proj.lora_B.bias",
        "layers.0.self_attn.q_proj.lora_magnitude_vector",
        "embed_tokens.lora_embedding_A",
        "norm.weight",
    ],
    ids=["lora_bias", "DoRA", "embedding", "modules_to_save"],
)
def test_an_adapter_with_a_tensor_that_would_not_be_used_is_refused(
    tiny: Path, adapters: dict[str, str], tmp_path: Path, key: str
) -> None:
    weights = load_file(Path(adapters["a"]) / "adapter_model.safetensors")
    weights[f"base_model.model.model.{key}"] = torch.ones(32)
    save_file(weights, tmp_path / "adapter_model.safetensors")
    shutil.copy(Path(adapters["a"]) / "adapter_config.json", tmp_path)
    spec = models.find("tiny", {"path": str(tiny), "adapters": {"x": str(tmp_path)}})
    with pytest.raises(
        ProviderFailed, match=f"adapter 'x' .*: it has base_model.model.model.{key}"
    ):
        models.start(spec)


@pytest.mark.parametrize(
    ("key", "value"),
    [("use_dora", True), ("alora_invocation_tokens", [7]), ("init_lora_weights", "pissa_niter_4")],
)
def test_an_adapter_that_computes_otherwise_with_the_same_tensors_is_refused(
    tiny: Path, adapters: dict[str, str], tmp_path: Path, key: str, value: object
) -> None:
    shutil.copytree(adapters["a"], tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {key: value}))
    spec = models.find("tiny", {"path": str(tiny), "adapters": {"x": str(tmp_path)}})
    with pytest.raises(ProviderFailed, match=f"adapter 'x' is not plain LoRA: .*{key}"):
        models.start(spec)


def test_an_adapter_of_the_output_layer_is_refused(tiny: Path, tmp_path: Path) -> None:
    """That layer is not given all tokens of a step, and adapters go by their places."""
    key = "base_model.model.lm_head.lora"
    size = LlamaConfig.from_pretrained(tiny).vocab_size
    weights = {f"{key}_A.weight": torch.ones(4, 32), f"{key}_B.weight": torch.ones(size, 4)}
    save_file(weights, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    spec = models.find("tiny", {"path": str(tiny), "adapters": {"x": str(tmp_path)}})
    with pytest.raises(ProviderFailed, match=r"does not fit the model: \['lm_head'\]"):
        models.start(spec)


@pytest.mark.anyio
async def test_a_name_with_a_plus_sign_uses_the_adapter_in_the_same_engine(
    tiny: Path, adapters: dict[str, str]
) -> None:
    provider = LocalProvider()
    info = {"model_info": {"optillm_local": {"path": str(tiny), "adapters": adapters}}}
    call: dict[str, Any] = {
        "messages": [{"role": "user", "content": "Hi"}],
        "optional_params": {"temperature": 0, "max_tokens": 8},
        "litellm_params": info,
    }
    base = await provider.acompletion("tiny", **call)
    adapted = await provider.acompletion("tiny+b", **call)
    chosen = {**call, "optional_params": {**call["optional_params"], "active_adapter": "b"}}
    by_field = await provider.acompletion("tiny", **chosen)
    assert adapted.choices[0].message.content == by_field.choices[0].message.content
    assert adapted.choices[0].message.content != base.choices[0].message.content
    assert len(provider._engines) == 1
    with pytest.raises(litellm.BadRequestError, match="no adapter 'c'; this model has: a, b"):
        await provider.acompletion("tiny+c", **call)


@pytest.mark.anyio
@pytest.mark.parametrize("model", ["tiny+c", "tiny"], ids=["in the name", "as a field"])
async def test_an_adapter_that_is_not_there_is_refused_before_anything_is_loaded(
    tiny: Path, adapters: dict[str, str], model: str
) -> None:
    provider = LocalProvider()
    call: dict[str, Any] = {
        "messages": [{"role": "user", "content": "Hi"}],
        "optional_params": {} if "+" in model else {"active_adapter": "c"},
        "litellm_params": {"model_info": {"optillm_local": {"path": str(tiny)}}},
    }
    with pytest.raises(litellm.BadRequestError, match="no adapter 'c'; this model has: none"):
        await provider.acompletion(model, **call)
    call["litellm_params"]["model_info"]["optillm_local"]["adapters"] = adapters
    with pytest.raises(litellm.BadRequestError, match="no adapter 'c'; this model has: a, b"):
        provider.astreaming(model, **call)
    assert not any(engine.loaded for engine in provider._engines.values())
