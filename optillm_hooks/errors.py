"""Errors of optillm_hooks, each with the HTTP status that a client gets.

* OptiLLMError
  x RequestRejected      the caller's fault: bad expression, bad parameter       -> 400
  x SampleError          a model call gave nothing; a fan-out may go on
    + ProviderFailed     the model behind us failed                              -> its own status
    + EmptyCompletion    the model answered without any content                  -> 502
    + Refused            a stage under way finds that it cannot serve the request -> 400
    + StageFailed        an approach has a fault; the log names the place        -> 500
    + DeadlineExceeded   the request's time is up                                -> 504
    + BudgetExceeded     the request's calls, tokens or money are used up        -> 400
    + SamplesFailed      fewer samples than needed; carries the SampleErrors     -> the first's
"""

from collections.abc import Sequence


class OptiLLMError(Exception):
    """Base of every error this package raises on purpose. Its text may be shown to the client."""

    status: int = 500
    code: str = "optillm_error"
    retry_after: str | None = None
    """What the provider said in its header of that name."""


class RequestRejected(OptiLLMError):
    """The request cannot be served as written; the message says what to change."""

    status = 400
    code = "invalid_request"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class SampleError(OptiLLMError):
    """A model call, or a step made of several, gave nothing to go on with."""


class ProviderFailed(SampleError):
    """The model behind us answered with an error. `status` is the provider's own."""

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
    """The model answered, and was paid, but its reply has no text, tool call or refusal."""

    status = 502
    code = "empty_completion"

    def __init__(self, *, truncated: bool = False) -> None:
        super().__init__("the model's reply has no content")
        self.truncated = truncated
        """Whether the reply ended because it had no tokens left, after its reasoning say."""


class Refused(SampleError):
    """A stage found only while it ran that the request cannot be served as it is."""

    status = 400
    code = "invalid_request"


class StageFailed(SampleError):
    """An approach broke in a way it should not."""

    code = "stage_failed"

    def __init__(self, stage: str) -> None:
        super().__init__(f"the approach {stage!r} failed inside; the proxy's log names the place")


class DeadlineExceeded(SampleError):
    """The request's deadline passed while a call was waiting."""

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
