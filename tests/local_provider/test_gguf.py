"""GGUF files: weights stay in their blocks, a file is read once, and nothing half made is used."""

import errno
import json
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from optillm_hooks.errors import ProviderFailed
from optillm_hooks.local_provider import gguf_files, models
from optillm_hooks.local_provider.gguf_blocks import (
    BlockEmbedding,
    BlockExperts,
    BlockLinear,
    BlockWeight,
)
from optillm_hooks.local_provider.gguf_files import prepare
from optillm_hooks.local_provider.runner import Runner
from tests.local_provider import tiny_gguf

# PEFT's own use of transformers.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)
IDS = torch.arange(5, 50)[None]
QUERY = "blk.0.attn_q.weight"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file with matrices of all types."""
    file: Path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    made = tiny_gguf.model()
    tiny_gguf.write(file, made, tiny_gguf.tensors(made))
    return file


def spec_of(file: Path, **settings: Any) -> models.ModelSpec:
    where = {"path": str(file.parent), "gguf_file": file.name, "cache": str(file.parent / "cache")}
    return models.find("mine", {**where, "device": "cpu", **settings})


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(IDS).logits
    return found


def kept(model: Any) -> dict[str, BlockWeight]:
    """The weights that stay as they are stored."""
    return {name: part for name, part in model.named_modules() if isinstance(part, BlockWeight)}


def test_weights_stay_in_their_blocks_and_have_the_numbers_that_transformers_computes(
    file: Path,
) -> None:
    spec = spec_of(file)
    model = models.load(spec).model
    theirs = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
    weights = kept(model)
    assert len(weights) == 14  # all matrices but those of F32 and Q2_K
    for name, weight in weights.items():
        assert torch.equal(weight.dense(torch.float32), theirs.get_parameter(name))
    torch.testing.assert_close(logits(model), logits(theirs), rtol=1e-5, atol=1e-5)
    assert models.weight_bytes(spec) == pytest.approx(Runner(model).weight_bytes, rel=1e-3)


def test_the_bytes_of_a_weight_are_those_of_the_file_or_of_codes_that_fill_a_byte(
    file: Path,
) -> None:
    model = models.load(spec_of(file)).model
    held = {}
    for stored in prepare(file, file.parent / "cache").tensors:
        _, number, name, _ = f"{stored.name}...".split(".", 3)
        if name in tiny_gguf.NAMES and stored.kind not in ("F32", "Q2_K"):
            layer = model.get_submodule(f"model.layers.{number}.{tiny_gguf.NAMES[name]}")
            size = sum(buffer.nbytes for buffer in layer.weight.buffers())
            held[stored.kind] = size / layer.weight.shape.numel()
    assert held == {
        "Q4_0": 0.5625,
        "Q4_1": 0.625,
        "Q4_K": 0.578125,
        "Q5_0": 1.0625,
        "Q5_1": 1.125,
        "Q5_K": 1.078125,
        "Q6_K": 1.0703125,
        "Q8_0": 1.0625,
        "IQ4_NL": 1.0625,
        "IQ4_XS": 1.0390625,
        "F16": 2,
        "BF16": 2,
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_dtype_makes_plain_weights_of_that_type(file: Path, dtype: str) -> None:
    spec = spec_of(file, dtype=dtype)
    model = models.load(spec).model
    assert not kept(model)
    assert {weight.dtype for weight in model.parameters()} == {getattr(torch, dtype)}
    exact = logits(models.load(spec_of(file)).model)
    near = 1e-5 if dtype == "float32" else 0.05
    assert (logits(model).float() - exact).norm() < near * exact.norm()
    assert models.weight_bytes(spec) == pytest.approx(Runner(model).weight_bytes, rel=1e-3)


def test_the_original_numbers_come_back_from_a_file_that_has_them(tmp_path: Path) -> None:
    """Queries and keys are stored in another order of rows."""
    made = tiny_gguf.model()
    file = tmp_path / "plain.gguf"
    tiny_gguf.write(file, made, tiny_gguf.tensors(made, kinds=("F32",)))
    torch.testing.assert_close(logits(models.load(spec_of(file)).model), logits(made))
    half = tmp_path / "half.gguf"
    tiny_gguf.write(half, made, tiny_gguf.tensors(made, kinds=("F16",)))
    model = models.load(spec_of(half)).model
    assert {weight.codes.dtype for weight in kept(model).values()} == {torch.float16}
    torch.testing.assert_close(logits(model), logits(made), rtol=1e-2, atol=1e-2)


def test_an_output_layer_tied_to_the_embedding_shares_its_blocks(tmp_path: Path) -> None:
    made = tiny_gguf.model(tied=True)
    file = tmp_path / "tied.gguf"
    tiny_gguf.write(file, made, tiny_gguf.tensors(made, kinds=("Q8_0",)))
    model = models.load(spec_of(file)).model
    assert isinstance(model.lm_head, BlockLinear)
    assert isinstance(model.model.embed_tokens, BlockEmbedding)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    plain = models.load(spec_of(file, dtype="float32")).model
    assert plain.lm_head.weight is plain.model.embed_tokens.weight
    torch.testing.assert_close(logits(model), logits(plain), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kinds", [("Q4_K", "Q4_0", "Q6_K"), ("F16", "F32", "Q8_0")], ids=str)
def test_experts_stay_in_their_blocks(tmp_path: Path, kinds: tuple[str, str, str]) -> None:
    """Those of gate and up share a name in the model, and may have different types."""
    made = tiny_gguf.mixture()
    file = tmp_path / "mixture.gguf"
    tiny_gguf.write(file, made, tiny_gguf.tensors_of_mixture(made, kinds))
    spec = spec_of(file)
    model = models.load(spec).model
    plain = models.load(spec_of(file, dtype="float32")).model
    theirs = plain.model.layers[0].mlp.experts.state_dict()
    experts = model.model.layers[0].mlp.experts
    for name, weights in theirs.items():
        for expert in range(tiny_gguf.EXPERTS):
            found = getattr(experts, name)[torch.tensor(expert)]
            torch.testing.assert_close(found, weights[expert], rtol=0, atol=0)
    assert isinstance(experts.down_proj, BlockExperts)
    torch.testing.assert_close(logits(model), logits(plain), rtol=1e-5, atol=1e-5)
    runner = Runner(model)
    assert models.weight_bytes(spec) == pytest.approx(runner.weight_bytes, rel=1e-3)
    assert runner.weight_bytes < Runner(plain).weight_bytes / 2 or "F32" in kinds


def test_an_architecture_of_transformers_own_loader_is_unpacked(tmp_path: Path) -> None:
    made = tiny_gguf.hybrid()
    file = tmp_path / "hybrid.gguf"
    content = tiny_gguf.tensors_of_hybrid(made)
    tiny_gguf.write(file, made, content)
    spec = spec_of(file)
    model = models.load(spec).model
    torch.testing.assert_close(logits(model), logits(made), rtol=0.05, atol=0.05)
    held = sum(weight.nbytes for weight in model.parameters())
    assert models.weight_bytes(spec) == pytest.approx(held, rel=1e-3)
    del content["blk.0.ssm_a"]
    tiny_gguf.write(file, made, content)
    with pytest.raises(ProviderFailed, match=r"1 missing \(model\.layers\.0\.linear_attn\.A_log"):
        models.load(spec)


def test_rows_beside_one_another_get_the_text_of_generate(file: Path) -> None:
    model = models.load(spec_of(file)).model
    prompts = [[5, 6, 7], list(range(30, 70)), [9]]
    expected = [
        model.generate(torch.tensor([p]), max_new_tokens=6, do_sample=False)[0, len(p) :].tolist()
        for p in prompts
    ]
    runner = Runner(model)
    rows = [runner.begin(None, 0) for _ in prompts]
    feeds = prompts
    found: list[list[int]] = [[] for _ in prompts]
    for _ in range(6):
        following = runner.step(list(zip(rows, feeds, strict=True))).argmax(-1).tolist()
        feeds = [[token] for token in following]
        for text, token in zip(found, following, strict=True):
            text.append(token)
    ends = [next((i for i, t in enumerate(e) if t in (0, 1)), 5) + 1 for e in expected]
    assert [f[:n] for f, n in zip(found, ends, strict=True)] == [
        e[:n] for e, n in zip(expected, ends, strict=True)
    ]


def test_an_adapter_changes_a_layer_whose_weight_is_in_blocks(file: Path, tmp_path: Path) -> None:
    plain = models.load(spec_of(file, dtype="float32")).model
    torch.manual_seed(3)
    lora = LoraConfig(r=4, lora_alpha=64, target_modules=["q_proj"], init_lora_weights=False)
    adapted = get_peft_model(plain, lora)
    adapted.save_pretrained(tmp_path)
    runner = Runner(models.load(spec_of(file)).model, {"a": str(tmp_path)})
    row = runner.begin(None, 0, "a")
    found = runner.step([(row, IDS[0].tolist())])
    torch.testing.assert_close(found[0], logits(adapted)[0, -1], rtol=1e-4, atol=1e-4)


def test_tokens_that_end_a_turn_end_a_reply(file: Path) -> None:
    assert models.end_ids(models.load(spec_of(file))) == {0, tiny_gguf.END_OF_TURN}


def test_rotary_frequencies_that_the_file_divides_are_divided(tmp_path: Path) -> None:
    made = tiny_gguf.model()
    divisors = np.linspace(1, 8, 32, dtype=np.float32)
    file = tmp_path / "long.gguf"
    content = tiny_gguf.tensors(made, kinds=("F32",))
    tiny_gguf.write(file, made, {**content, "rope_freqs.weight": (divisors, "F32")})
    made.model.rotary_emb.inv_freq /= torch.from_numpy(divisors)
    torch.testing.assert_close(logits(models.load(spec_of(file)).model), logits(made))


Change = Callable[[tiny_gguf.Tensors], object]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(QUERY), r"1 missing \(model\.layers\.0\.self_attn\.q_proj\.weight\)"),
        (lambda t: t.pop("output_norm.weight"), r"1 missing \(model\.norm\.weight\)"),
        (
            lambda t: t.update({"blk.0.more.weight": (np.ones(3, np.float32), "F32")}),
            r"1 unexpected \(blk\.0\.more\.weight\)",
        ),
        (
            lambda t: t.update({QUERY: (np.ones((256, 128), np.float32), "F32")}),
            r"1 of another shape \(.*q_proj\.weight is \[256, 128\], not \[256, 256\]\)",
        ),
    ],
    ids=["matrix", "norm", "unexpected", "another shape"],
)
def test_tensors_that_do_not_fit_the_model_are_named(
    tmp_path: Path, change: Change, message: str
) -> None:
    made = tiny_gguf.model()
    content = tiny_gguf.tensors(made, kinds=("F32",))
    change(content)
    file = tmp_path / "broken.gguf"
    tiny_gguf.write(file, made, content)
    with pytest.raises(ProviderFailed, match=message):
        models.load(spec_of(file))


@pytest.mark.parametrize("kind", ["yarn", "linear"])
def test_positions_are_scaled_as_the_file_says(tmp_path: Path, kind: str) -> None:
    scaled = {"rope_type": kind, "factor": 4.0, "original_max_position_embeddings": 64}
    made = tiny_gguf.model(rope_parameters={"rope_theta": 10000.0, **scaled})
    file = tmp_path / "scaled.gguf"
    rope = {"type": kind, "factor": 4.0, "original_context_length": 64}
    content = tiny_gguf.tensors(made, kinds=("F32",))
    tiny_gguf.write(file, made, content, rope)
    torch.testing.assert_close(logits(models.load(spec_of(file)).model), logits(made))
    tiny_gguf.write(file, made, content)
    assert (logits(models.load(spec_of(file)).model) - logits(made)).abs().max() > 0.1


def test_positions_scaled_in_another_way_are_refused(tmp_path: Path) -> None:
    made = tiny_gguf.model()
    file = tmp_path / "long.gguf"
    tiny_gguf.write(file, made, tiny_gguf.tensors(made), {"type": "longrope"})
    with pytest.raises(ProviderFailed, match=r"long\.gguf scales its positions \(longrope\)"):
        models.load(spec_of(file))


@pytest.mark.parametrize("size", [None, 1000, 100], ids=["no tensors", "no tokens", "nothing"])
def test_a_file_that_is_cut_is_called_damaged(file: Path, tmp_path: Path, size: int | None) -> None:
    cut = tmp_path / "cut.gguf"
    whole = file.read_bytes()
    cut.write_bytes(whole[: size or len(whole) - 1000])
    with pytest.raises(ProviderFailed, match=r"cut\.gguf is damaged"):
        models.load(spec_of(cut))
    assert not [kept for kept in (tmp_path / "cache").iterdir() if kept.is_dir()]


def cut(folder: Path, name: str) -> None:
    file = folder / name
    file.write_bytes(file.read_bytes()[:-5])


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: cut(folder, "tokenizer.json"),
        lambda folder: cut(folder, "index.json"),
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: (folder / "config.json").write_text("{}"),
        lambda folder: [file.unlink() for file in folder.iterdir()],
        lambda folder: (folder / "index.json").write_text(
            (folder / "index.json").read_text().replace('"version": ', '"version": 9')
        ),
    ],
    ids=["cut tokenizer", "cut index", "no config", "another config", "empty", "version"],
)
def test_a_damaged_folder_of_the_cache_is_made_again(file: Path, damage: Any) -> None:
    cache = file.parent / "damaged"
    folder = prepare(file, cache).folder
    whole = {one.name: one.read_bytes() for one in folder.iterdir()}
    damage(folder)
    assert prepare(file, cache).folder == folder
    assert {one.name: one.read_bytes() for one in folder.iterdir()} == whole
    assert models.load(spec_of(file, cache=str(cache))).tokenizer.chat_template


def test_only_one_of_two_that_want_a_file_at_once_reads_it(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert, both = gguf_files._convert, threading.Barrier(2)
    entered: list[Path] = []

    def slow(gguf: Path, header: Any, folder: Path) -> None:
        entered.append(folder)
        with suppress(threading.BrokenBarrierError):
            both.wait(timeout=0.2)
        convert(gguf, header, folder)

    monkeypatch.setattr(gguf_files, "_convert", slow)
    with ThreadPoolExecutor() as pool:
        one, other = pool.map(lambda _: prepare(file, tmp_path), range(2))
    assert one == other
    assert len(entered) == 1


def test_what_a_killed_process_leaves_is_not_used_and_goes(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise SystemExit

    left = tmp_path / f".{file.stem}-half"
    left.mkdir()
    (left / "config.json").write_text("{}")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", killed)
        with pytest.raises(SystemExit):
            prepare(file, tmp_path)
    folder = prepare(file, tmp_path).folder
    assert [one for one in tmp_path.iterdir() if one.is_dir()] == [folder]


def test_the_folders_of_older_versions_of_a_file_go_and_those_of_other_files_stay(
    file: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other" / file.name
    other.parent.mkdir()
    other.write_bytes(file.read_bytes())
    cache = tmp_path / "cache"
    of_other = prepare(other, cache).folder
    from_older_code = cache / f"{file.stem}-1-1"
    from_older_code.mkdir()
    (from_older_code / "model.safetensors").touch()
    mine = tmp_path / file.name
    mine.write_bytes(file.read_bytes())
    first = prepare(mine, cache).folder
    os.utime(mine, (1, 1))
    second = prepare(mine, cache).folder
    assert first != second
    assert {one for one in cache.iterdir() if one.is_dir()} == {of_other, second}


def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(gguf_files, "_convert", full)
    with pytest.raises(ProviderFailed, match=f"a few MiB, cannot be written to {tmp_path}: No"):
        prepare(file, tmp_path)
    assert not [one for one in tmp_path.iterdir() if one.is_dir()]


def test_the_embedded_model_in_its_blocks_has_the_logits_of_float32(
    loaded: models.LoadedModel,
) -> None:
    spec = models.find("smollm2", {"dtype": "auto", "device": "cpu"})
    model = models.load(spec).model
    torch.testing.assert_close(logits(model), logits(loaded.model), rtol=1e-4, atol=1e-4)
    stored = (Path(spec.path) / str(spec.gguf_file)).stat().st_size
    assert models.weight_bytes(spec) == pytest.approx(stored, rel=0.02)
    assert json.loads(loaded.model.config.to_json_string())["dtype"] == "float32"
