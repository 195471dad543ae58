"""LiteLLM's sandboxes as a code runner, against a host that speaks their wire formats."""

import asyncio
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import litellm
import pytest
from litellm.integrations.custom_logger import CustomLogger
from litellm.litellm_core_utils.logging_worker import GLOBAL_LOGGING_WORKER
from litellm.llms.custom_httpx.http_handler import AsyncHTTPHandler
from litellm.llms.e2b.sandbox.transformation import E2BSandboxConfig
from litellm.sandbox import sandbox_tools

from optillm_hooks.code_execution.runner import SnippetResult
from optillm_hooks.errors import RequestRejected
from optillm_hooks.gateway.sandboxes import SandboxRunner, sandbox_runner
from optillm_hooks.services import ServiceFailed
from tests.sandbox_host import HANG, KEY, SandboxHost

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("litellm_in_this_loop")]


class ToHost(httpx.AsyncBaseTransport):
    """Sends everything to the host on loopback, whose name E2B's client makes up for itself."""

    def __init__(self, host: SandboxHost) -> None:
        self._url = httpx.URL(host.url)
        self._inner = httpx.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        request.url = request.url.copy_with(scheme="http", host="127.0.0.1", port=self._url.port)
        return await self._inner.handle_async_request(request)


@pytest.fixture(params=["opensandbox", "e2b"])
def host(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[SandboxHost]:
    with SandboxHost() as running:
        entry = {
            "sandbox_tool_name": "box",
            "litellm_params": {
                "sandbox_provider": request.param,
                "api_key": KEY,
                "api_base": running.url,
            },
        }
        sandbox_tools.register_sandbox_tools([entry])
        if request.param == "e2b":
            handler = AsyncHTTPHandler()
            handler.client = httpx.AsyncClient(transport=ToHost(running))
            monkeypatch.setattr(E2BSandboxConfig, "_http", lambda *_: handler)
        yield running
        sandbox_tools.clear_sandbox_tools()


def runner(seconds: float = 20.0) -> SandboxRunner:
    return sandbox_runner("box", None, seconds, {"user_api_key": "hash"})


async def test_snippets_share_a_sandbox_which_is_closed(host: SandboxHost) -> None:
    ran = await runner().run(
        [
            "def double(x):\n    return 2 * x",
            "1 / 0",
            "print(double(int(input())))",
            "import sys; print('odd', file=sys.stderr)",
            "raise SystemExit",
        ],
        stdin="21\n",
    )
    assert [r.output for r in ran] == ["", "", "42\n", "", ""]
    assert [r.error for r in ran] == ["", "ZeroDivisionError: division by zero", "", "", ""]
    assert ran[3].stderr == "odd\n"
    host.until_all_are_closed()


async def test_a_sandbox_that_nobody_closes_ends_by_itself(host: SandboxHost) -> None:
    await runner(seconds=20.0).run(["x = 1", "x = 2"])
    [sandbox] = host.sandboxes.values()
    assert 60 <= sandbox.asked["timeout"] <= 120


class Seen(CustomLogger):  # type: ignore[misc] # the base is not typed
    """Notes each operation that LiteLLM tells its callbacks of, and for whom."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[str, str]] = []

    async def async_log_success_event(
        self, kwargs: dict[str, Any], response_obj: object, start_time: object, end_time: object
    ) -> None:
        del response_obj, start_time, end_time
        key = kwargs["litellm_params"]["metadata"]["user_api_key"]
        self.operations.append((kwargs["call_type"], key))


SEEN = Seen()
"""LiteLLM keeps one callback of a class for the life of the process."""


CALLBACKS = (
    "input_callback", "success_callback", "failure_callback", "_async_input_callback",
    "_async_success_callback", "_async_failure_callback",
)  # fmt: skip


async def test_litellms_callbacks_see_each_operation_and_for_whom(
    host: SandboxHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    SEEN.operations.clear()
    for kept in CALLBACKS:  # LiteLLM keeps at most 100, and each router of other tests adds some
        monkeypatch.setattr(litellm, kept, [])
    monkeypatch.setattr(litellm, "callbacks", [SEEN])
    await runner().run(["x = 1"])
    await GLOBAL_LOGGING_WORKER.flush()
    kinds = ["acreate_sandbox", "arun_code", "adelete_sandbox"]
    assert SEEN.operations == [(kind, "hash") for kind in kinds]
    host.until_all_are_closed()


async def test_output_is_cut(host: SandboxHost) -> None:
    [ran] = await runner().run(["print('x' * 200_000)"])
    assert len(ran.output) == 1 << 16
    host.until_all_are_closed()


async def test_a_program_without_an_end_is_stopped_and_its_sandbox_closed(
    host: SandboxHost,
) -> None:
    ran = await runner(seconds=0.5).run(["print(1)", HANG, "print(2)"])
    assert ran[0] == SnippetResult(output="1\n", error="")
    assert (len(ran), ran[1].timed_out) == (2, True)
    host.until_all_are_closed()


async def test_cancelling_a_program_closes_its_sandbox(host: SandboxHost) -> None:
    task = asyncio.ensure_future(runner().run([HANG]))
    while not host.running.is_set():  # noqa: ASYNC110 (the host is in another thread)
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    host.until_all_are_closed()


async def test_cancelling_while_the_sandbox_is_made_closes_it(host: SandboxHost) -> None:
    """It is billed from its creation, of which the client would never hear."""
    host.may_create.clear()
    task = asyncio.ensure_future(runner().run(["print(1)"]))
    while not host.creating.is_set():  # noqa: ASYNC110 (the host is in another thread)
        await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()  # whoever is impatient
    await asyncio.sleep(0)
    host.may_create.set()
    await asyncio.wait([task])
    assert task.cancelled()
    async with asyncio.timeout(20):
        while not host.sandboxes or host.open:  # noqa: ASYNC110 (the host is in another thread)
            await asyncio.sleep(0.01)
    host.until_all_are_closed()


@pytest.mark.parametrize("status", [401, 429, 500])
async def test_a_sandbox_that_cannot_be_made_is_an_error_without_the_hosts_words(
    host: SandboxHost, status: int
) -> None:
    host.create_fails = status
    with pytest.raises(ServiceFailed, match="the sandbox 'box' failed") as caught:
        await runner().run(["print(1)"])
    assert KEY not in str(caught.value)
    assert caught.value.status == 502


async def test_a_sandbox_that_takes_too_long_to_make_is_an_error(host: SandboxHost) -> None:
    host.may_create.clear()
    with pytest.raises(ServiceFailed, match="does not answer"):
        await runner(seconds=0.2).run(["print(1)"])
    host.may_create.set()


@pytest.mark.parametrize(
    ("tool", "said"), [("", "set code_runner_options"), ("other", "no entry 'other'")]
)
def test_a_sandbox_that_is_not_configured_is_refused(tool: str, said: str) -> None:
    with pytest.raises(RequestRejected, match=said):
        sandbox_runner(tool, None, 20.0, {})


def test_a_version_of_litellm_without_sandboxes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:

    lacking: Any = None
    monkeypatch.setitem(sys.modules, "litellm.sandbox.sandbox_tools", lacking)
    with pytest.raises(RequestRejected, match="this version of LiteLLM"):
        sandbox_runner("box", None, 20.0, {})
