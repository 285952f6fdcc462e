"""The scheduler's settings, read once in `__main__` from `SCHEDULER_*`."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class SchedulerSettings(BaseSettings):
    """How often the scheduler looks, and where it shows what it sees."""

    model_config = SettingsConfigDict(env_prefix="SCHEDULER_", frozen=True)

    reconcile_s: float = Field(default=1.0, gt=0, description="period of declaring what should be there")
    sweep_s: float = Field(default=10.0, gt=0, description="period of looking for requests nobody can serve")
    unknown_model_grace_s: float = Field(
        default=60.0, ge=0, description="how long a request for an unknown model waits for it to appear"
    )
    jobs_s: float = Field(default=1.0, gt=0, description="period of looking for deadlines and webhooks")
    expiry_grace_s: float = Field(
        default=5.0, ge=0, description="how long after its deadline an item may still end by itself"
    )
    upload_abandoned_s: float = Field(
        default=3600.0, gt=0, description="an upload that says nothing for so long is cancelled"
    )
    max_open_jobs: int = Field(
        default=200_000, ge=1, description="jobs with a deadline or a webhook in memory; later ones wait"
    )
    metrics_host: str = "127.0.0.1"
    metrics_port: int = Field(default=9102, ge=0, le=65535, description="of /metrics and /health; 0 is any")
