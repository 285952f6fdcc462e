"""The OpenAPI page: what Litestar can not see from a handler, which reads bodies of several types itself."""

from dataclasses import dataclass
from typing import Any

from litestar.openapi import OpenAPIConfig, ResponseSpec
from litestar.openapi.plugins import JsonRenderPlugin, ScalarRenderPlugin, SwaggerRenderPlugin
from litestar.openapi.spec import (
    Components,
    OpenAPI,
    OpenAPIFormat,
    OpenAPIMediaType,
    OpenAPIType,
    Operation,
    Parameter,
    Reference,
    RequestBody,
    Schema,
    SecurityScheme,
)
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from schemas.api import (
    ItemDetail,
    JobBody,
    JobItem,
    JobStatus,
    PredictAnswer,
    PredictBody,
    Problem,
    ResultPage,
)
from schemas.headers import MSGPACK

_REFS = "#/components/schemas/{model}"
_BYTES = OpenAPIMediaType(schema=Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.BINARY))
_PROBLEMS = {
    400: "The request is malformed; `field` names where.",
    404: "There is no such model or job.",
    409: "The same upload is being received; or its job was cancelled.",
    413: "A documented limit is exceeded.",
    415: "The body's type is not one that is read here.",
    422: "The idempotency key was used before, for another request.",
    429: "There is no room for this now. Try again after `Retry-After`.",
    503: "Our plumbing does not answer. Whether the request was stored is unknown.",
    504: "The deadline passed.",
}


def _problem_responses() -> dict[int, ResponseSpec]:
    return {
        status: ResponseSpec(
            Problem, description=text, media_type="application/problem+json", generate_examples=False
        )
        for status, text in _PROBLEMS.items()
    }


def _answered_by(status: int, body: type[BaseModel], text: str) -> dict[int, ResponseSpec]:
    return {status: ResponseSpec(body, description=text, generate_examples=False)}


PREDICT_RESPONSES = (
    _problem_responses()
    | _answered_by(200, PredictAnswer, f"The outputs; with `Accept: {MSGPACK}` as msgpack.")
    | _answered_by(202, JobStatus, "Accepted and stored; `Location` is where the result will be.")
)
SUBMIT_RESPONSES = _problem_responses() | _answered_by(202, JobStatus, "Every item is stored.")
STATUS_RESPONSES = _problem_responses() | _answered_by(200, JobStatus, "Where the job is.")
ITEM_RESPONSES = _problem_responses() | _answered_by(200, ItemDetail, "One item, and the attempts at it.")
RESULTS_RESPONSES = _problem_responses() | _answered_by(
    200, ResultPage, "A page; with `Accept: application/jsonl` all results, one a line."
)


def _query(name: str, text: str, kind: OpenAPIType = OpenAPIType.STRING) -> Parameter:
    return Parameter(name=name, param_in="query", description=text, schema=Schema(type=kind), required=False)


def _reference(model: type[BaseModel]) -> OpenAPIMediaType:
    return OpenAPIMediaType(schema=Reference(ref=_REFS.format(model=model.__name__)))


_FOR_OTHER_BODIES = [
    _query("model", "the model, where the body is not JSON or msgpack"),
    _query("version", "its version", OpenAPIType.INTEGER),
    _query("timeout_ms", "the deadline, as a duration", OpenAPIType.INTEGER),
    _query("priority", "the lane: live, interactive or batch"),
]


def _key() -> Parameter:
    return Parameter(
        name="Idempotency-Key",
        param_in="header",
        description="the same key and request give the same job; 1 to 255 characters",
        schema=Schema(type=OpenAPIType.STRING),
        required=False,
    )


@dataclass
class PredictOperation(Operation):
    """Describes the bodies of a predict call."""

    def __post_init__(self) -> None:
        """Say what Litestar can not know."""
        content = {"application/json": _reference(PredictBody), MSGPACK: _BYTES}
        content |= {"image/*": _BYTES, "application/octet-stream": _BYTES}
        self.request_body = RequestBody(content=content, required=True)
        prefer = Parameter(
            name="Prefer",
            param_in="header",
            description="`respond-async` answers 202 at once; `wait=N` answers 202 after N seconds",
            schema=Schema(type=OpenAPIType.STRING),
            required=False,
        )
        self.parameters = [*(self.parameters or []), *_FOR_OTHER_BODIES, prefer, _key()]


@dataclass
class SubmitOperation(Operation):
    """Describes the bodies of a job."""

    def __post_init__(self) -> None:
        """Say what Litestar can not know."""
        lines = OpenAPIMediaType(
            schema=Schema(type=OpenAPIType.STRING, description="one `JobItem` a line"),
        )
        content = {"application/json": _reference(JobBody), "application/jsonl": lines}
        self.request_body = RequestBody(content=content, required=True)
        webhook = _query("webhook", "the URL to tell when the job has ended, where the body is not JSON")
        self.parameters = [*(self.parameters or []), *_FOR_OTHER_BODIES, webhook, _key()]


def openapi_config(version: str) -> OpenAPIConfig:
    """Describe the service. The page at /schema loads its scripts from a CDN; the document does not."""
    key = SecurityScheme(type="http", scheme="bearer", description="an API key of API_KEYS")
    return OpenAPIConfig(
        title="model-serving",
        version=version,
        description="Asynchronous inference through a durable queue.",
        use_handler_docstrings=True,
        components=Components(security_schemes={"key": key}),
        security=[{"key": []}],
        render_plugins=[ScalarRenderPlugin(path="/"), SwaggerRenderPlugin(), JsonRenderPlugin()],
    )


def describe_bodies(document: OpenAPI) -> None:
    """Add the bodies that handlers read themselves to what Litestar found in their signatures."""
    _, bodies = models_json_schema(
        [(PredictBody, "validation"), (JobBody, "validation"), (JobItem, "validation")], ref_template=_REFS
    )
    found: dict[str, Any] = document.components.schemas or {}  # pydantic's schemas are plain maps
    document.components.schemas = {**bodies["$defs"], **found}
