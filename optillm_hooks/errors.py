"""Errors of optillm_hooks, each with the HTTP status that a client gets.

* OptiLLMError
  x RequestRejected      the caller's fault: bad expression, bad parameter       -> 400
  x SampleError          a model call failed; a fan-out may go on
    + ProviderFailed     the provider returned an error                          -> its own status
    + EmptyCompletion    the reply has no content                                -> 502
    + UnusableReply      the reply is truncated or unreadable, and of no use         -> 502
    + Refused            a running stage finds that it cannot serve the request  -> 400
    + StageFailed        an approach has a bug; its traceback is in the log      -> 500
    + DeadlineExceeded   the request's deadline has passed                       -> 504
    + BudgetExceeded     the request's calls, tokens or money are used up        -> 400
    + SamplesFailed      fewer samples than needed; carries the SampleErrors     -> the first's
"""

from collections.abc import Sequence
from typing import Final

PERMANENT_STATUSES: Final = frozenset({401, 402, 403, 404})
"""Statuses of permanent failures: a retry with the same model would get them again."""


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
        super().__init__(message)
        self.param = param


class SampleError(OptiLLMError):
    """A model call, or a step made of several, failed."""


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
        if code is not None:
            self.code = code


class EmptyCompletion(SampleError):
    """The reply has no text, tool call or refusal. It is paid for all the same."""

    status = 502
    code = "empty_completion"

    def __init__(self, *, truncated: bool = False) -> None:
        super().__init__("the model's reply has no content")
        self.truncated = truncated
        """Whether the reply used up its tokens, for example on reasoning."""


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
    """Fewer samples finished than the approach needs. Its status is that of the first failure."""

    def __init__(self, needed: int, errors: Sequence[SampleError]) -> None:
        self.errors = tuple(leaf for error in errors for leaf in _leaves(error))
        reasons = "; ".join(dict.fromkeys(f"{type(e).__name__}: {e}" for e in self.errors))
        super().__init__(f"needed {needed} finished samples, {len(self.errors)} failed: {reasons}")
        if self.errors:
            self.status, self.code = self.errors[0].status, self.errors[0].code
            self.retry_after = self.errors[0].retry_after


def _leaves(error: SampleError) -> tuple[SampleError, ...]:
    return error.errors if isinstance(error, SamplesFailed) else (error,)
