"""What approaches use besides models, and on whose behalf: each service is a protocol.

The gateway gives a request the services that the operator has switched on; the others are None.
What a service returns is data of strangers: web pages, tool results. Show it to a model only as
such (`prompts.enclose`).
"""

import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple, Protocol, get_args

from optillm_hooks.code_execution.runner import CodeRunner
from optillm_hooks.errors import RequestRejected, SampleError
from optillm_hooks.store.records import Namespace, Scope
from optillm_hooks.store.store import Store
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
    end_user: str = ""
    """The id of the client's own user, which the request names (`user`)."""

    session: str = ""
    """The session that the client names."""

    def namespace(self, scope: Scope) -> Namespace:
        """Return the namespace of the request's key, team or user.

        Raises:
            RequestRejected: the request has none. Rows of nobody would be everybody's.
        """
        owner: str = getattr(self, scope)
        if not owner:
            raise RequestRejected(
                f"this request has no {scope}, so nothing can be kept for it: "
                f"call with a virtual key that has one, or choose another scope"
            )
        return Namespace(scope, owner)

    def namespaces(self) -> list[Namespace]:
        """Return the namespaces that the request has, of its key, team and user."""
        owners = ((scope, getattr(self, scope)) for scope in get_args(Scope))
        return [Namespace(scope, owner) for scope, owner in owners if owner]


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
    """Its name at the server. Not every model's provider takes it (`tools.offer`)."""

    description: str
    parameters: Fields
    """The JSON Schema of its arguments, as the server wrote it."""

    server: str = ""
    price_usd: float = 0.0
    """What a call costs the caller."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolWish:
    """The tools that a request asks for."""

    servers: tuple[str, ...] | None = None
    """Names of servers or of groups of them; None is all that the caller may use."""

    tools: tuple[str, ...] | None = None
    """Names of tools, with or without that of their server; None is all."""

    resources: bool = False
    """Whether tools that list and read the servers' resources are wanted."""

    prompts: bool = False
    """Whether tools that list and get the servers' prompts are wanted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolOffer:
    """The tools that the caller may use, and how many of the servers have answered."""

    tools: tuple[Tool, ...]
    missing: int = 0
    """Names that were wished for, and that no tool has."""

    servers: int = 0
    unreachable: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolResult:
    """What a tool returned, as data of a stranger."""

    text: str
    images: tuple[str, ...] = ()
    """Data URLs."""

    is_error: bool = False


class ToolBox(Protocol):
    """The tools of the operator's servers."""

    def check(self) -> None:
        """Raise `RequestRejected` if there are no servers. The message says what to set."""
        ...

    async def offer(self, wish: ToolWish, /) -> ToolOffer:
        """Return the tools that the caller may use. A server that cannot be reached has none.

        Raises:
            Refused: the caller may use no server, or none of a name that the wish has.
        """
        ...

    async def call(self, tool: Tool, arguments: dict[str, Json], /) -> ToolResult:
        """Return the result of a tool. Cancelling it ends what it has started.

        Raises:
            ServiceFailed: the tool could not be called.
        """
        ...


class Embed(Protocol):
    """An embedding model."""

    async def __call__(self, texts: Sequence[str], /) -> tuple[Sequence[Sequence[float]], Usage]:
        """Return the vector of each text, and the usage; pass that to `Context.spend`.

        Raises:
            ServiceFailed: the call failed.
        """
        ...


class AnswerCheck(Protocol):
    """The operator's own check of answers."""

    async def __call__(self, question: str, answer: str, /) -> tuple[bool | None, float | None]:
        """Return whether an answer passes and its score from 0 to 1, each if it is known.

        Raises:
            ServiceFailed: the check could not be made.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteKeeping:
    """How notes of conversations are kept in the store."""

    ttl_s: float | None = None
    """Seconds after which a note is deleted; None keeps it."""


class PrivateValue(NamedTuple):
    """A private value that a detector has found in a text."""

    start: int
    end: int
    entity: str
    """Its kind, such as `PERSON`."""


class Detector(Protocol):
    """Finds private values that need more than their form to be recognised, such as names."""

    async def __call__(self, texts: Sequence[str], /) -> Sequence[Sequence[PrivateValue]]:
        """Return the private values in each text.

        Raises:
            ServiceFailed: the texts were not searched. They are not sent to a model then.
        """
        ...


Attachments = Literal["refuse", "pass"]
"""What happens to a message with an image, a sound or a file, in which nothing can be replaced."""


_SECRET: Final = secrets.token_bytes(32)
"""A secret of this process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Privacy:
    """How private values are found, as the operator has set it."""

    secret: bytes = field(default=_SECRET, repr=False)
    """What pseudonyms are made from. The same in all workers of a proxy that share a key."""

    detectors: tuple[Detector, ...] = ()
    """Those besides the built-in ones."""

    missing: str = ""
    """What has to be installed or set before a request can be served; empty if nothing has."""

    entities: tuple[str, ...] | None = None
    """The kinds that are replaced; None are all."""

    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    attachments: Attachments = "refuse"


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
    answer_check: AnswerCheck | None = None
    store: Store | None = None
    """Keeps rows of the owner's namespaces; opened when it is first used."""

    notes: NoteKeeping | None = None
    """None if the operator has no notes of conversations kept."""

    privacy: Privacy = field(default_factory=Privacy)
    learns: bool = False
    """Whether the operator lets stages learn from requests."""

    later: Callable[[Callable[[], Awaitable[None]]], bool] = _nothing_later
    """Runs work after the answer, which never waits for it; returns whether it was accepted."""
