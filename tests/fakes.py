"""Fakes that only the tests of this repository need; see `optillm_hooks.testing` for the others."""

import asyncio
from collections.abc import AsyncGenerator, Sequence

from optillm_hooks.code_execution.runner import SnippetResult
from optillm_hooks.services import Services, Tool, ToolOffer, ToolResult, ToolWish
from optillm_hooks.testing import Hang, Reply, ScriptedLLM
from optillm_hooks.types import Chat, Delta, Json, Sampling


class Pieces(ScriptedLLM):
    """Streams `pieces` at the first stream, and answers other calls by the script."""

    def __init__(
        self, pieces: Sequence[Delta | Exception | Hang], replies: Sequence[Reply] = ()
    ) -> None:
        super().__init__(replies)
        self._pieces = pieces
        self.closed = False
        """Whether the stream was opened and closed."""

    async def stream(self, chat: Chat, sampling: Sampling, /) -> AsyncGenerator[Delta, None]:
        if self.closed:
            async for delta in super().stream(chat, sampling):
                yield delta
            return
        self.calls.append((chat, sampling))
        try:
            for piece in self._pieces:
                if isinstance(piece, Exception):
                    raise piece
                if isinstance(piece, Hang):
                    await asyncio.Event().wait()
                else:
                    yield piece
        finally:
            await asyncio.sleep(0)  # as closing a connection does
            self.closed = True


class EmptyToolBox:
    """MCP servers that cannot be reached."""

    def check(self) -> None: ...

    async def offer(self, _: ToolWish, /) -> ToolOffer:
        return ToolOffer(tools=())

    async def call(self, tool: Tool, arguments: dict[str, Json], /) -> ToolResult:
        raise AssertionError(f"{tool} is not offered, but called with {arguments}")


class ScriptedRunner:
    """A sandbox that gives `results` in the order of the sessions; the last one repeats.

    A result is that of the session's last snippet, or an error of the sandbox itself.
    """

    note = "It is small."

    def __init__(self, *results: SnippetResult | Exception) -> None:
        self._results = results
        self.sessions: list[tuple[str, ...]] = []

    async def run(self, snippets: Sequence[str], *, stdin: str = "") -> Sequence[SnippetResult]:
        assert not stdin
        self.sessions.append(tuple(snippets))
        await asyncio.sleep(0)
        result = self._results[min(len(self.sessions), len(self._results)) - 1]
        if isinstance(result, Exception):
            raise result
        return [*[SnippetResult(output="", error="")] * (len(snippets) - 1), result]


SERVICES = Services(
    toolbox=EmptyToolBox(),
    code_runner=ScriptedRunner(SnippetResult(output="42\n", error="")),
)
"""Every service that an approach may need. Its programs print 42, its tools cannot be reached."""
