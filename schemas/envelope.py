"""The bodies of requests and replies on NATS, and their two encodings, msgpack and JSON.

Every body is a map with `v`, the version of the form. Unknown keys are ignored, new keys have defaults,
and a `v` that we do not know is refused. Golden-bytes tests pin the form.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

import msgpack
from pydantic import Field, StrictBool, StrictInt, StrictStr, TypeAdapter, ValidationError

from schemas.errors import ERRORS_BY_CODE, ErrorCode, InferenceError, Internal, InvalidInput
from schemas.headers import JSON, MSGPACK
from schemas.json_tensors import read_json, tensor_from_json, tensor_to_json, write_json
from schemas.models import Signature, TensorSpec
from schemas.subjects import check_model_name
from schemas.tensors import Tensor, check_tensor

T = TypeVar("T")

WIRE_VERSION = 1
MAX_TENSORS = 256

Scalar = StrictStr | StrictBool | StrictInt | Annotated[float, Field(strict=True, allow_inf_nan=False)] | None


@dataclass(frozen=True, slots=True)
class InferRequest:
    """One inference to run."""

    model: StrictStr
    inputs: Annotated[tuple[Tensor, ...], Field(min_length=1, max_length=MAX_TENSORS)]
    version: Annotated[StrictInt, Field(ge=1)] | None = None
    parameters: dict[StrictStr, Scalar] = field(default_factory=dict)
    v: StrictInt = WIRE_VERSION


@dataclass(frozen=True, slots=True)
class BlobRef:
    """Stands in for a body over the inline limit: where the body lies, and how to know it is whole."""

    blob: Annotated[StrictStr, Field(pattern=r"^[a-z0-9-]{1,63}/[0-9a-f]{32}$")]
    sha256: Annotated[StrictStr, Field(pattern=r"^[0-9a-f]{64}$")]
    size: Annotated[StrictInt, Field(ge=0)]
    v: StrictInt = WIRE_VERSION


@dataclass(frozen=True, slots=True)
class Result:
    """The outputs of one request. `timing` is in milliseconds, by the worker's monotonic clock."""

    id: StrictStr
    model: StrictStr
    version: StrictInt
    outputs: tuple[Tensor, ...]
    timing: dict[StrictStr, float] = field(default_factory=dict)
    v: StrictInt = WIRE_VERSION
    kind: Literal["result"] = "result"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request has no outputs."""

    id: StrictStr
    code: ErrorCode
    message: StrictStr
    retryable: StrictBool = False
    field: StrictStr | None = None
    v: StrictInt = WIRE_VERSION
    kind: Literal["failure"] = "failure"


Reply = Annotated[Result | Failure, Field(discriminator="kind")]

_REQUEST: TypeAdapter[InferRequest] = TypeAdapter(InferRequest)
_BLOB_REF: TypeAdapter[BlobRef] = TypeAdapter(BlobRef)
_REPLY: TypeAdapter[Result | Failure] = TypeAdapter(Reply)


def encode_request(request: InferRequest) -> bytes:
    """Encode a request as msgpack."""
    body = {
        "v": request.v,
        "model": request.model,
        "inputs": [_tensor_map(tensor) for tensor in request.inputs],
    }
    if request.version is not None:
        body["version"] = request.version
    if request.parameters:
        body["parameters"] = request.parameters
    return _pack(body)


def encode_blob_ref(ref: BlobRef) -> bytes:
    """Encode a reference to a body that lies in the blob store. Always msgpack."""
    return _pack({"v": ref.v, "blob": ref.blob, "sha256": ref.sha256, "size": ref.size})


def decode_request(
    body: bytes, content_type: str, *, signature: Signature | None = None
) -> InferRequest | BlobRef:
    """Decode and check a request. Raises InvalidInput naming the field that is wrong.

    `signature` supplies the dtypes that a JSON body leaves out.
    """
    raw = _read_map(body, content_type)
    _check_version(raw)
    if "blob" in raw:
        return _validate(_BLOB_REF, raw)
    if content_type == JSON:
        raw = {**raw, "inputs": json_inputs(raw.get("inputs"), signature)}
    request = _validate(_REQUEST, raw)
    check_model_name(request.model)
    for i, tensor in enumerate(request.inputs):
        check_tensor(tensor, field=f"inputs[{i}]")
    return request


def json_inputs(inputs: Any, signature: Signature | None) -> list[Tensor]:
    """Read the `inputs` of a JSON body: a list of tensors, or a map from name to data.

    Raises InvalidInput naming the tensor and what is wrong with it.
    """
    specs = {spec.name: spec for spec in signature.inputs} if signature else {}
    if isinstance(inputs, Mapping):
        inputs = [{"name": name, "data": data} for name, data in inputs.items()]
    if not isinstance(inputs, list) or not inputs:
        raise InvalidInput("must be a non-empty list of tensors, or a map of name to data", field="inputs")
    if len(inputs) > MAX_TENSORS:
        raise InvalidInput(f"must hold at most {MAX_TENSORS} tensors", field="inputs")
    return [_json_tensor(raw, specs, field=f"inputs[{i}]") for i, raw in enumerate(inputs)]


def _json_tensor(raw: Any, specs: Mapping[str, TensorSpec], *, field: str) -> Tensor:
    name = raw.get("name") if isinstance(raw, dict) else None
    return tensor_from_json(raw, spec=specs.get(name) if isinstance(name, str) else None, field=field)


def encode_reply(reply: Result | Failure, content_type: str = MSGPACK) -> bytes:
    """Encode a reply in the encoding the request came in."""
    body = reply_map(reply, tensor=tensor_to_json if content_type == JSON else _tensor_map)
    return write_json(body) if content_type == JSON else _pack(body)


def reply_map(reply: Result | Failure, *, tensor: Any) -> dict[str, Any]:
    """Lay a reply out as a map, each output through `tensor`."""
    if isinstance(reply, Result):
        return {
            "v": reply.v,
            "kind": reply.kind,
            "id": reply.id,
            "model": reply.model,
            "version": reply.version,
            "outputs": [tensor(output) for output in reply.outputs],
            "timing": reply.timing,
        }
    body: dict[str, Any] = {
        "v": reply.v,
        "kind": reply.kind,
        "id": reply.id,
        "code": str(reply.code),
        "message": reply.message,
        "retryable": reply.retryable,
    }
    if reply.field is not None:
        body["field"] = reply.field
    return body


def decode_reply(body: bytes) -> Result | Failure | BlobRef:
    """Decode a reply that one of our workers wrote as msgpack. Raises InvalidInput if it is none."""
    raw = _read_map(body, MSGPACK)
    _check_version(raw)
    if "blob" in raw:
        return _validate(_BLOB_REF, raw)
    return _validate(_REPLY, raw)


def failure_of(error: BaseException, request_id: str) -> Failure:
    """Describe an exception to a caller; whatever is not an InferenceError stays unnamed."""
    if not isinstance(error, InferenceError):
        error = Internal("the worker failed; its log says more")
    return Failure(
        id=request_id,
        code=error.code,
        message=error.message,
        retryable=error.retryable,
        field=error.field,
    )


def error_of(failure: Failure) -> InferenceError:
    """Turn a failure back into the error it describes."""
    return ERRORS_BY_CODE[failure.code](failure.message, field=failure.field)


def _tensor_map(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "dtype": tensor.dtype, "shape": tensor.shape, "data": tensor.data}


def _pack(body: Mapping[str, Any]) -> bytes:
    packed: bytes = msgpack.packb(body, use_bin_type=True)
    return packed


def _read_map(body: bytes, content_type: str) -> dict[str, Any]:
    if content_type == JSON:
        raw = read_json(body)
    else:
        try:
            raw = msgpack.unpackb(body, raw=False, strict_map_key=True)
        except Exception as error:  # msgpack raises ValueError, TypeError, RecursionError and its own
            raise InvalidInput("is not valid msgpack", field="body") from error
    if not isinstance(raw, dict):
        raise InvalidInput("must be a map", field="body")
    return raw


def _check_version(raw: Mapping[str, Any]) -> None:
    if raw.get("v", WIRE_VERSION) != WIRE_VERSION:
        raise InvalidInput(
            f"is a version of the message form that we do not know; we read {WIRE_VERSION}", field="v"
        )


def _validate(adapter: TypeAdapter[T], raw: Mapping[str, Any]) -> T:
    try:
        return adapter.validate_python(raw)
    except ValidationError as error:
        raise invalid_input(error) from error


def invalid_input(error: ValidationError) -> InvalidInput:
    """Name the first thing that pydantic found wrong, without repeating the value."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    path = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in first["loc"]).lstrip(".")
    return InvalidInput(first["msg"].removeprefix("Value error, "), field=path or "body")
