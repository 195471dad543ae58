"""What the store keeps, as stages see it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from optillm_hooks.errors import SampleError

Scope = Literal["key", "team", "user"]
"""Whose rows: those of a virtual key, of a team or of a user."""

MAX_NOTE_CHARS: Final = 20_000
MAX_NOTES: Final = 10_000
"""Maximum notes of a namespace: a new one takes the place of the oldest."""

MAX_TEXT_CHARS: Final = 200_000
MAX_TEXTS: Final = 1000
"""Maximum cached texts of a namespace."""

MAX_METHOD_CHARS: Final = 4000
MAX_STRATEGIES: Final = 200
"""Maximum strategies of a namespace: a new one takes the place of the least useful."""

MAX_VERSIONS: Final = 20
"""Versions of a strategy that are kept for a rollback."""

MAX_USES: Final = 5000
"""Uses of strategies that wait for a reward, per namespace: the oldest are forgotten."""


_MAX_ID: Final = 64


class StoreFailed(SampleError):
    """The store cannot be read or written. The proxy's log says why."""

    status = 503
    code = "store_failed"

    def __init__(self) -> None:
        super().__init__("the store of optillm_hooks cannot be used; see the proxy's log")


class StoreUnusable(Exception):
    """A file or a database is not a store, is damaged, or belongs to another version."""


@dataclass(frozen=True, slots=True)
class Namespace:
    """The owner of rows. Nothing is read, written or deleted across namespaces."""

    scope: Scope
    owner: str
    """The id of the key, team or user; never empty."""

    def __post_init__(self) -> None:
        if not self.owner:
            raise ValueError("a namespace needs an owner")


@dataclass(frozen=True, slots=True, kw_only=True)
class NewNote:
    """A note to add."""

    text: str
    source: str = ""
    """A short label of where it comes from, such as the hash of a document."""

    embedding: Sequence[float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """A stored note. Its text is data of a model or of a user."""

    id: str
    text: str
    source: str
    created_at: float
    """Seconds since 1970, as is `expires_at`."""

    expires_at: float | None
    embedding: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """What a strategy says: data of a model."""

    when: str
    """The kind of task that it is for."""

    keywords: str
    steps: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """The current version of a strategy, and how it has done."""

    id: str
    version: int
    method: Method
    uses: int
    """How often this version was used."""

    rewarded: int
    """How many of the uses have got a reward."""

    reward: float
    """The sum of the rewards, each from 0 to 1."""

    created_at: float
    last_used: float | None

    @property
    def mean(self) -> float:
        """The expected reward, by a uniform prior."""
        return (1 + self.reward) / (2 + self.rewarded)


def digest(*parts: str) -> str:
    """Return a hash of `parts`, in which their order and borders count."""
    made = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        made.update(len(data).to_bytes(8))
        made.update(data)
    return made.hexdigest()


def storable(text: str, max_chars: int) -> str:
    """Return `text` as every database takes it: without NUL and surrogates, and not too long."""
    kept = text[:max_chars].replace("\0", "")
    return kept.encode("utf-8", "replace").decode("utf-8")


def as_id(text: str) -> str:
    """Return an id of a client's as every database takes it."""
    return storable(text, _MAX_ID)
