"""Everything that can go wrong with a request, as one tree.

    InferenceError
    ├── InvalidInput            the caller's request is malformed
    │   ├── TooLarge
    │   ├── UnsupportedMedia
    │   └── IdempotencyMismatch a key that was used for another request
    ├── Unauthorized            no key, or a wrong one
    ├── Forbidden               a right key, for something else
    ├── NotFound
    │   ├── UnknownModel
    │   └── UnknownJob
    ├── Conflict                the same request is being received from somebody else
    ├── Overloaded              a documented limit is reached, nothing was accepted
    ├── DeadlineExceeded        the time the caller gave has passed
    ├── Cancelled               the caller asked us to stop
    ├── ModelUnavailable        the model is known and cannot run now
    ├── ModelFailed             the model raised on this input
    │   └── ResourceExhausted   the input needs more memory than there is
    ├── Poison                  the request ended several workers
    ├── Unavailable             our own plumbing is down; whether the request was stored is unknown
    └── Internal                a fault of ours that is nothing of the above

The text of an InferenceError is safe to show to a caller. The text of anything else never is.
This module knows nothing of HTTP or NATS: each transport owns one table from `ErrorCode`.
"""

from enum import StrEnum
from typing import ClassVar

MAX_FIELD_CHARS = 300


class ErrorCode(StrEnum):
    """The public, stable name of a kind of error."""

    INVALID_INPUT = "invalid_input"
    TOO_LARGE = "too_large"
    UNSUPPORTED_MEDIA = "unsupported_media"
    IDEMPOTENCY_MISMATCH = "idempotency_mismatch"
    UNAUTHORIZED = "unauthorized"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    UNKNOWN_MODEL = "unknown_model"
    UNKNOWN_JOB = "unknown_job"
    CONFLICT = "conflict"
    OVERLOADED = "overloaded"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    CANCELLED = "cancelled"
    MODEL_UNAVAILABLE = "model_unavailable"
    MODEL_ERROR = "model_error"
    RESOURCE_EXHAUSTED = "resource_exhausted"
    POISON = "poison"
    UNAVAILABLE = "unavailable"
    INTERNAL = "internal"


class InferenceError(Exception):
    """Root of the tree; never raised itself.

    `field` names the part of the request that is wrong, in the caller's own terms (`inputs[0].shape`).
    `retry_after_s` is how long to wait before trying again, where that is known.
    """

    code: ClassVar[ErrorCode]
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, field: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = None if field is None else field[:MAX_FIELD_CHARS]  # it may hold a key of the caller's
        self.retry_after_s = retry_after_s


class InvalidInput(InferenceError):
    """The request is malformed; sending it again cannot help."""

    code = ErrorCode.INVALID_INPUT


class TooLarge(InvalidInput):
    """The request is over a documented size limit, which the message names."""

    code = ErrorCode.TOO_LARGE


class UnsupportedMedia(InvalidInput):
    """The body's content type or encoding is not one that we read."""

    code = ErrorCode.UNSUPPORTED_MEDIA


class IdempotencyMismatch(InvalidInput):
    """The idempotency key belongs to a request that is not this one."""

    code = ErrorCode.IDEMPOTENCY_MISMATCH


class Unauthorized(InferenceError):
    """There is no API key, or it is not one of ours."""

    code = ErrorCode.UNAUTHORIZED


class Forbidden(InferenceError):
    """The API key is ours and does not allow this."""

    code = ErrorCode.FORBIDDEN


class NotFound(InferenceError):
    """There is no such thing, or it belongs to somebody else."""

    code = ErrorCode.NOT_FOUND


class UnknownModel(NotFound):
    """No model of this name is in the repository."""

    code = ErrorCode.UNKNOWN_MODEL


class UnknownJob(NotFound):
    """No such job is kept for this tenant."""

    code = ErrorCode.UNKNOWN_JOB


class Conflict(InferenceError):
    """The same request is being received just now, and what becomes of it is not known yet."""

    code = ErrorCode.CONFLICT
    retryable = True


class Overloaded(InferenceError):
    """There is no room for this request now; nothing of it was stored."""

    code = ErrorCode.OVERLOADED
    retryable = True


class DeadlineExceeded(InferenceError):
    """The request did not end in the time the caller gave it."""

    code = ErrorCode.DEADLINE_EXCEEDED


class Cancelled(InferenceError):
    """The caller cancelled the request, or went away."""

    code = ErrorCode.CANCELLED


class ModelUnavailable(InferenceError):
    """The model is known and no worker can run it now."""

    code = ErrorCode.MODEL_UNAVAILABLE
    retryable = True


class ModelFailed(InferenceError):
    """The model raised on this input."""

    code = ErrorCode.MODEL_ERROR


class ResourceExhausted(ModelFailed):
    """Running this input needs more memory than the device has."""

    code = ErrorCode.RESOURCE_EXHAUSTED


class Poison(InferenceError):
    """The request was started as often as allowed and never ended."""

    code = ErrorCode.POISON


class Unavailable(InferenceError):
    """Our own plumbing did not answer. Whether the request was stored is unknown."""

    code = ErrorCode.UNAVAILABLE
    retryable = True


class Internal(InferenceError):
    """A fault of ours; the log of the process that met it says more."""

    code = ErrorCode.INTERNAL


def _leaves_and_branches(root: type[InferenceError]) -> list[type[InferenceError]]:
    return [c for child in root.__subclasses__() for c in (child, *_leaves_and_branches(child))]


ERRORS_BY_CODE: dict[ErrorCode, type[InferenceError]] = {
    error.code: error for error in _leaves_and_branches(InferenceError)
}
