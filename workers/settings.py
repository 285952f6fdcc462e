"""The worker's settings, read once in `__main__`."""

from dataclasses import dataclass, field
from pathlib import Path

from pydantic import AliasChoices, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from infra.connections.settings import BlobSettings, LogSettings, NatsSettings, RedisSettings, StreamSettings
from infra.connections.tenants import TenantSettings


def _named(name: str) -> AliasChoices:
    """Let a setting be known by a name that has no prefix, as operators' manuals have it."""
    return AliasChoices(name, name.lower())


class WorkerSettings(BaseSettings):
    """What one worker process serves, and how it batches."""

    model_config = SettingsConfigDict(env_prefix="WORKER_", frozen=True, populate_by_name=True)

    model_repository: Path = Field(
        default=Path(".model-serving/models"),
        validation_alias=_named("MODEL_REPOSITORY"),
        description="folder of <name>/<version>/",
    )
    models: str = Field(default="*", description="comma-separated names to serve; * is all in the repository")
    device: str = Field(default="cpu", pattern=r"^(cpu|cuda:[0-9]+)$")
    max_batch_size: int = Field(
        default=32,
        ge=1,
        le=4096,
        validation_alias=_named("MAX_BATCH_SIZE"),
        description="items, for models whose model.yaml does not say",
    )
    batch_timeout_ms: float = Field(
        default=5.0,
        ge=0,
        le=10_000,
        validation_alias=_named("BATCH_TIMEOUT_MS"),
        description="how long a request may wait for company, for models whose model.yaml does not say",
    )
    allow_python_models: bool = Field(
        default=False,
        validation_alias=_named("ALLOW_PYTHON_MODELS"),
        description="run code that lies in the repository; only where its writers are trusted",
    )
    metrics_host: str = "127.0.0.1"
    metrics_port: int = Field(default=9101, ge=0, le=65535, description="of /metrics and /health; 0 is any")
    prepare_threads: int = Field(default=2, ge=1, le=64, description="threads that decode and preprocess")
    drain_grace_s: float = Field(default=25.0, ge=0, description="must be under the pod's grace period")


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that a worker reads from its environment. Raises ValidationError."""

    worker: WorkerSettings = field(default_factory=WorkerSettings)
    nats: NatsSettings = field(default_factory=NatsSettings)
    redis: RedisSettings = field(default_factory=RedisSettings)
    blobs: BlobSettings = field(default_factory=BlobSettings)
    streams: StreamSettings = field(default_factory=StreamSettings)
    tenants: TenantSettings = field(default_factory=TenantSettings)
    log: LogSettings = field(default_factory=LogSettings)
