"""Errors of optillm_hooks, each with the HTTP status that a client gets.

* OptiLLMError
  x RequestRejected      the caller's fault: bad expression, bad parameter       -> 400
  x SampleError          a model call failed; a fan-out may go on
    + ProviderFailed     the provider returned an error                          -> its own status
    + EmptyCompletion    the reply has no content; the answer, if all are so     -> 502
    + UnusableReply      the reply is truncated or unreadable, and of no use         -> 502
    + Refused            a running stage finds that it cannot serve the request  -> 400
    + StageFailed        an approach has a bug; its traceback is in the log      -> 500
    + DeadlineExceeded   the request's deadline has passed                       -> 504
    + BudgetExceeded     the request's calls, tokens or money are used up        -> 400
    + TooManyThreads     no thread is free for work that may block               -> 503
    + SamplesFailed      fewer samples than needed; carries the SampleErrors     -> the first's
"""

import re
from collections.abc import Sequence
from typing import Final

from optillm_hooks.types import Answer

PERMANENT_STATUSES: Final = frozenset({401, 402, 403, 404})
"""Statuses of permanent failures: a retry with the same model would get them again."""

OVERLOAD_STATUSES: Final = frozenset({408, 429, 503, 504, 529})
"""Statuses of a provider that has too much to do: more calls at once would make it worse."""

CONTEXT_WINDOW_EXCEEDED: Final = "context_length_exceeded"
CONTENT_POLICY_VIOLATION: Final = "content_policy_violation"
"""Codes of prompts that a model does not take."""

RATE_LIMIT_EXCEEDED: Final = "rate_limit_exceeded"
"""Code of a rate limit of the caller, as against a provider's."""

_LONG_WORD: Final = re.compile(r"(\S{80})\S{120,}")
_MAX_REJECTION: Final = 1500
"""Maximum characters of a message that may quote what the client sent."""


class OptiLLMError(Exception):
    """Base of every error this package raises on purpose. Its text may be shown to the client."""

    status: int = 500
    code: str = "optillm_error"
    retry_after: str | None = None
    """The provider's `retry-after` header."""


class RequestRejected(OptiLLMError):
    """The request cannot be served as written; the message says what to change."""

    status = 400
    code = "invalid_request"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(_shortened(message))
        self.param = None if param is None else _shortened(param)


def _shortened(text: str) -> str:
    """Return `text` with its long words cut, so that what it says around them stays readable.

    Half of a surrogate pair, which JSON can have and UTF-8 cannot, is written as its escape.
    """
    text = text.encode(errors="backslashreplace").decode()
    text = _LONG_WORD.sub(r"\1…", text)
    return text if len(text) <= _MAX_REJECTION else f"{text[:_MAX_REJECTION]}…"


class SampleError(OptiLLMError):
    """A model call, or a step made of several, failed."""

    empty_reply: Answer | None = None
    """The model's reply, if the failure is that it has no content. If nothing else is found, it is
    the answer: its finish reason, refusal and reasoning tell the user what the model did."""

    wait_s: float | None = None
    """Seconds that the provider asks to wait before the next call to the model, as far as it says
    and no other deployment may take the call."""

    @property
    def is_overload(self) -> bool:
        """Whether the provider has too much to do, so that more calls at once would not help."""
        return self.status in OVERLOAD_STATUSES

    @property
    def rejects_prompt(self) -> bool:
        """Whether the model does not take the prompt: it is too long, or not allowed."""
        return self.code in (CONTEXT_WINDOW_EXCEEDED, CONTENT_POLICY_VIOLATION)

    @property
    def is_permanent(self) -> bool:
        """Whether the same call would fail again."""
        return (
            self.status in PERMANENT_STATUSES or self.rejects_prompt or self.empty_reply is not None
        )


class ProviderFailed(SampleError):
    """The provider returned an error. `status` is its own."""

    code = "provider_failed"

    def __init__(
        self,
        message: str,
        *,
        status: int = 502,
        retry_after: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
        self.refused: frozenset[str] = frozenset()
        """The sampling fields of the call that the provider says it refuses."""

        self.answered = False
        """Whether the provider has sent a whole reply, which it bills, but which is unreadable."""
        if code is not None:
            self.code = code


class EmptyCompletion(SampleError):
    """The reply has no text, tool call or other content. It is paid for all the same.

    So it is if the model refuses, uses up its tokens on reasoning, or has nothing to add.
    """

    status = 502
    code = "empty_completion"

    def __init__(self, reply: Answer | None = None) -> None:
        super().__init__("the model's reply has no content")
        self.empty_reply = reply


class UnusableReply(SampleError):
    """The reply is truncated or cannot be read, so that its step brings nothing."""

    status = 502
    code = "unusable_reply"


class Refused(SampleError):
    """A stage found while running that it cannot serve the request."""

    status = 400
    code = "invalid_request"


class StageFailed(SampleError):
    """An approach has a bug."""

    code = "stage_failed"

    def __init__(self, stage: str) -> None:
        super().__init__(f"internal error in the approach {stage!r}; see the proxy's log")


class TooManyThreads(SampleError):
    """No thread is free for work that may block."""

    status = 503
    code = "too_many_threads"

    def __init__(self, maximum: int) -> None:
        super().__init__(f"all {maximum} threads for plugins are at work")


class DeadlineExceeded(SampleError):
    """The deadline of the request passed while a call was waiting."""

    status = 504
    code = "deadline_exceeded"


class BudgetExceeded(SampleError):
    """The request has no calls, tokens or money left.

    400 and not 429: a client library repeats a 429 by itself, and would pay again.
    """

    status = 400
    code = "budget_exceeded"


class SamplesFailed(SampleError):
    """Fewer samples finished than the approach needs. A call without budget is none that failed.

    Its status is that of the first failure, or of one that rejects the prompt: the samples after it
    were cancelled.
    """

    def __init__(self, errors: Sequence[SampleError]) -> None:
        self.errors = tuple(leaf for error in errors for leaf in _leaves(error))
        reasons = "; ".join(dict.fromkeys(str(e) or type(e).__name__ for e in self.errors))
        made = sum(not isinstance(e, BudgetExceeded) for e in self.errors)
        calls = "a call failed" if made == 1 else f"{made} calls failed"
        super().__init__(f"{calls}: {reasons}" if made else reasons)
        if self.errors:
            first = next((e for e in self.errors if e.rejects_prompt), self.errors[0])
            self.status, self.code, self.retry_after = first.status, first.code, first.retry_after
        self.empty_reply = next(
            (e.empty_reply for e in self.errors if e.empty_reply is not None), None
        )


def _leaves(error: SampleError) -> tuple[SampleError, ...]:
    return error.errors if isinstance(error, SamplesFailed) else (error,)
