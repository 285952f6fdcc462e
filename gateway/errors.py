"""What an error looks like over HTTP: one table from codes to statuses, and RFC 9457 problem details."""

import math
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException
from litestar.types import ExceptionHandlersMap, Send
from pydantic import ValidationError

from gateway.call import Call, call_of
from schemas.api import Problem
from schemas.envelope import invalid_input
from schemas.errors import ErrorCode, InferenceError
from schemas.json_tensors import write_json

log = structlog.get_logger()

PROBLEM_JSON = "application/problem+json"
REPLAYED = "idempotent-replayed"  # the answer is that of an earlier request with the same key
CLIENT_CLOSED_REQUEST = 499  # never on the wire: there is nobody to read it
MAX_RETRY_AFTER_S = 120
DEFAULT_RETRY_AFTER_S = 1.0

HTTP_STATUS: dict[ErrorCode, int] = {
    ErrorCode.INVALID_INPUT: 400,
    ErrorCode.TOO_LARGE: 413,
    ErrorCode.UNSUPPORTED_MEDIA: 415,
    ErrorCode.IDEMPOTENCY_MISMATCH: 422,
    ErrorCode.UNAUTHORIZED: 401,
    ErrorCode.FORBIDDEN: 403,
    ErrorCode.NOT_FOUND: 404,
    ErrorCode.UNKNOWN_MODEL: 404,
    ErrorCode.UNKNOWN_JOB: 404,
    ErrorCode.CONFLICT: 409,
    ErrorCode.OVERLOADED: 429,
    ErrorCode.DEADLINE_EXCEEDED: 504,
    ErrorCode.CANCELLED: 409,
    ErrorCode.MODEL_UNAVAILABLE: 503,
    ErrorCode.MODEL_ERROR: 500,  # the input was valid, so the fault is not the caller's
    ErrorCode.RESOURCE_EXHAUSTED: 500,
    ErrorCode.POISON: 500,
    ErrorCode.UNAVAILABLE: 503,
    ErrorCode.INTERNAL: 500,
}
_CODE_OF_STATUS = {
    401: ErrorCode.UNAUTHORIZED,
    403: ErrorCode.FORBIDDEN,
    404: ErrorCode.NOT_FOUND,
    413: ErrorCode.TOO_LARGE,
    415: ErrorCode.UNSUPPORTED_MEDIA,
    429: ErrorCode.OVERLOADED,
    503: ErrorCode.UNAVAILABLE,
}


class ClientGone(Exception):
    """The caller closed the connection before its request was whole. Nobody's fault, nobody to tell."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer before it is sent."""

    status: int
    headers: dict[str, str]
    body: bytes


def problem_answer(error: InferenceError, call: Call) -> Answer:
    """Describe an error to the caller, and note its code on the call."""
    call.error = error.code
    headers = {REPLAYED: "true"} if call.replayed else {}
    if error.code is ErrorCode.UNAUTHORIZED:
        headers["www-authenticate"] = 'Bearer realm="model-serving"'
    if error.retryable:
        after_s = DEFAULT_RETRY_AFTER_S if error.retry_after_s is None else error.retry_after_s
        headers["retry-after"] = str(min(MAX_RETRY_AFTER_S, max(1, math.ceil(after_s))))
    status = HTTP_STATUS[error.code]
    return _problem(status, headers, code=error.code, detail=error.message, field=error.field, call=call)


async def send_problem(send: Send, error: InferenceError, call: Call) -> None:
    """Answer with a problem, below any framework."""
    answer = problem_answer(error, call)
    headers = {"content-type": PROBLEM_JSON, "content-length": str(len(answer.body)), **answer.headers}
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": answer.status, "headers": raw})
    await send({"type": "http.response.body", "body": answer.body, "more_body": False})


def exception_handlers() -> ExceptionHandlersMap:
    """Say how Litestar answers each kind of exception."""
    return {
        InferenceError: _on_inference_error,
        ValidationError: _on_pydantic_error,
        HTTPException: _on_http_exception,
        ClientGone: _on_client_gone,
        Exception: _on_bug,
    }


def _on_inference_error(request: Request[Any, Any, Any], error: InferenceError) -> Response[bytes]:
    return _response(problem_answer(error, call_of(request.scope)))


def _on_pydantic_error(request: Request[Any, Any, Any], error: ValidationError) -> Response[bytes]:
    return _on_inference_error(request, invalid_input(error))


def _on_http_exception(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    """Answer what Litestar itself refused: no such route, wrong method, a query that does not parse."""
    call, status = call_of(request.scope), error.status_code
    if status >= 500 and status not in _CODE_OF_STATUS:
        return _on_bug(request, error)
    call.error = _CODE_OF_STATUS.get(status, ErrorCode.INVALID_INPUT)
    code = "method_not_allowed" if status == 405 else str(call.error)
    detail, field = error.detail or HTTPStatus(status).phrase, None
    if status == 413:
        detail = (
            f"the body is over the limit of {request.route_handler.resolve_request_max_body_size()} bytes"
        )
    if isinstance(error, ValidationException) and isinstance(error.extra, list) and error.extra:
        first = error.extra[0]
        detail, field = first.get("message", detail), first.get("key")
    headers = {k.lower(): v for k, v in (error.headers or {}).items() if k.lower() == "allow"}
    return _response(_problem(status, headers, code=code, detail=detail, field=field, call=call))


def _on_client_gone(request: Request[Any, Any, Any], _: ClientGone) -> Response[bytes]:
    call_of(request.scope).error = ErrorCode.CANCELLED
    return Response(b"", status_code=CLIENT_CLOSED_REQUEST, media_type="text/plain")


def _on_bug(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    call = call_of(request.scope)
    log.error("request crashed", request_id=call.request_id, trace_id=call.trace_id, exc_info=error)
    call.error = ErrorCode.INTERNAL
    detail = "a fault of ours; the gateway's log says more"
    return _response(_problem(500, {}, code=ErrorCode.INTERNAL, detail=detail, field=None, call=call))


def _problem(
    status: int, headers: dict[str, str], *, code: str, detail: str, field: str | None, call: Call
) -> Answer:
    problem = Problem(
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        code=code,
        request_id=call.request_id,
        field=field,
    )
    return Answer(status, headers, write_json(problem.model_dump(exclude_none=True)))


def _response(answer: Answer) -> Response[bytes]:
    return Response(answer.body, status_code=answer.status, headers=answer.headers, media_type=PROBLEM_JSON)
