"""Checks that the files and the device of a model are there, by the settings that name them."""

import re
from pathlib import Path
from typing import Final

from optillm_hooks.errors import ProviderFailed
from optillm_hooks.local_provider.model_spec import ModelSpec

_HUB_ID: Final = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def check_files(spec: ModelSpec) -> None:
    """Raise ProviderFailed, which names the setting to change, if `path` has no model to load."""
    folder = Path(spec.path)
    if folder.is_file():
        example = f"path: {folder.parent}, gguf_file: {folder.name}"
        hint = f"; a GGUF file is set as {example}" if folder.suffix == ".gguf" else ""
        raise _wrong("path", f"{folder} is a file, not a folder{hint}")
    if spec.gguf_file is not None:
        if not (folder / spec.gguf_file).is_file():
            raise _wrong("gguf_file", f"there is no file {spec.gguf_file} in {folder}")
    elif folder.is_dir():
        _check_config(folder)
    elif not _HUB_ID.fullmatch(spec.path):
        raise _wrong("path", f"there is no folder {folder}")


def check_device(device: str) -> None:
    """Raise ProviderFailed if torch cannot use this device."""
    import torch

    kind, _, index = device.partition(":")
    if kind == "cuda":
        there = int(index or 0) < torch.cuda.device_count()
    else:
        there = kind != "mps" or torch.backends.mps.is_available()
    if not there:
        raise _wrong("device", f"there is no {device} here, or torch was built without it")


def _check_config(folder: Path) -> None:
    if (folder / "config.json").is_file():
        return
    hint = ""
    if ggufs := sorted(file.name for file in folder.glob("*.gguf")):
        hint = f"; to serve a GGUF file of it, set gguf_file: {ggufs[0]}"
    elif (folder / "adapter_config.json").is_file():
        hint = "; it is a LoRA adapter, which belongs under `adapters` of its base model"
    raise _wrong("path", f"{folder} has no config.json{hint}")


def _wrong(setting: str, what: str) -> ProviderFailed:
    return ProviderFailed(f"model_info.optillm_local.{setting}: {what}", status=500)
