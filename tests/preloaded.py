"""A process that has imported what every proxy imports, and forks one proxy after another.

The imports take most of a start's CPU time. The process is multiprocessing's fork
server; it starts with the first proxy and ends with the tests.
"""

import faulthandler
import gc
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

_IMPORTED: Final = [
    "litellm.proxy.proxy_server",
    "litellm.litellm_core_utils.default_encoding",
    "openai.resources",
    "uvicorn",
    "optillm_hooks.approaches",
    "tests.warm_routes",
    __name__,
]
"""What a start and the first request import.

Not `optillm_hooks.gateway`: its import acts on the YAML, the working directory and variables.
"""

_CONTEXT: Final = multiprocessing.get_context("forkserver")


def processes() -> set[int | None]:
    """Return the ids of the fork server and of multiprocessing's tracker, if they run."""
    server: Any = forkserver._forkserver
    tracker: Any = resource_tracker._resource_tracker
    return {server._forkserver_pid, tracker._pid}


class Forked:
    """A proxy that was forked, with the part of `subprocess.Popen` that `tests.proxy` uses."""

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        folder: Path,
        env: Mapping[str, str],
        more_env: Mapping[str, str],
        log: Path,
    ) -> None:
        """Start LiteLLM's command with `arguments` and these variables alone, as in a new process.

        What is read from the environment on import is that of the first start, without its
        `more_env`: so a proxy's own variables do not reach those of other modules.
        """
        forkserver.set_forkserver_preload(_IMPORTED)
        with patch.dict(os.environ, env, clear=True):
            forkserver.ensure_running()
        env = {**env, **more_env}
        self._process = _CONTEXT.Process(target=_serve, args=(arguments, folder, env, log))
        self._process.start()
        assert self._process.pid is not None
        self.pid: Final = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired("litellm", timeout or 0)
        return code

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


def _serve(arguments: Sequence[str], folder: Path, env: Mapping[str, str], log: Path) -> None:
    import litellm

    gc.freeze()  # a collection would go through, and so copy, all that was imported
    os.environ.update(env)  # beside what the imports have set
    os.chdir(folder)
    with open(os.devnull) as nothing, log.open("wb") as written:
        os.dup2(nothing.fileno(), 0)
        os.dup2(written.fileno(), 1)
        os.dup2(written.fileno(), 2)
    faulthandler.enable()  # a crash of the interpreter is told in the log
    sys.argv = ["-c", *arguments]
    sys.path.insert(0, "")
    litellm.run_server()
