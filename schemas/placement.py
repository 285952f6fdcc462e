"""What Redis holds: the models that exist, and what each worker says of itself."""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict

CARDS_KEY = "model-serving:models"  # hash of model name -> ModelCard
WORKER_KEY_PREFIX = "model-serving:worker:"  # + worker id -> WorkerStatus, with a time to live
WORKER_TTL_S = 10.0
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
