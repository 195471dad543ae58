"""A model is served whole or not at all: what is missing from its files is an error at load."""

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from optillm_hooks.errors import OptiLLMError, ProviderFailed, RequestRejected
from optillm_hooks.local_provider import models
from optillm_hooks.local_provider.engine import Engine
from optillm_hooks.local_provider.engine_request import Choice
from optillm_hooks.local_provider.request import parse_request
from tests.local_provider import tiny
from tests.local_provider.test_exactness import choices

QUERY = "model.layers.0.self_attn.q_proj.weight"
Change = Callable[[dict[str, Tensor]], object]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("whole")
    tiny.model().save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    return tmp_path


def load(folder: Path) -> models.LoadedModel:
    return models.load(models.find("mine", {"path": str(folder), "device": "cpu"}))


def rewrite(folder: Path, change: Change) -> None:
    """Change the weights of a folder."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


def configure(folder: Path, **settings: object) -> None:
    """Change the `config.json` of a folder."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop(QUERY), rf"1 missing \({QUERY}\)"),
        (
            lambda w: [w.pop(k) for k in list(w) if ".mlp." in k],
            r"6 missing \(.*, .*, .*, \.\.\.\)",
        ),
        (lambda w: w.update({"v_head.weight": torch.ones(1)}), r"1 unexpected \(v_head\.weight\)"),
        (
            lambda w: w.update({QUERY: torch.ones(3, 4)}),
            r"shape \(.* is \[3, 4\], not \[32, 32\]\)",
        ),
        (lambda w: w.pop("lm_head.weight"), r"1 missing \(lm_head\.weight\)"),
    ],
    ids=["missing", "many", "unexpected", "another shape", "an output layer that is not tied"],
)
def test_weights_that_do_not_fit_the_model_are_named(
    folder: Path, change: Change, message: str
) -> None:
    rewrite(folder, change)
    with pytest.raises(ProviderFailed, match=message) as refused:
        load(folder)
    assert str(folder) in str(refused.value)
    assert refused.value.status == 500


def test_tied_weights_old_buffers_and_other_towers_are_not_missed(folder: Path) -> None:
    more = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "vision_tower.blocks.0.weight": torch.ones(2),
        "multi_modal_projector.linear.weight": torch.ones(2),
    }
    rewrite(folder, lambda w: (w.pop("lm_head.weight"), w.update(more)))
    configure(folder, tie_word_embeddings=True)
    model = load(folder).model
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_missing_shard_is_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    tiny.model().save_pretrained(folder, max_shard_size="20KB")
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(OSError, match=shard.name):
        load(folder)


def test_a_truncated_weights_file_is_called_damaged(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ProviderFailed, match=f"a weights file of {folder} is damaged"):
        load(folder)


@pytest.mark.parametrize(
    ("quantization", "package"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "awq", "bits": 4}, "gptqmodel"),
        ({"quant_method": "gptq", "bits": 4}, "optimum"),
        ({"quant_method": "compressed-tensors", "config_groups": {}}, "compressed-tensors"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("asks", [models.load, models.weight_bytes], ids=["load", "weight_bytes"])
def test_quantised_weights_that_need_a_package_name_it(
    folder: Path, asks: Callable[[models.ModelSpec], object], quantization: Any, package: str
) -> None:
    configure(folder, quantization_config=quantization)
    with pytest.raises(ProviderFailed, match=rf"{folder} cannot be served here: .*{package}"):
        asks(models.find("mine", {"path": str(folder), "device": "cpu"}))


def test_a_quantised_checkpoint_counts_with_the_bytes_of_its_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = models.find("mine", {"path": str(folder), "device": "cpu"})
    plain = models.weight_bytes(spec)
    configure(folder, quantization_config={"quant_method": "bitnet"})
    (folder / "model.safetensors").write_bytes(bytes(1000))
    (folder / "consolidated.safetensors").write_bytes(bytes(9))
    assert models.weight_bytes(spec) == 1000 != plain

    files = {"model-00001-of-00002.safetensors": 30, "model-00002-of-00002.safetensors": 4}
    named = [SimpleNamespace(rfilename=name, size=size) for name, size in files.items()]
    info = SimpleNamespace(siblings=[*named, SimpleNamespace(rfilename="README.md", size=9)])
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: info)
    config = transformers.AutoConfig.from_pretrained(folder)
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", lambda *_, **__: config)
    assert models.weight_bytes(models.find("mine", {"path": "a/b", "device": "cpu"})) == 34


def test_fp8_weights_are_dequantised_on_a_cpu_and_count_so(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tiny.tokenizer()),
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    made = LlamaForCausalLM(config).eval()
    made.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)

    def quantise(weights: dict[str, Tensor]) -> None:
        for name in [name for name in weights if "_proj" in name]:
            scale = weights[name].abs().max() / 448
            weights[f"{name}_scale_inv"] = scale.reshape(1, 1)
            weights[name] = (weights[name] / scale).to(torch.float8_e4m3fn)

    rewrite(tmp_path, quantise)
    fp8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    plain = models.weight_bytes(models.find("mine", {"path": str(tmp_path), "device": "cpu"}))
    configure(tmp_path, quantization_config=fp8)
    spec = models.find("mine", {"path": str(tmp_path), "device": "cpu"})
    assert models.weight_bytes(spec) == plain
    found, expected = load(tmp_path).model.model.layers[0], made.model.layers[0]
    near = expected.mlp.up_proj.weight.abs().max().item() / 20
    assert (found.mlp.up_proj.weight - expected.mlp.up_proj.weight).abs().max() < near


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": "nowhere/at all"}, r"path: there is no folder .*nowhere/at all"),
        ({"path": "/nowhere/mine"}, "path: there is no folder /nowhere/mine"),
        ({"path": "~/mine"}, "path: there is no folder ~/mine"),
        ({"path": "{folder}/a.gguf"}, r"path: .* is a file, .* path: .*, gguf_file: a.gguf"),
        ({"path": "{folder}/config.json"}, "path: .*config.json is a file, not a folder$"),
        ({"gguf_file": "b.gguf"}, "gguf_file: there is no file b.gguf in"),
    ],
)
@pytest.mark.parametrize("asks", [models.load, models.weight_bytes])
def test_what_is_not_there_is_named_by_the_setting_to_change(
    folder: Path,
    asks: Callable[[models.ModelSpec], object],
    settings: dict[str, str],
    message: str,
) -> None:
    (folder / "a.gguf").touch()
    placed = {name: value.format(folder=folder) for name, value in settings.items()}
    spec = models.find("mine", {"path": str(folder), **placed})
    with pytest.raises(ProviderFailed, match=f"model_info.optillm_local.{message}"):
        asks(spec)


@pytest.mark.parametrize(
    ("file", "hint"),
    [("a.gguf", "set gguf_file: a.gguf"), ("adapter_config.json", "it is a LoRA adapter")],
)
def test_a_folder_without_a_model_says_what_it_has(folder: Path, file: str, hint: str) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(ProviderFailed, match=r"has no config.json$"):
        load(folder)
    (folder / file).touch()
    with pytest.raises(ProviderFailed, match=f"has no config.json; .*{hint}"):
        load(folder)


@pytest.mark.parametrize(
    "device",
    [
        "cuda:99",
        pytest.param(
            "mps",
            marks=pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is one"),
        ),
    ],
)
def test_a_device_that_is_not_there_is_named(folder: Path, device: str) -> None:
    spec = models.find("mine", {"path": str(folder), "device": device})
    with pytest.raises(ProviderFailed, match=f"optillm_local.device: there is no {device} here"):
        models.device_of(spec)


@pytest.mark.parametrize("weights", [None, "int8"])
@pytest.mark.parametrize("number", [float("nan"), float("inf")], ids=str)
def test_a_weight_that_is_not_finite_is_named(
    folder: Path, number: float, weights: str | None
) -> None:
    rewrite(folder, lambda w: w[QUERY][1].fill_(number))
    spec = models.find("mine", {"path": str(folder), "device": "cpu", "weights": weights})
    message = rf"the weights of {folder} are damaged: 1 with NaN or infinity \({QUERY}\)"
    with pytest.raises(ProviderFailed, match=message):
        models.load(spec)


def test_a_tokenizer_without_a_fast_version_is_refused_before_the_weights_are_read(
    folder: Path,
) -> None:
    for file in folder.glob("tok*"):
        file.unlink()
    transformers.ByT5Tokenizer().save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ProviderFailed, match="its tokenizer, ByT5Tokenizer, has no fast version"):
        load(folder)


async def replies(folder: Path, *requests: dict[str, Any]) -> list[Choice | OptiLLMError]:
    """Return what a model in a folder answers to requests, all at once."""
    spec = models.find("mine", {"path": str(folder), "device": "cpu", "kv_gib": 0.1})
    engine = Engine("mine", lambda: models.start(spec))

    async def reply(body: dict[str, Any]) -> Choice | OptiLLMError:
        text = body.pop("text", "Hi")
        fields = {"max_tokens": 6, "temperature": 0, **body}
        try:
            request = parse_request([{"role": "user", "content": text}], fields)
            return (await choices(engine, request))[0]
        except OptiLLMError as exc:
            return exc

    try:
        return list(await asyncio.gather(*map(reply, requests)))
    finally:
        engine.close()


@pytest.mark.anyio
@pytest.mark.parametrize("ends", [None, 99_999, [-1, 99_999], "0"], ids=str)
async def test_a_model_without_an_end_token_is_served_without_grammars(
    folder: Path, ends: object
) -> None:
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token": None}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    configure(folder, eos_token_id=None)
    form = {"response_format": {"type": "json_object"}}
    reply, refused = await replies(folder, {}, form)
    assert isinstance(reply, Choice)
    assert reply.finish_reason == "length"
    assert isinstance(refused, RequestRejected)
    assert "this model has no end-of-sequence token" in str(refused)


@pytest.mark.anyio
async def test_an_end_token_that_the_tokenizer_lacks_leaves_the_others(folder: Path) -> None:
    last = len(tiny.tokenizer())  # among the spare rows of logits
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, last]}))
    form = {"response_format": {"type": "json_object"}}
    ended, shaped = await replies(folder, {"logit_bias": {str(last): 100}}, form)
    assert isinstance(ended, Choice)
    assert ended.finish_reason == "stop"
    assert isinstance(shaped, Choice)
    assert shaped.text.startswith("{")


@pytest.mark.anyio
async def test_a_prompt_with_a_token_that_the_model_lacks_is_rejected(folder: Path) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens([f"word{number}word" for number in range(20)])
    tokenizer.save_pretrained(folder)
    reply, refused = await replies(folder, {}, {"text": "a word19word"})
    assert isinstance(reply, Choice)
    assert isinstance(refused, RequestRejected)
    assert f"has token {len(tokenizer) - 1}, which the tokenizer has" in str(refused)
