"""Starts the LiteLLM proxy: `optillm-hooks serve`, or in a checkout `make serve`.

It checks for the most common mistakes before LiteLLM is loaded, keeps a random master key in
`.env`, and prints an example request once the proxy answers.
"""

import errno
import json
import os
import re
import secrets
import shlex
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dotenv import dotenv_values

from optillm_hooks.config_files import HERE, SHIPPED, CannotRun, read_config
from optillm_hooks.embedded_model import with_local_models

KEY = "LITELLM_MASTER_KEY"
_OURS = "optillm: "
"""How the text of our lines in the log begins."""

WILDCARD = "optillm/*"
"""The model name that allows prefixes such as `bon-smollm2`; LiteLLM does not list it."""

_START_S = 300.0
_CHECK_S = 0.2
_STOP_S = 15.0
_LITELLM = "import litellm; litellm.run_server()"


def read_env(path: Path) -> dict[str, str]:
    """Return the variables in a `.env` file, read as LiteLLM reads it; none if it is missing.

    Raises:
        CannotRun: the file cannot be read, or a value cannot be passed to a process.
    """
    try:
        read = dotenv_values(path)
    except OSError as exc:
        raise CannotRun(f"{path} cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise CannotRun(f"{path} is not UTF-8: {exc.reason} at byte {exc.start}") from exc
    env = {name: value for name, value in read.items() if value is not None}
    for name, value in env.items():
        if "\0" in name + value:
            raise CannotRun(f"{path}: {name!r} contains a null byte")
    return env


def ensure_key(path: Path) -> None:
    """Give the file `path` a random master key, readable by its owner only, if it has none.

    Raises:
        CannotRun: the file names the key and leaves it empty, or it cannot be written.
    """
    key = read_env(path).get(KEY)
    if key == "":
        raise CannotRun(f"{KEY} in {path} is empty: give it a value or delete the line")
    if key is not None:
        return
    try:
        before = path.read_text() if path.exists() else ""
        line_break = "\n" if before and not before.endswith("\n") else ""
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(f"{line_break}{KEY}=sk-{secrets.token_urlsafe(32)}\n")
    except OSError as exc:
        raise CannotRun(
            f"a master key cannot be written to {path}: {exc.strerror}; set {KEY} in the "
            "environment instead"
        ) from exc


def check_key(key: str) -> None:
    """Raise `CannotRun` if no client can send `key` in a header."""
    if not (key.isascii() and key.isprintable()):
        raise CannotRun(f"{KEY} must consist of printable ASCII characters")


def servable(path: Path, env: Mapping[str, str]) -> dict[str, Any]:
    """Return LiteLLM's configuration in the YAML file `path`.

    Raises:
        CannotRun: it cannot be read, it is not YAML, it has no models, or it names a variable
            that `env` lacks.
    """
    config = read_config(path)
    if not isinstance(config.get("model_list"), list):
        raise CannotRun(f"{path} has no model_list")
    for where, name in _variables(config, ""):
        if not env.get(name):
            raise CannotRun(f"{path}: {where} needs {name}, which is not set: put it into .env")
    return config


def _variables(node: object, where: str) -> Iterator[tuple[str, str]]:
    """Yield the place and the name of each `os.environ/NAME` in `node`."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _variables(value, f"{where}.{key}" if where else str(key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _variables(value, f"{where}[{index}]")
    elif isinstance(node, str) and node.startswith("os.environ/"):
        yield where, node.removeprefix("os.environ/")


def read_port(text: str) -> int:
    if not re.fullmatch("[0-9]{1,5}", text) or not 0 < int(text) < 65536:
        raise CannotRun(f"PORT must be a number from 1 to 65535, got {text!r}")
    return int(text)


def check_free(host: str, port: int) -> None:
    """Raise `CannotRun` if nothing can listen on `port` of `host`."""
    try:
        socket.create_server((host, port)).close()
    except OSError as exc:
        if exc.errno != errno.EADDRINUSE:
            raise CannotRun(f"nothing can listen on port {port} of {host}: {exc.strerror}") from exc
        raise CannotRun(
            f"port {port} of {host} is not free ({exc.strerror}): try PORT={port + 1}"
        ) from exc


def welcome(url: str, env_file: Path, key_from_env: bool, models: list[str], free: bool) -> str:
    """Return the text printed once the proxy answers: URL, key, models and an example request."""
    names = [name for name in models if name != WILDCARD]
    example = f"re2-{names[0]}" if free and names else next(iter(names), "MODEL")
    place = f"{KEY}, from your environment" if key_from_env else f"{KEY} in {env_file}"
    dotenv = shlex.join([sys.executable, "-m", "dotenv", "-f", str(env_file), "get", KEY])
    key = f"${KEY}" if key_from_env else f"$({dotenv})"
    body = json.dumps(
        {
            "model": example,
            "messages": [{"role": "user", "content": "What is the capital of France?"}],
            "stream": True,
        }
    )
    forms = f", and an approach before any of them: {example}" if free and names else ""
    return "\n".join(
        (
            "optillm_hooks is ready.",
            f"  URL     {url}/v1",
            f"  key     {place}",
            f"  models  {', '.join(names)}{forms}",
            f'  try     curl -sN {url}/v1/chat/completions -H "Authorization: Bearer {key}"'
            f" -H 'Content-Type: application/json' -d {shlex.quote(body)}",
            "",
        )
    )


class _Output:
    """The proxy's output, held back until `show` and then passed on line by line.

    Of what was held back, `show` passes on our own lines: they name what is wrong in the
    configuration.
    """

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = lines
        self._held: list[str] = []
        self._shown = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for line in self._lines:
            with self._lock:
                if self._shown:
                    sys.stdout.write(line)
                    sys.stdout.flush()
                else:
                    self._held.append(line)

    def show(self) -> None:
        with self._lock:
            sys.stdout.writelines(line for line in self._held if _OURS in line)
            sys.stdout.flush()
            self._shown = True

    def all_held(self) -> str:
        """Return the output of a proxy that ended before `show` was called."""
        self._thread.join()
        return "".join(self._held)


def serve(config_path: Path, env_file: Path, given: Mapping[str, str]) -> int:
    """Run the proxy until it ends, and return its exit status.

    `given` is the environment; `env_file` adds what it lacks.

    Raises:
        CannotRun: the proxy cannot start.
    """
    host, port = given.get("HOST", "127.0.0.1"), read_port(given.get("PORT", "4000"))
    if not given.get(KEY):
        ensure_key(env_file)
    env = (
        {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        | read_env(env_file)
        | {name: value for name, value in given.items() if value}
    )
    check_key(env[KEY])
    config = servable(config_path, env)
    check_free(host, port)
    env = with_local_models(config, env)
    command = [sys.executable, "-c", _LITELLM, "--config", str(config_path)]
    process = subprocess.Popen(  # noqa: S603 (our own interpreter, our own arguments)
        [*command, "--host", host, "--port", str(port)],
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    output = _Output(process.stdout or ())
    try:
        url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"  # noqa: S104
        models = _until_ready(process, output, url, env[KEY])
        names = [str(model.get("model_name")) for model in config["model_list"]]
        sys.stdout.write(
            welcome(url, env_file.resolve(), bool(given.get(KEY)), models, WILDCARD in names)
        )
        sys.stdout.flush()
        output.show()
        return process.wait()
    finally:
        _stop(process)


def _until_ready(
    process: "subprocess.Popen[str]", output: _Output, url: str, key: str
) -> list[str]:
    """Wait until the proxy answers, and return the names of its models."""
    end = time.monotonic() + _START_S
    while time.monotonic() < end:
        try:
            code = process.wait(_CHECK_S)
        except subprocess.TimeoutExpired:
            models = _models(url, key)
            if models is not None:
                return models
        else:
            log = output.all_held()
            sys.stderr.write(log)
            last = next((line for line in reversed(log.splitlines()) if line.strip()), "")
            raise CannotRun(f"LiteLLM ended with status {code} before it was ready: {last}")
    raise CannotRun(f"LiteLLM was not ready after {_START_S:.0f} s")


def _models(url: str, key: str) -> list[str] | None:
    """Return the models that a proxy lists, or None while it does not answer."""
    asked = urllib.request.Request(  # noqa: S310 (http, to ourselves)
        f"{url}/v1/models", headers={"Authorization": f"Bearer {key}"}
    )
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(asked, timeout=5) as answer:
            return [model["id"] for model in json.load(answer)["data"]]
    except urllib.error.HTTPError as exc:
        if exc.code in (401, 403):
            raise CannotRun(
                f"LiteLLM rejects our {KEY}: general_settings.master_key must be os.environ/{KEY}"
            ) from exc
        return None
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return None


def _stop(process: "subprocess.Popen[str]") -> None:
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def run(config: Path | None, host: str | None, port: str | None) -> int:
    """Serve until `KeyboardInterrupt`, and return the proxy's exit status if it ends by itself.

    Args:
        config: LiteLLM's YAML; None is `HERE`, or `SHIPPED` if there is none.
        host: the address to listen on; None is HOST in the environment, or 127.0.0.1.
        port: the port as text; None is PORT, or 4000.

    Raises:
        CannotRun: the proxy cannot start.
    """
    given = {name: value for name, value in (("HOST", host), ("PORT", port)) if value is not None}
    path = config or (HERE if HERE.exists() else SHIPPED)
    return serve(path, Path(".env"), {**os.environ, **given})
