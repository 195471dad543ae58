"""GGUF files: what takes seconds to read from them is read once, into a folder of the cache.

That is the configuration, the tokenizer, and where each tensor is. The folder is a few MiB: weights
are read from the file itself, each time the model is loaded.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from optillm_hooks.errors import ProviderFailed

_INDEX: Final = "index.json"
_VERSION: Final = 1
"""Of what is in a folder; one of another version is made again."""

_SIZES: Final = {
    "moe_intermediate_size": "expert_feed_forward_length",
    "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
}
_ROPE: Final = {
    "rope_type": "type",
    "factor": "factor",
    "original_max_position_embeddings": "original_context_length",
}
_UNPACKED: Final = ("qwen35", "qwen35moe")
"""Architectures whose tensors only transformers' own loader can put into a model."""

_ENDS: Final = ("eos", "eot", "eom")
"""Tokens that end a reply: of a text, of a turn, of a message."""


class StoredTensor(NamedTuple):
    """Where a tensor is in a GGUF file."""

    name: str
    kind: str
    """Its GGUF type, such as Q4_K."""

    shape: list[int]
    start: int
    size: int
    """In bytes, as is `start`."""


class Prepared(NamedTuple):
    """A GGUF file whose configuration and tokenizer are in `folder`, in transformers' format."""

    gguf: Path
    folder: Path
    architecture: str
    """Its name in GGUF files."""

    tensors: list[StoredTensor]

    @property
    def stays_in_blocks(self) -> bool:
        """Whether its weights can stay as they are stored."""
        return self.architecture not in _UNPACKED


def prepare(gguf: Path, cache: Path) -> Prepared:
    """Return a GGUF file with its folder in `cache`, which is made if it is missing or damaged.

    The folder's name includes the file's size and modification time, so that a new version of the
    file gets a new folder; those of older versions are removed. Of several processes, one makes the
    folder while the others wait. An atomic rename puts it in place, so that a process that dies
    leaves nothing that is used.

    Raises:
        ProviderFailed: the file is damaged or not supported, or the folder cannot be written.
    """
    from filelock import FileLock

    stat = gguf.stat()
    folder = cache / f"{gguf.stem}-{stat.st_size:x}-{stat.st_mtime_ns:x}"
    if (found := _intact(gguf, folder)) is not None:
        return found
    with _written_to(cache, gguf):
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f".{gguf.stem}.lock"):
            return _intact(gguf, folder) or _make(gguf, folder)


def _intact(gguf: Path, folder: Path) -> Prepared | None:
    """Return the prepared file, or None if its folder is missing, incomplete or damaged."""
    try:
        index = json.loads((folder / _INDEX).read_text())
        whole = all(_checksum(folder / name) == sum_ for name, sum_ in index["files"].items())
        tensors = [StoredTensor(*one) for one in index["tensors"]]
        usable = whole and index["version"] == _VERSION
        return Prepared(gguf, folder, index["architecture"], tensors) if usable else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _checksum(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@contextmanager
def _written_to(cache: Path, gguf: Path) -> Iterator[None]:
    """Turn errors of the file system into one that says what was to be written where."""
    try:
        yield
    except OSError as exc:
        raise ProviderFailed(
            f"the configuration and tokenizer of {gguf.name}, a few MiB, cannot be written to "
            f"{cache}: {exc.strerror or exc}; the setting `cache` chooses another folder",
            status=500,
        ) from exc


def _make(gguf: Path, folder: Path) -> Prepared:
    """Write the folder of a GGUF file. The caller holds the lock of all files of that name."""
    cache = folder.parent
    for left in cache.glob(f".{gguf.stem}-*"):  # of a process that has died
        shutil.rmtree(left, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f".{gguf.stem}-", dir=cache))
    try:
        header = _read_header(gguf)
        _convert(gguf, header, work)
        files = {file.name: _checksum(file) for file in work.iterdir()}
        source = str(gguf.resolve())
        index = {"version": _VERSION, "source": source, "files": files, **header._asdict()}
        (work / _INDEX).write_text(json.dumps(index))
        shutil.rmtree(folder, ignore_errors=True)
        work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    _remove_older(folder, gguf.stem, source)
    return Prepared(gguf, folder, header.architecture, header.tensors)


def _remove_older(folder: Path, stem: str, source: str) -> None:
    """Remove the folders of older versions of a file, and those that older code has made."""
    for other in folder.parent.glob(f"{stem}-*"):
        try:
            its_source = json.loads((other / _INDEX).read_text())["source"]
        except (OSError, ValueError, KeyError):
            its_source = source
        if other != folder and its_source == source:
            shutil.rmtree(other, ignore_errors=True)


class _Header(NamedTuple):
    architecture: str
    end_ids: list[int]
    sizes: dict[str, int]
    """Sizes of experts that transformers does not read, by their names in a configuration."""

    rope: dict[str, Any]
    """How positions are scaled, by the names of transformers' `rope_parameters`."""

    tensors: list[StoredTensor]


def _read_header(gguf: Path) -> _Header:
    """Return what transformers does not read from a file.

    Raises:
        ProviderFailed: it is not a whole GGUF file.
    """
    from gguf import GGUFReader

    try:
        reader = GGUFReader(gguf)
        architecture = _value(reader, "general.architecture")
        rope = {
            name: _value(reader, f"{architecture}.rope.scaling.{key}")
            for name, key in _ROPE.items()
        }
        ends = [_value(reader, f"tokenizer.ggml.{end}_token_id") for end in _ENDS]
        sizes = {name: _value(reader, f"{architecture}.{key}") for name, key in _SIZES.items()}
        tensors = [
            StoredTensor(
                one.name,
                one.tensor_type.name,
                [int(size) for size in reversed(one.shape)],
                int(one.data_offset),
                int(one.n_bytes),
            )
            for one in reader.tensors
        ]
    except (ValueError, IndexError, KeyError) as exc:
        raise ProviderFailed(f"{gguf} is damaged, or no GGUF file: {exc}", status=500) from exc
    return _Header(
        architecture,
        [end for end in ends if end is not None],
        {name: size for name, size in sizes.items() if size is not None},
        {name: value for name, value in rope.items() if value not in (None, "none")},
        tensors,
    )


def _value(reader: Any, key: str) -> Any:
    """Return a value of a file's metadata, or None if it has none of that name."""
    field = reader.get_field(key)
    return None if field is None else field.contents()


def _convert(gguf: Path, header: _Header, folder: Path) -> None:
    """Write the configuration and the tokenizer in transformers' format."""
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
    config.eos_token_id = header.end_ids or config.eos_token_id
    for name, size in header.sizes.items():
        setattr(config, name, size)
    _scale_positions(config, header.rope, gguf)
    config.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.save_pretrained(folder)


def _scale_positions(config: Any, rope: dict[str, Any], gguf: Path) -> None:
    """Add how positions are scaled to a configuration, unless transformers has read it.

    Raises:
        ProviderFailed: they are scaled in a way for which the file has too little.
    """
    kind = rope.get("rope_type")
    parameters = getattr(config, "rope_parameters", None) or {}
    if kind is None or parameters.get("rope_type", "default") != "default":
        return
    if kind not in ("linear", "yarn") or not parameters:
        raise ProviderFailed(f"{gguf} scales its positions ({kind}): not supported", status=500)
    config.rope_parameters = {**parameters, **rope}
