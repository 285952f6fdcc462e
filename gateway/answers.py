"""How results look over HTTP."""

from collections.abc import Mapping
from typing import Any

from litestar import Response

from gateway.parsing import off_loop
from infra.connections.results import ItemRecord
from schemas.envelope import Failure, Result, encode_reply, reply_map
from schemas.headers import JSON, MSGPACK
from schemas.json_tensors import tensor_to_json, write_json

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


def json_response(
    value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response[bytes]:
    """Answer with any JSON value or pydantic model."""
    return Response(write_json(value), status_code=status, media_type=JSON, headers=headers)
