"""The real LiteLLM proxy, as a process of its own on loopback.

A module's tests share one:

    @pytest.fixture(scope="module")
    def proxy(tmp_path_factory, upstream):
        with Proxy(config, tmp_path_factory.mktemp("proxy")) as running:
            yield running
"""

import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx
import openai
import yaml

from optillm_hooks.llm import Price
from tests.preloaded import Forked

ROOT: Final = Path(__file__).parent.parent
PRICE: Final = Price(prompt=2e-6, completion=8e-6)
"""Price of every model that `model_group` makes."""

Config = dict[str, Any]
_LITELLM: Final = "import litellm; litellm.run_server()"
_MARK: Final[Config] = {
    "model_name": "mark",
    "litellm_params": {"model": "openai/mark", "api_key": "none", "mock_response": "noted"},
}
_HOOK: Final = "optillm_hooks.gateway.hook"
_START_S: Final = 300.0
_CHECK_S: Final = 0.05


def model_group(name: str, upstream_url: str, **params: object) -> Config:
    """Return the YAML entry of a priced model behind the scripted upstream, without retries."""
    return {
        "model_name": name,
        "litellm_params": {
            "model": f"openai/{name}",
            "api_base": upstream_url,
            "api_key": "upstream-key",
            "input_cost_per_token": PRICE.prompt,
            "output_cost_per_token": PRICE.completion,
            "max_retries": 0,
            **params,
        },
    }


def alias(name: str, expression: str, base: str = "base", **optillm: object) -> Config:
    """Return the YAML entry of an alias of `expression` over the model group `base`."""
    return {
        "model_name": name,
        "litellm_params": {"model": f"optillm/{expression}/{base}", "num_retries": 0},
        "model_info": {"optillm": optillm},
    }


def plain_config(models: Sequence[Config], **litellm_settings: object) -> Config:
    """Return the configuration of a stock proxy: the shipped settings, without what is ours.

    Retries and cooldowns are off, so that a scripted fault is seen once and hits one test only.
    """
    shipped = shipped_config()
    settings = dict(shipped["litellm_settings"])
    del settings["custom_provider_map"]
    settings["callbacks"] = [name for name in settings["callbacks"] if name != _HOOK]
    return shipped | {
        "model_list": list(models),
        "litellm_settings": {**settings, "num_retries": 0, **litellm_settings},
        "router_settings": {
            **shipped.get("router_settings", {}),
            "num_retries": 0,
            "disable_cooldowns": True,
        },
    }


def hooked_config(models: Sequence[Config], **litellm_settings: object) -> Config:
    """Return the configuration of a proxy with the shipped settings and the free forms open."""
    shipped = shipped_config()
    ours = {
        name: shipped["litellm_settings"][name] for name in ("custom_provider_map", "callbacks")
    }
    [free] = [entry for entry in shipped["model_list"] if entry["model_name"] == "optillm/*"]
    return plain_config([*models, free], **{**ours, **litellm_settings})


def shipped_config() -> Config:
    """Return the configuration that `make serve` starts."""
    config: Config = yaml.safe_load((ROOT / "litellm_config.yaml").read_text())
    return config


@dataclass(frozen=True, slots=True)
class Entry:
    """One call as LiteLLM logged it; see `tests.inside_proxy.Ledger`."""

    status: str
    key_hash: str | None
    key_alias: str | None
    model: str
    model_group: str | None
    provider: str | None
    call_type: str
    stream: bool
    cost: float
    prompt_tokens: int
    completion_tokens: int
    call_id: str | None
    trace_id: str | None
    origin: str | None
    tags: list[str]
    end_user: str | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Hold:
    """A time in which the proxy's event loop was held; see `tests.inside_proxy.Holds`."""

    started: float
    """Instant on `time.monotonic`, which all processes share, as is `ended`."""

    ended: float
    cpu: float
    """Seconds of CPU time, without the garbage collector's."""

    collecting: float
    """The garbage collector's seconds of CPU time."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Memory and CPU time of a process and its descendants."""

    rss_bytes: int
    cpu_s: float


class Proxy:
    """A running proxy.

    Args:
        config: the YAML, as a dict.
        folder: where its files go: the YAML, the log, the ledger.
        keys: fields of LiteLLM's `UserAPIKeyAuth` by virtual key (`models`, `tpm_limit`,
            `max_budget`, `key_alias`, ...); None leaves authentication to the stock proxy, which
            knows the master key only.
        env: more variables of the environment.
        ledger: whether each call is written down; a benchmark goes without.
        command: whether it starts by LiteLLM's own command, for eight times the CPU time of a fork
            of a process that has imported it: for variables that are read on import, and for what
            holds of a process from its start.
        options: more options of LiteLLM's command.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        *,
        keys: Mapping[str, Mapping[str, object]] | None = None,
        env: Mapping[str, str] | None = None,
        ledger: bool = True,
        command: bool = False,
        options: Sequence[str] = (),
    ) -> None:
        self._config = _with_inside(config, custom_auth=keys is not None, ledger=ledger)
        self._folder = folder
        self._keys = keys
        self._more_env = dict(env or {})
        self._command = command
        self._options = options
        self._process: subprocess.Popen[bytes] | Forked | None = None
        self._clients = ExitStack()
        self.http = self._clients.enter_context(httpx.Client(timeout=60))
        self.port = free_port()
        self.master_key = f"sk-{secrets.token_hex(16)}"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        return (self._folder / "proxy.log").read_text(errors="replace")

    @property
    def blocked(self) -> list[str]:
        """Hosts beyond loopback that the proxy tried to reach."""
        return whole_lines(self._folder / "blocked.log")

    @property
    def entries(self) -> list[Entry]:
        """What LiteLLM has logged so far. It logs after it has answered: see `settle`."""
        lines = whole_lines(self._folder / "ledger.jsonl")
        return [Entry(**json.loads(line)) for line in lines]

    @property
    def holds(self) -> list[Hold]:
        """When its event loop was held for long; needs the callback `tests.inside_proxy.holds`."""
        return [Hold(**json.loads(line)) for line in whole_lines(self._folder / "holds.jsonl")]

    def charged(self, key: str) -> float:
        """Return the dollars on LiteLLM's counter for a virtual key, by which it holds budgets."""
        self.http.get(f"{self.url}/v1/models", headers={"authorization": f"Bearer {key}"})
        lines = whole_lines(self._folder / "charged.jsonl")
        noted = [entry for line in lines if (entry := json.loads(line))["key"] == key]
        return float(noted[-1]["charged"])

    @property
    def footprint(self) -> Footprint:
        return footprint(self.pid)

    def openai(self, key: str | None = None, **options: Any) -> openai.OpenAI:
        """Return a client that does not retry. It is closed with the proxy."""
        made = openai.OpenAI(
            base_url=f"{self.url}/v1",
            api_key=key or self.master_key,
            max_retries=0,
            timeout=60,
            **options,
        )
        return self._clients.enter_context(made)

    def post(
        self,
        path: str,
        body: object,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 60,
    ) -> httpx.Response:
        """Send `body` as JSON; bytes are sent unchanged.

        Raises:
            AssertionError: the proxy has ended; with its exit status and the end of its log.
        """
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            return self.http.post(
                f"{self.url}{path}",
                content=content,
                headers={
                    "authorization": f"Bearer {key or self.master_key}",
                    "content-type": "application/json",
                    **(headers or {}),
                },
                timeout=timeout_s,
            )
        except httpx.ConnectError:
            assert self._process is not None
            code = self._process.poll()
            if code is None:
                raise
            raise AssertionError(f"the proxy ended with {code}:\n{self.log[-4000:]}") from None

    def wait_until(self, holds: Callable[["Proxy"], bool], *, within_s: float = 30.0) -> None:
        """Wait until `holds`.

        Raises:
            AssertionError: it does not after `within_s` seconds, or the proxy has ended.
        """
        assert self._process is not None
        end = time.monotonic() + within_s
        while not holds(self):
            assert time.monotonic() < end, f"not so after {within_s} s; log:\n{self.log[-4000:]}"
            try:
                code = self._process.wait(_CHECK_S)
            except subprocess.TimeoutExpired:
                continue
            raise AssertionError(f"the proxy ended with {code}:\n{self.log[-4000:]}")

    def settle(self) -> None:
        """Wait until LiteLLM has logged and charged what it answered before now; needs the ledger.

        A call to a model of its own serves as the mark: see `tests.inside_proxy.Ledger`.
        """
        body = {"model": _MARK["model_name"], "messages": [{"role": "user", "content": "mark"}]}
        mark = self.post("/v1/chat/completions", body).headers["x-litellm-call-id"]
        self.wait_until(lambda proxy: any(entry.call_id == mark for entry in proxy.entries))

    def booked(self, own: str) -> list[Entry]:
        """Return what LiteLLM has logged of a test's own requests and of their inner calls.

        What an earlier request has left to be logged is not among it. A call that was cut off may
        be logged later: wait for it.

        Args:
            own: a trace, of requests that were sent with the headers `traceparent(own)`; or a key
                made by `copy_of`.
        """
        self.settle()
        key_hash = sha256(own.encode()).hexdigest()
        return [e for e in self.entries if e.trace_id == own or e.key_hash == key_hash]

    def __enter__(self) -> Self:
        (self._folder / "config.yaml").write_text(yaml.safe_dump(self._config))
        (self._folder / "keys.json").write_text(json.dumps(self._keys))
        address = ("--host", "127.0.0.1", "--port", str(self.port))
        # Longer than a busy machine takes from one request to the next: a client that sends while
        # an idle connection is closed has an error.
        keep = ("--keepalive_timeout", "60")
        arguments = ("--config", "config.yaml", *address, *keep, *self._options)
        self._process = self._by_command(arguments) if self._command else self._forked(arguments)
        try:
            self.wait_until(_is_ready, within_s=_START_S)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()
        if error is None:
            assert not self.blocked, f"the proxy tried to reach {sorted(set(self.blocked))}"

    def _by_command(self, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        with (self._folder / "proxy.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-c", _LITELLM, *arguments],
                cwd=self._folder,
                env={**self._env(), **self._more_env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _forked(self, arguments: Sequence[str]) -> Forked:
        log = self._folder / "proxy.log"
        log.touch()
        return Forked(
            arguments, folder=self._folder, env=self._env(), more_env=self._more_env, log=log
        )

    def _end(self) -> None:
        assert self._process is not None
        self._clients.close()
        self._process.terminate()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _env(self) -> dict[str, str]:
        """Return an environment with nothing of the developer's own but the path."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self._folder),
            "PYTHONPATH": f"{ROOT / 'tests' / 'loopback_only'}{os.pathsep}{ROOT}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "LITELLM_MASTER_KEY": self.master_key,
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
            "HF_HUB_OFFLINE": "1",
            "NO_COLOR": "1",
            "BLOCKED_LOG": str(self._folder / "blocked.log"),
            "TEST_KEYS": str(self._folder / "keys.json"),
            "TEST_CHARGED": str(self._folder / "charged.jsonl"),
            "TEST_LEDGER": str(self._folder / "ledger.jsonl"),
            "TEST_HOLDS": str(self._folder / "holds.jsonl"),
        }


def _with_inside(config: Config, *, custom_auth: bool, ledger: bool) -> Config:
    """Return `config` with our table of keys and with the ledger, as asked for."""
    settings = dict(config["litellm_settings"])
    models = list(config["model_list"])
    if ledger:
        models.append(_MARK)
        settings["callbacks"] = [*settings.get("callbacks", []), "tests.inside_proxy.ledger"]
    general = dict(config["general_settings"])
    if custom_auth:
        settings["callbacks"] = [
            *settings.get("callbacks", []),
            "tests.inside_proxy.spend_counters",
        ]
        general["disable_spend_logs"] = True
        general["custom_auth"] = "tests.inside_proxy.authenticate"
        # Budgets and limits come with the first switch, the key's list of models with the second.
        general["custom_auth_run_common_checks"] = True
        settings["enable_post_custom_auth_checks"] = True
    return config | {
        "model_list": models,
        "litellm_settings": settings,
        "general_settings": general,
    }


def _is_ready(proxy: Proxy) -> bool:
    try:
        return proxy.http.get(f"{proxy.url}/health/readiness", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def whole_lines(path: Path) -> list[str]:
    """Return the complete lines of a file to which another process appends.

    Empty if there is no file yet. A line that crosses a page may be seen in two pieces.
    """
    written = path.read_text() if path.exists() else ""
    return written[: written.rfind("\n") + 1].splitlines()


def copy_of(key: str) -> str:
    """Return a virtual key with the rights and limits of `key`, which has spent nothing yet."""
    return f"{key}+{secrets.token_hex(8)}"


def new_trace() -> str:
    """Return the id of a trace, by which the entries of a test's own requests are found."""
    return secrets.token_hex(16)


def traceparent(trace: str) -> dict[str, str]:
    """Return the header by which a request belongs to `trace`."""
    return {"traceparent": f"00-{trace}-{secrets.token_hex(8)}-01"}


def free_port() -> int:
    """Return a port on which nobody listens.

    It is below those that systems give to outgoing connections, of which one could take it before
    it is listened on.
    """
    while True:
        port = 10_000 + secrets.randbelow(20_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def footprint(pid: int) -> Footprint:
    """Return the memory and CPU time of `pid` and its descendants, from /proc."""
    parents = {
        int(entry.name): int(fields[1])
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and (fields := _stat(int(entry.name)))
    }
    family = {pid}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    stats = [fields for member in family if (fields := _stat(member))]
    ticks, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    return Footprint(
        rss_bytes=sum(int(fields[21]) for fields in stats) * page,
        cpu_s=sum(int(fields[11]) + int(fields[12]) for fields in stats) / ticks,
    )


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the state on; none if the process is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return re.sub(r"^.*\) ", "", text, flags=re.DOTALL).split()
