"""Verifies the form of an answer by a regular expression, which runs in a worker only.

The expression may be a client's: compiling and matching one can take any time.
"""

from dataclasses import dataclass
from typing import Final

from optillm_hooks.answers import matching, worker
from optillm_hooks.errors import Refused, UnusableReply
from optillm_hooks.sandbox.client import WorkerFailed, WorkerLimits, ask_worker
from optillm_hooks.services import Services
from optillm_hooks.types import Json
from optillm_hooks.verifiers.protocol import Asked, Check, Verdict

LIMITS: Final = WorkerLimits(seconds=1.0, memory_mb=512)
MAX_CHARACTERS: Final = 1 << 18
"""Maximum length of an answer that is searched."""


@dataclass(frozen=True, slots=True)
class _PatternCheck(Check):
    pattern: str

    async def verify(self, answer: str) -> Verdict:
        found = await matches(self.pattern, answer)
        return Verdict("pass" if found else "fail", float(bool(found)))


async def matches(pattern: str, text: str) -> bool | None:
    """Return what `matching.matches` does.

    Raises:
        UnusableReply: it takes too much time or memory, or the text is too long.
    """
    if len(text) > MAX_CHARACTERS:
        raise UnusableReply("the answer is too long to be matched")
    request: Json = {
        "module": matching.__name__,
        "function": "matches",
        "args": [pattern, text],
        "kwargs": {},
    }
    try:
        found = await ask_worker(worker.__name__, request, LIMITS)
    except WorkerFailed as exc:
        raise UnusableReply("the pattern takes too long to match") from exc
    return found if isinstance(found, bool) else None


class Regex:
    """The verifier `regex`."""

    automatic = True

    def missing(self, _: Services) -> str:
        return ""

    async def check_for(self, asked: Asked) -> Check | None:
        if asked.pattern is None:
            return None
        if await matches(asked.pattern, "") is None:
            raise Refused("pattern is not a valid regular expression of Python's re")
        return _PatternCheck(asked.pattern)
