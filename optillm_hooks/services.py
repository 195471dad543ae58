"""What approaches use besides models, and on whose behalf: each service is a protocol.

The gateway gives a request the services that the operator has switched on; the others are None.
What a service returns is data of strangers: web pages, tool results. Show it to a model only as
such (`prompts.enclose`).
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from optillm_hooks.code_execution.runner import CodeRunner
from optillm_hooks.errors import SampleError
from optillm_hooks.types import Fields, Json, Usage


class ServiceFailed(SampleError):
    """A service did not do what was asked: a page cannot be read, a search or a tool failed."""

    status = 502
    code = "service_failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Whose request it is, by LiteLLM's ids; empty where there is none."""

    key: str = ""
    """The hash of the virtual key."""

    team: str = ""
    user: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """One result of a web search."""

    title: str
    url: str
    snippet: str = ""
    date: str = ""


def _not_counted(_: Usage) -> None:
    return None


class WebSearch(Protocol):
    """A search engine."""

    async def __call__(
        self, query: str, /, *, max_results: int, spent: Callable[[Usage], None] = _not_counted
    ) -> Sequence[SearchResult]:
        """Return at most `max_results` results, best first; none is not an error.

        Args:
            query: what to search for.
            max_results: 1 to 20.
            spent: called with what the search has cost; pass `Context.spend`.

        Raises:
            ServiceFailed: the search failed.
            Refused: the caller may not use it.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A web page as text."""

    url: str
    """Its address after all redirects."""

    title: str
    text: str
    truncated: bool = False
    """Whether a limit on its size has cut it."""


class Fetch(Protocol):
    """A reader of web pages that reaches public addresses only."""

    async def __call__(self, url: str, /) -> Page:
        """Return the page at `url`.

        Raises:
            ServiceFailed: the address is refused, or the page cannot be read. The message says why.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A tool that a server offers to models."""

    name: str
    """Letters, digits, underscores and hyphens, at most 64 characters."""

    description: str
    parameters: Fields
    """The JSON Schema of its arguments."""


class ToolBox(Protocol):
    """The tools that the caller may use."""

    async def tools(self) -> Sequence[Tool]:
        """Return the tools. A server that cannot be reached has none."""
        ...

    async def call(self, name: str, arguments: dict[str, Json], /) -> str:
        """Return the result of a tool as text.

        Raises:
            ServiceFailed: the tool failed, or may not be used.
        """
        ...


class Embed(Protocol):
    """An embedding model."""

    async def __call__(self, texts: Sequence[str], /) -> tuple[Sequence[Sequence[float]], Usage]:
        """Return the vector of each text, and the usage.

        Raises:
            ServiceFailed: the call failed.
        """
        ...


def _nothing_later(_: Callable[[], Awaitable[None]]) -> bool:
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The services of one request."""

    owner: Owner = field(default_factory=Owner)
    code_runner: CodeRunner | None = None
    """Runs programs that a model wrote; None if the operator does not allow it."""

    search: WebSearch | None = None
    fetch: Fetch | None = None
    toolbox: ToolBox | None = None
    embed: Embed | None = None
    later: Callable[[Callable[[], Awaitable[None]]], bool] = _nothing_later
    """Runs work after the answer, which never waits for it; returns whether it was accepted."""
