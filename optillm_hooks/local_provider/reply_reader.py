"""Parses a streamed reply into reasoning, text and tool calls."""

from typing import NamedTuple

from optillm_hooks.local_provider.reasoning import THINK, ReasoningFormat
from optillm_hooks.local_provider.text import ThinkSplitter
from optillm_hooks.local_provider.tool_calls.finder import CallFinder
from optillm_hooks.local_provider.tool_calls.tools import Tools
from optillm_hooks.types import ToolCall


class Shown(NamedTuple):
    """A piece of a reply: text, reasoning, and the calls that follow the text."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()

    def plus(self, later: "Shown") -> "Shown":
        """Return this piece and the next as one."""
        return Shown(
            self.text + later.text, self.reasoning + later.reasoning, self.calls + later.calls
        )


class ReplyReader:
    """Parses a streamed reply into reasoning, text and tool calls.

    `opened`: the prompt ends inside a thinking block. `tools`: if None, calls are not parsed.
    """

    def __init__(
        self,
        *,
        opened: bool = False,
        tools: Tools | None = None,
        reasoning: ReasoningFormat = THINK,
    ) -> None:
        self._splitter = ThinkSplitter(opened=opened, reasoning=reasoning)
        self._finder = CallFinder(tools) if tools is not None else None

    @property
    def thinking(self) -> bool:
        return self._splitter.thinking

    @property
    def called(self) -> bool:
        """True if there were tool calls."""
        return self._finder is not None and self._finder.calls > 0

    @property
    def done(self) -> bool:
        """True if the rest of the reply would be ignored."""
        return self._finder is not None and self._finder.done

    def feed(self, text: str) -> Shown:
        """Return the part of the reply that is certain by now."""
        text, reasoning = self._splitter.feed(text)
        if self._finder is None:
            return Shown(text, reasoning)
        found = self._finder.feed(text)
        return Shown(found.text, reasoning, found.calls)

    def close(self) -> Shown:
        """Return what was held back; no more follows."""
        text, reasoning = self._splitter.close()
        if self._finder is None:
            return Shown(text, reasoning)
        first, rest = self._finder.feed(text), self._finder.close()
        return Shown(first.text + rest.text, reasoning, first.calls + rest.calls)
