"""What Redis holds: the models that exist, and what each worker says of itself."""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from schemas.subjects import Lane

CARDS_KEY = "model-serving:models"  # hash of model name -> ModelCard
WORKER_KEY_PREFIX = "model-serving:worker:"  # + worker id -> WorkerStatus, with a time to live
BACKLOG_KEY = "model-serving:backlog"  # -> BacklogReports, with a time to live
WORKER_TTL_S = 10.0
BACKLOG_TTL_S = 20.0
HEARTBEAT_S = 3.0


class WorkerState(StrEnum):
    """A worker's life, in order."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


class WorkerStatus(BaseModel):
    """A worker's heartbeat. `models` are the names of those that it serves now."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    worker: str
    state: WorkerState
    models: tuple[str, ...] = ()
    host: str = ""
    device: str = "cpu"


class BacklogReport(BaseModel):
    """How many requests wait on one lane of a model, and how many a second are settled while any wait."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    model: str
    lane: Lane
    waiting: int
    per_s: float


class BacklogReports(BaseModel):
    """What the scheduler measured last, of every model and lane."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    reports: tuple[BacklogReport, ...] = ()
