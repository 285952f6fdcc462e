"""The bodies of our HTTP API. `docs` of each field show on the OpenAPI page.

Tensors inside `inputs` are checked by `schemas.json_tensors`, which works on whole arrays.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from schemas.jobs import AttemptEvent, ItemState, JobState
from schemas.models import Signature
from schemas.subjects import Lane
from schemas.webhooks import MAX_URL_CHARS

MAX_TIMEOUT_MS = 7 * 24 * 3600 * 1000
MAX_METADATA = 16

Parameters = dict[str, str | bool | int | float | None]
Inputs = Annotated[
    Any,
    Field(description="tensors {name, dtype?, shape?, data | base64}, or a map of input name to nested data"),
]


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


Version = Annotated[int, Field(ge=1, strict=True)]
TimeoutMs = Annotated[int, Field(ge=1, le=MAX_TIMEOUT_MS, strict=True, description="deadline, as a duration")]


WebhookUrl = Annotated[
    str,
    Field(max_length=MAX_URL_CHARS, description="http or https, public: gets a POST when the job has ended"),
]


class Webhook(_Body):
    """Who is told when a job has ended; `docs/WEBHOOKS.md` says how."""

    url: WebhookUrl


class PredictBody(_Body):
    """One inference to run and wait for."""

    model: str
    inputs: Inputs
    version: Version | None = None
    parameters: Parameters = Field(default_factory=dict)
    timeout_ms: TimeoutMs | None = None
    priority: Annotated[Lane, Field(description="the lane: live, interactive or batch")] = Lane.LIVE


class PredictQuery(_Body):
    """The query of a predict call whose body is not JSON. `model` stands in the body if that is msgpack."""

    model: str | None = None
    version: Annotated[int, Field(ge=1)] | None = None
    timeout_ms: Annotated[int, Field(ge=1, le=MAX_TIMEOUT_MS)] | None = None
    priority: Lane = Lane.LIVE


class UploadQuery(_Body):
    """The query of a JSONL upload, whose lines are each a `JobItem`."""

    model: str
    version: Annotated[int, Field(ge=1)] | None = None
    timeout_ms: Annotated[int, Field(ge=1, le=MAX_TIMEOUT_MS)] | None = None
    priority: Lane = Lane.BATCH
    webhook: WebhookUrl | None = None


class JobItem(_Body):
    """One input of a job; also the form of one line of a JSONL upload."""

    inputs: Inputs
    parameters: Parameters = Field(default_factory=dict)


class JobBody(_Body):
    """A job of one or many inputs, whose results are kept."""

    model: str
    items: Annotated[list[JobItem], Field(min_length=1)] | None = None
    inputs: Inputs = None
    parameters: Parameters = Field(default_factory=dict)
    version: Version | None = None
    timeout_ms: TimeoutMs | None = None
    priority: Lane = Lane.BATCH
    metadata: Annotated[dict[str, str], Field(max_length=MAX_METADATA)] = Field(default_factory=dict)
    webhook: Webhook | None = None


class JobCounts(BaseModel):
    """How many items of a job there are, and how they ended."""

    total: int
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    expired: int = 0
    pending: int = 0

    @classmethod
    def of(cls, total: int, ended: Mapping[ItemState, int]) -> "JobCounts":
        """Count the items of a job of which so many ended how."""
        by_state = {str(state): ended.get(state, 0) for state in ItemState}
        return cls(total=total, pending=max(0, total - sum(ended.values())), **by_state)


class WebhookStatus(BaseModel):
    """Whom a job tells of its end, and whether that was heard."""

    url: str
    delivered: bool = False
    attempts: int = 0


class OutputTensor(BaseModel):
    """One output. `data` is nested by shape; floats that are not finite are "NaN" and "Infinity"."""

    name: str
    dtype: str
    shape: list[int]
    data: Any


class PredictAnswer(BaseModel):
    """The outputs of one request. `timing` is in milliseconds, as the worker measured it."""

    id: str
    model: str
    version: int
    outputs: list[OutputTensor]
    timing: dict[str, float]


class ItemError(BaseModel):
    """Why an item has no outputs."""

    code: str
    message: str
    retryable: bool
    field: str | None = None


class ItemResult(BaseModel):
    """How one item ended: with outputs, or with an error. Never changes."""

    item: int
    state: ItemState
    attempts: int
    model: str | None = None
    version: int | None = None
    outputs: list[OutputTensor] | None = None
    timing: dict[str, float] | None = None
    error: ItemError | None = None


class AttemptView(BaseModel):
    """One event in the attempts at an item. `at` is unix seconds on the worker's clock."""

    attempt: int
    worker: str
    event: AttemptEvent
    reason: str
    at: float


class ItemDetail(BaseModel):
    """One item of a job: how it ended, or `queued`, and what is known of the attempts at it.

    The first start is not in the history: to record it would cost every request a write.
    """

    item: int
    state: str
    attempts: int
    worker: str | None = None
    model: str | None = None
    version: int | None = None
    outputs: list[OutputTensor] | None = None
    timing: dict[str, float] | None = None
    error: ItemError | None = None
    history: list[AttemptView] = Field(default_factory=list)


class ResultPage(BaseModel):
    """Results in the order in which they were stored. `next` is null when no more will come."""

    results: list[ItemResult]
    next: int | None = None


class JobStatus(BaseModel):
    """Where a job is. `created_at` is unix seconds; a job published on NATS directly does not tell it."""

    id: str
    model: str
    state: JobState
    counts: JobCounts
    created_at: float | None = None
    metadata: dict[str, str] = Field(default_factory=dict)
    webhook: WebhookStatus | None = None
    result: Annotated[ItemResult | None, Field(description="of a job of one item that has ended")] = None


class JobList(BaseModel):
    """The newest jobs of a tenant, newest first."""

    jobs: list[JobStatus]


class ModelAnswer(BaseModel):
    """A model as callers see it."""

    name: str
    version: int
    format: str
    description: str
    ready: bool
    workers: int
    max_batch_size: int
    signature: Signature


class ModelList(BaseModel):
    """The models of this service, by name."""

    models: list[ModelAnswer]


class Health(BaseModel):
    """Whether this process can serve, and which models can answer now."""

    status: str
    models_loaded: list[str]
    checks: dict[str, str]


class DeadLetterAnswer(BaseModel):
    """A message that was given up. `stored_at` is unix seconds, when it was."""

    seq: int
    model: Annotated[str | None, Field(description="null if its subject named nothing that could be one")]
    subject: str
    reason: str
    stored_at: float
    size_bytes: Annotated[int, Field(description="of what is kept of the body")]
    tenant: str | None = None
    job: str | None = None
    attempts: int | None = None
    headers: dict[str, str] | None = None
    body: Annotated[str | None, Field(description="base64, with `?body=true`")] = None


class DeadLetterPage(BaseModel):
    """Dead letters, newest first. `next` is null when there are no more."""

    letters: list[DeadLetterAnswer]
    next: int | None = None


class Replayed(BaseModel):
    """The new job that a dead letter became. It belongs to `tenant`, whose keys show what becomes of it."""

    job: str
    tenant: str
    model: str


class Purged(BaseModel):
    """How many dead letters were deleted."""

    purged: int


class Problem(BaseModel):
    """An error, as RFC 9457 problem details; `code` is the stable name of its kind."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    field: str | None = None
