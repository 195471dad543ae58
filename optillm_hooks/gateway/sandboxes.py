"""LiteLLM's sandboxes as a code runner: E2B, OpenSandbox, and what else its version supports.

LiteLLM has no price for them: what they cost is on the provider's bill. Its callbacks see each
operation, with the caller's key.
"""

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from optillm_hooks.code_execution.runner import SnippetResult
from optillm_hooks.errors import RequestRejected
from optillm_hooks.fanout import opened
from optillm_hooks.gateway.caller import span_metadata
from optillm_hooks.services import ServiceFailed

T = TypeVar("T")

MAX_PRINTED: Final = 1 << 16
_CLOSE_S: Final = 15.0
_SPARE_S: Final = 30.0
"""Seconds after its last snippet at which the provider ends a sandbox that was not closed."""

_STDIN: Final = """\
import builtins, io, sys
sys.stdin = io.StringIO({text!r})
def _read_line(*_):
    line = sys.stdin.readline()
    if not line:
        raise EOFError("EOF when reading a line")
    return line.rstrip("\\n")
builtins.input = _read_line"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxRunner:
    """Runs programs in a sandbox of a provider, made for one run and closed after it.

    The sandbox is asked for without access to the internet.
    """

    tool: str
    provider: str
    access: Mapping[str, str | None]
    """The provider's `api_key` and `api_base`."""

    template: str | None
    seconds: float
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The caller, for LiteLLM's log."""

    @property
    def note(self) -> str:
        return "It runs without network."

    async def run(self, snippets: Sequence[str], *, stdin: str = "") -> Sequence[SnippetResult]:
        needed_s = self.seconds * (len(snippets) + 1) + _SPARE_S
        async with opened(lambda: self._create(needed_s), self._delete) as sandbox:
            if stdin:
                await self._run(sandbox, _STDIN.format(text=stdin))
            ran: list[SnippetResult] = []
            for snippet in snippets:
                ran.append(await self._run(sandbox, snippet))
                if ran[-1].timed_out:
                    break
            return ran

    async def _create(self, needed_s: float) -> object:
        from litellm.sandbox.main import acreate_sandbox

        return await self._done(
            acreate_sandbox(
                provider=self.provider,
                template=self.template,
                timeout=int(needed_s),
                allow_internet_access=False,
                litellm_metadata={**self.metadata, **span_metadata()},
                **self.access,
            ),
            self.seconds,
        )

    async def _run(self, sandbox: object, code: str) -> SnippetResult:
        from litellm.sandbox.main import arun_code

        try:
            async with asyncio.timeout(self.seconds):
                ran = await self._done(
                    arun_code(
                        provider=self.provider,
                        container=sandbox,
                        code=code,
                        api_key=self.access.get("api_key"),
                        litellm_metadata={**self.metadata, **span_metadata()},
                    )
                )
        except TimeoutError:
            error = f"TimeoutError: it ran for more than {self.seconds:g} seconds"
            return SnippetResult(output="", error=error, timed_out=True)
        return SnippetResult(
            output=ran.stdout[:MAX_PRINTED],
            stderr=ran.stderr[:MAX_PRINTED],
            error=_error(ran.error),
        )

    async def _delete(self, sandbox: object) -> None:
        from litellm.sandbox.main import adelete_sandbox

        await self._done(
            adelete_sandbox(
                provider=self.provider,
                container=sandbox,
                litellm_metadata={**self.metadata, **span_metadata()},
                **self.access,
            ),
            _CLOSE_S,
        )

    async def _done(self, call: Awaitable[T], seconds: float | None = None) -> T:
        """Return the result of `call`.

        Raises:
            TimeoutError: `seconds` is None, and the caller's own time is up.
            ServiceFailed: it failed. Of the provider's words none is passed on.
        """
        try:
            async with asyncio.timeout(seconds):
                return await call
        except TimeoutError as exc:
            if seconds is None:
                raise
            raise ServiceFailed(f"the sandbox {self.tool!r} does not answer") from exc
        except Exception as exc:
            raise ServiceFailed(f"the sandbox {self.tool!r} failed: {type(exc).__name__}") from exc


def _error(error: Mapping[str, Any] | None) -> str:
    if not error or (error.get("name") == "SystemExit" and error.get("value") in ("", "0", "None")):
        return ""
    return f"{error.get('name')}: {error.get('value')}"[:2000]


def sandbox_runner(
    tool: str, template: str | None, seconds: float, metadata: Mapping[str, Any]
) -> SandboxRunner:
    """Return the runner of an entry of LiteLLM's `sandbox_tools`.

    Raises:
        RequestRejected: there is none of that name, or LiteLLM is too old.
    """
    try:
        from litellm.sandbox.sandbox_tools import resolve_sandbox_tool
    except ImportError as exc:
        raise _rejected("this version of LiteLLM has no sandbox_tools") from exc
    if not tool:
        raise _rejected("set code_runner_options.litellm.sandbox_tool")
    found = resolve_sandbox_tool(tool)
    if found is None:
        raise _rejected(f"sandbox_tools has no entry {tool!r}")
    return SandboxRunner(
        tool=tool,
        provider=str(found["sandbox_provider"]),
        access={"api_key": found.get("api_key"), "api_base": found.get("api_base")},
        template=template,
        seconds=seconds,
        metadata=metadata,
    )


def _rejected(reason: str) -> RequestRejected:
    return RequestRejected(f'code_runner "litellm": {reason}', param="optillm_settings")
