"""Loads models and tokenizers with transformers: from a folder, a GGUF file or the hub."""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optillm_hooks.errors import ProviderFailed
from optillm_hooks.local_provider.completeness import check_finite, check_loading_info
from optillm_hooks.local_provider.gguf_files import Prepared, prepare
from optillm_hooks.local_provider.model_files import check_device, check_files
from optillm_hooks.local_provider.model_spec import ModelSpec
from optillm_hooks.local_provider.text_towers import drop_other_towers, loader_of

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A transformers model in memory, with its tokenizer."""

    model: Any
    tokenizer: Any


def load(spec: ModelSpec) -> LoadedModel:
    """Load a model and its tokenizer. Blocks for seconds; only hub ids use the network.

    Raises:
        ProviderFailed: a weight is missing, unexpected, of another shape or not finite, a file is
            missing or damaged, the device is not there, it is no model that continues text, or it
            has no fast tokenizer.
    """
    from optillm_hooks.local_provider.gguf_blocks import stored_weights

    check_files(spec)
    device = device_of(spec)
    dtype = _dtype(spec, device)
    if spec.gguf_file is not None:
        from optillm_hooks.local_provider.gguf_loading import load_gguf

        prepared = _prepared(spec)
        tokenizer = _tokenizer(str(prepared.folder), {"local_files_only": True})
        model = load_gguf(prepared, dtype, device)
    else:
        loader, config = _loader(spec)
        tokenizer = _tokenizer(spec.path, _where(spec))
        model = _load_weights(spec, loader, config, dtype or "auto", device)
    check_finite(spec.gguf_file or spec.path, stored_weights(model))
    if spec.weights == "int8":
        from optillm_hooks.local_provider.quantized_layers import quantize

        quantize(model)
    return LoadedModel(model.eval(), tokenizer)


def _tokenizer(path: str, where: Mapping[str, Any]) -> Any:
    """Return the tokenizer in a folder or on the hub.

    Raises:
        ProviderFailed: it is written in Python.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    tokenizer = AutoTokenizer.from_pretrained(path, **where)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ProviderFailed(
            f"{path} cannot be served here: its tokenizer, {type(tokenizer).__name__}, has no fast "
            "version (tokenizer.json)",
            status=500,
        )
    return tokenizer


def _dtype(spec: ModelSpec, device: str) -> "torch.dtype | None":
    """Return the type that the weights are converted to; None: they stay as they are stored."""
    import torch

    if spec.dtype == "fastest":
        return _fastest_dtype(device)
    return None if spec.dtype == "auto" else getattr(torch, spec.dtype)


def _prepared(spec: ModelSpec) -> Prepared:
    """Return the GGUF file of a model."""
    cache = Path(spec.cache) if spec.cache else Path.home() / ".cache" / "optillm_hooks" / "models"
    return prepare(Path(spec.path) / (spec.gguf_file or ""), cache)


def _where(spec: ModelSpec) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` that say where files are, and if they are code."""
    local = Path(spec.path).is_dir()
    where: dict[str, Any] = {
        "local_files_only": local,
        "trust_remote_code": spec.trust_remote_code,
    }
    if not local:
        where["revision"] = spec.revision or "main"
    return where


def _loader(spec: ModelSpec) -> tuple[Any, Any]:
    """Return the class that loads a model in a folder or on the hub, and its configuration.

    Raises:
        ProviderFailed: it is no model that continues text.
    """
    from transformers import AutoConfig

    return loader_of(AutoConfig.from_pretrained(spec.path, **_where(spec)))


def _load_weights(
    spec: ModelSpec, loader: Any, config: Any, dtype: "str | torch.dtype", device: str
) -> Any:
    """Return the model of a folder or hub id, with each weight read straight to `device`."""
    from safetensors import SafetensorError

    folder, where = spec.path, _where(spec)
    try:
        model, found = loader.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            device_map={"": device},
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # an error that names them follows
            **where,
        )
    except SafetensorError as exc:
        raise ProviderFailed(f"a weights file of {folder} is damaged: {exc}", status=500) from exc
    except ImportError as exc:
        raise _not_served(folder, exc) from exc
    check_loading_info(folder, found)
    drop_other_towers(model)
    return model


def weight_bytes(spec: ModelSpec) -> int:
    """Return the size of a model's weights in bytes, without loading them.

    With `dtype: fastest`, float32 is assumed, which is the maximum.

    Raises:
        ProviderFailed: a file is missing, or they are quantised in a way that needs a package
            which is not installed.
    """
    import torch

    check_files(spec)
    named = {"auto": None, "fastest": torch.float32}
    dtype = named[spec.dtype] if spec.dtype in named else getattr(torch, spec.dtype)
    if spec.gguf_file is not None:
        from optillm_hooks.local_provider.gguf_blocks import held_bytes

        prepared = _prepared(spec)
        if spec.weights == "int8":
            return _int8_bytes([one.shape for one in prepared.tensors], dtype or torch.float32)
        if dtype is None and prepared.stays_in_blocks:
            return sum(held_bytes(one.kind, one.shape) for one in prepared.tensors)
        count = sum(math.prod(one.shape) for one in prepared.tensors)
        return count * int((dtype or torch.float32).itemsize)
    loader, config = _loader(spec)
    if _stays_quantised(spec, config):
        return _checkpoint_bytes(spec)
    trusted = {"trust_remote_code": spec.trust_remote_code}
    with torch.device("meta"):
        model = loader.from_config(config, **trusted)
    buffers: int = sum(buffer.nbytes for buffer in model.buffers())
    dtype = dtype or config.dtype or torch.float32
    if spec.weights == "int8":
        return _int8_bytes([weight.shape for weight in model.parameters()], dtype) + buffers
    numbers: int = sum(weight.numel() for weight in model.parameters())
    return numbers * int(dtype.itemsize) + buffers


def _int8_bytes(shapes: Iterable[Sequence[int]], dtype: "torch.dtype") -> int:
    """Return the bytes of weights of these shapes: matrices in int8, with a scale for each row."""
    return sum(
        math.prod(shape) + 4 * shape[0] if len(shape) == 2 else math.prod(shape) * dtype.itemsize
        for shape in shapes
    )


def _stays_quantised(spec: ModelSpec, config: Any) -> bool:
    """Return True if a checkpoint is quantised and transformers does not dequantise it here.

    Raises:
        ProviderFailed: it can do neither.
    """
    from transformers.quantizers import AutoHfQuantizer

    told = getattr(config, "quantization_config", None)
    if told is None or not AutoHfQuantizer.supports_quant_method(told):
        return False
    try:
        quantizer = AutoHfQuantizer.from_config(told, pre_quantized=True)
        quantizer.validate_environment(device_map={"": device_of(spec)}, weights_only=True)
    except (ImportError, RuntimeError, ValueError) as exc:
        raise _not_served(spec.path, exc) from exc
    return not getattr(quantizer.quantization_config, "dequantize", False)


def _not_served(where: str, exc: Exception) -> ProviderFailed:
    return ProviderFailed(f"{where} cannot be served here: {str(exc).strip()}", status=500)


def _checkpoint_bytes(spec: ModelSpec) -> int:
    """Return the size of the weights files of a folder or hub model, in bytes."""
    from huggingface_hub import HfApi

    if Path(spec.path).is_dir():
        sizes = {file.name: file.stat().st_size for file in Path(spec.path).iterdir()}
    else:
        found = HfApi().model_info(spec.path, revision=spec.revision, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in found.siblings or ()}
    return sum(size for name, size in sizes.items() if fnmatch(name, "model*.safetensors"))


def device_of(spec: ModelSpec) -> str:
    """Return the device of a model; the first GPU is always called cuda:0.

    Raises:
        ProviderFailed: torch cannot use it.
    """
    import torch

    device = spec.device
    if device == "auto" and torch.cuda.is_available():
        device = "cuda"
    elif device == "auto":
        device = "mps" if torch.backends.mps.is_available() else "cpu"
    check_device(device)
    return "cuda:0" if device == "cuda" else device


def _fastest_dtype(device: str) -> "torch.dtype":
    """Return the dtype in which a linear layer is fastest: on a CPU, bfloat16 or float32.

    A CPU may emulate bfloat16, so this is measured, which takes a quarter of a second. On a GPU it
    is bfloat16, or float16 if the GPU does not support bfloat16.
    """
    import torch

    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if device == "mps":
        return torch.float16
    from optillm_hooks.local_provider.fast_layers import use_fast_layers

    @torch.inference_mode()
    def seconds(dtype: torch.dtype) -> float:
        rows, layer = torch.ones(16, 2048, dtype=dtype), torch.nn.Linear(2048, 2048, dtype=dtype)
        use_fast_layers(layer)
        best = float("inf")
        for _ in range(8):
            begun = time.perf_counter()
            layer(rows)
            best = min(best, time.perf_counter() - begun)
        return best

    return min((torch.float32, torch.bfloat16), key=seconds)


def end_ids(loaded: LoadedModel) -> set[int]:
    """Return the ids of the end-of-sequence (EOS) tokens; chat models often have several.

    Some models have none, or name one that does not exist.
    """
    named = loaded.model.generation_config.eos_token_id
    ends = [loaded.tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])]
    words = loaded.model.get_input_embeddings().num_embeddings
    return {end for end in ends if isinstance(end, int) and 0 <= end < words}
