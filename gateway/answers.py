"""How results look over HTTP."""

from collections.abc import Mapping
from typing import Any

from litestar import Response

from gateway.parsing import JSONL, off_loop
from infra.connections.results import ItemRecord
from schemas.api import JobCounts, JobStatus, WebhookStatus
from schemas.envelope import Failure, Result, encode_reply, reply_map
from schemas.headers import JSON, MSGPACK
from schemas.jobs import JobRecord, JobState
from schemas.json_tensors import tensor_to_json, write_json

POLL_AFTER_S = 1
_PREDICT_KEYS = ("id", "model", "version", "outputs", "timing")
_ITEM_KEYS = ("model", "version", "outputs", "timing")
_ERROR_KEYS = ("code", "message", "retryable", "field")


async def predict_response(result: Result, accept: str, headers: Mapping[str, str]) -> Response[bytes]:
    """Answer with the outputs: as msgpack, the form they came in, if the caller accepts that, or as JSON."""
    if MSGPACK in accept:
        return Response(encode_reply(result), media_type=MSGPACK, headers=headers)
    size = sum(len(output.data) for output in result.outputs)
    return Response(await off_loop(size, predict_json, result), media_type=JSON, headers=headers)


def predict_json(result: Result) -> bytes:
    """Write a result as JSON; floats that are not finite become strings."""
    laid_out = reply_map(result, tensor=tensor_to_json)
    return write_json({key: laid_out[key] for key in _PREDICT_KEYS})


def item_map(record: ItemRecord, reply: Result | Failure) -> dict[str, Any]:
    """Lay out how one item of a job ended, for `write_json`."""
    item: dict[str, Any] = {"item": record.item, "state": record.state, "attempts": record.attempts}
    laid_out = reply_map(reply, tensor=tensor_to_json)
    if isinstance(reply, Result):
        return item | {key: laid_out[key] for key in _ITEM_KEYS}
    return item | {"error": {key: laid_out[key] for key in _ERROR_KEYS if key in laid_out}}


def item_line(record: ItemRecord, reply: Result | Failure) -> bytes:
    """Write how one item ended as one line of JSONL."""
    return write_json(item_map(record, reply)) + b"\n"


def accepted(record: JobRecord, headers: Mapping[str, str] | None = None) -> Response[bytes]:
    """Answer 202: the job is stored, and where to ask for it."""
    status = JobStatus(
        id=record.job,
        model=record.model,
        state=JobState.QUEUED,
        counts=JobCounts(total=record.items, pending=record.items),
        created_at=record.created_at,
        metadata=record.metadata,
        webhook=None if record.webhook is None else WebhookStatus(url=record.webhook),
    )
    location = {"location": f"/v1/jobs/{record.job}"}
    return job_response(status, status_code=202, headers=location | dict(headers or {}))


def job_response(
    status: JobStatus, *, status_code: int = 200, headers: Mapping[str, str] | None = None
) -> Response[bytes]:
    """Answer with a job's status, and when to ask again if that can still change."""
    again = {} if status.state.final else {"retry-after": str(POLL_AFTER_S)}
    body = status.model_dump(exclude_none=True)
    return json_response(body, status=status_code, headers=again | dict(headers or {}))


def json_response(
    value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response[bytes]:
    """Answer with any JSON value or pydantic model; bytes are JSON already."""
    body = value if isinstance(value, bytes) else write_json(value)
    return Response(body, status_code=status, media_type=JSON, headers=headers)


def wants_lines(headers: Mapping[str, str]) -> bool:
    """Say whether the caller asks for JSONL."""
    accept = headers.get("accept", "")
    return any(media in accept for media in JSONL)
