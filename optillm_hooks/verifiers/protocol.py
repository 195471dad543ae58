"""The protocol of verifiers, which other packages can implement too."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from optillm_hooks.context import Context
from optillm_hooks.llm import LLM
from optillm_hooks.services import Services
from optillm_hooks.types import Chat, Json

Outcome = Literal["pass", "fail", "unknown"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verifier found out about one answer."""

    outcome: Outcome
    score: float | None = None
    """How good the answer is, from 0 to 1, if it is known."""

    proven: bool = False
    """Whether a pass settles that the answer is right. It is not proven by its form."""

    @property
    def passed(self) -> bool:
        return self.outcome == "pass"


UNKNOWN = Verdict("unknown")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request whose answers are verified."""

    chat: Chat
    llm: LLM
    ctx: Context
    schema: Mapping[str, Json] | None = None
    """The JSON Schema that the parameters give; the request's own is in `ctx.client`."""

    pattern: str | None = None
    """The regular expression that the parameters give."""


class Check:
    """Checks the answers to one request."""

    proves: bool = False
    """Whether its passes can be proofs."""

    async def prepare(self) -> None:
        """Make ready for `verify`. It runs while the first answers are written."""

    async def verify(self, answer: str) -> Verdict:
        """Return the verdict on `answer`, a text without its reasoning. The text is only data.

        Raises:
            SampleError: the check could not be run.
        """
        raise NotImplementedError


class Verifier(Protocol):
    """A kind of check."""

    @property
    def automatic(self) -> bool:
        """Whether `auto` includes it: it costs no model call."""
        ...

    def missing(self, services: Services) -> str:
        """Return what has to be installed or switched on before it can be used; "" if nothing."""
        ...

    async def check_for(self, asked: Asked) -> Check | None:
        """Return the check of the answers to a request, or None if it does not apply to it.

        Raises:
            Refused: the parameters are not valid.
            SampleError: whether it applies cannot be found out.
        """
        ...
