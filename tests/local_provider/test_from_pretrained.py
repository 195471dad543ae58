"""The arguments of `from_pretrained`: revision, remote code, device and dtype of a model."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from optillm_hooks.local_provider import fast_layers, loading, models
from optillm_hooks.local_provider.loading import LoadedModel
from tests.local_provider import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("tiny")
    tiny.model().save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


class Asked(Exception):
    """Raised by `from_pretrained` in the place of a download."""


@pytest.mark.parametrize("asks", [models.load, models.weight_bytes], ids=["load", "weight_bytes"])
@pytest.mark.parametrize("revision", [None, "v2"])
@pytest.mark.parametrize("trust", [False, True], ids=["", "trusted"])
def test_a_hub_model_is_asked_for_by_id_revision_and_trust(
    monkeypatch: pytest.MonkeyPatch, asks: Any, revision: str | None, trust: bool
) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []

    whole: dict[str, set[str]] = {
        "missing_keys": set(),
        "unexpected_keys": set(),
        "mismatched_keys": set(),
    }

    def from_pretrained(name: str, **kwargs: Any) -> Any:
        calls.append((name, kwargs))
        if asks is models.weight_bytes:
            raise Asked
        model = tiny.model()
        return (model, whole) if "output_loading_info" in kwargs else model.config

    def tokenizer(name: str, **kwargs: Any) -> Any:
        from_pretrained(name, **kwargs)
        return tiny.tokenizer()

    for kind in ("AutoConfig", "AutoModelForCausalLM"):
        monkeypatch.setattr(getattr(transformers, kind), "from_pretrained", from_pretrained)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", tokenizer)
    settings = {"path": "owner/model", "revision": revision, "trust_remote_code": trust}
    spec = models.find("mine", {**settings, "device": "cpu"})
    with nullcontext() if asks is models.load else pytest.raises(Asked):
        asks(spec)
    assert len(calls) == (3 if asks is models.load else 1)
    for name, kwargs in calls:
        assert name == "owner/model"
        assert kwargs["revision"] == (revision or "main")
        assert kwargs["trust_remote_code"] is trust
        assert kwargs["local_files_only"] is False
    if asks is models.load:
        devices = [kwargs["device_map"] for _, kwargs in calls if "device_map" in kwargs]
        assert devices == [{"": "cpu"}]  # never to main memory first


@pytest.mark.parametrize("kind", ["llama", "never_heard_of"])
def test_code_in_a_models_folder_is_not_run(folder: Path, tmp_path: Path, kind: str) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    ran = tmp_path / "ran"
    (tmp_path / "theirs.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    theirs = {
        "AutoConfig": "theirs.Config",
        "AutoModelForCausalLM": "theirs.Model",
        "AutoTokenizer": ["theirs.Tokenizer", None],
    }
    for name in ("config.json", "tokenizer_config.json"):
        told = json.loads((tmp_path / name).read_text()) | {"auto_map": theirs}
        told |= {"model_type": kind} if name == "config.json" else {}
        (tmp_path / name).write_text(json.dumps(told))
    spec = models.find("mine", {"path": str(tmp_path), "device": "cpu"})
    for asks in (models.weight_bytes, models.load):
        with nullcontext() if kind == "llama" else pytest.raises(ValueError, match="trust_remote"):
            asks(spec)
    assert not ran.exists()


@pytest.mark.parametrize(
    ("cuda", "mps", "told", "device"),
    [
        (True, True, "auto", "cuda:0"),
        (False, True, "auto", "mps"),
        (False, False, "auto", "cpu"),
        (True, True, "cpu", "cpu"),
        (True, False, "cuda", "cuda:0"),
        (True, False, "cuda:1", "cuda:1"),
    ],
)
def test_the_device_is_the_best_available_or_the_configured_one(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, told: str, device: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2 * cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert models.device_of(models.find("mine", {"path": "x", "device": told})) == device


@pytest.mark.parametrize("faster", [torch.float32, torch.bfloat16], ids=str)
def test_fastest_is_the_type_that_took_less_time_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, folder: Path, faster: torch.dtype
) -> None:
    clock = 0.0

    def use_fast_layers(layer: torch.nn.Module) -> None:
        def forward(rows: torch.Tensor) -> None:
            nonlocal clock
            clock += 1.0 if rows.dtype == faster else 1.5

        layer.forward = forward

    monkeypatch.setattr(loading, "time", SimpleNamespace(perf_counter=lambda: clock))
    with monkeypatch.context() as patched:
        patched.setattr(fast_layers, "use_fast_layers", use_fast_layers)
        assert loading._fastest_dtype("cpu") == faster
    monkeypatch.setattr(loading, "_fastest_dtype", lambda device: {"cpu": faster}[device])
    spec = models.find("tiny", {"path": str(folder), "dtype": "fastest", "device": "cpu"})
    assert models.load(spec).model.dtype == faster


@pytest.mark.parametrize(
    ("device", "has_bfloat16", "dtype"),
    [
        ("cuda:0", True, torch.bfloat16),
        ("cuda:1", False, torch.float16),
        ("mps", False, torch.float16),
    ],
    ids=["cuda", "old cuda", "mps"],
)
def test_fastest_on_a_gpu_is_the_half_type_that_it_has(
    monkeypatch: pytest.MonkeyPatch, device: str, has_bfloat16: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: has_bfloat16)
    assert loading._fastest_dtype(device) == dtype


def test_the_embedded_model_is_of_float32_unless_its_deployment_says_otherwise() -> None:
    embedded = models.find("smollm2")
    changed = models.find("smollm2", {"dtype": "fastest", "rows": 2})
    assert changed == embedded.model_copy(update={"dtype": "fastest", "rows": 2})
    other = models.find("smollm2", {"path": "/models/mine"})
    assert (other.path, other.gguf_file) == ("/models/mine", None)


def test_the_embedded_model_is_loaded_in_float32(loaded: LoadedModel) -> None:
    assert loaded.model.dtype == torch.float32
