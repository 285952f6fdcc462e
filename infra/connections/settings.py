"""Settings that every service shares: where NATS, Redis and the blobs are, and how to log.

Frozen, read once in a `__main__` from the environment, and handed down. Nothing else reads the environment.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from schemas.subjects import Lane
from schemas.webhooks import read_secret, read_secrets


class NatsSettings(BaseSettings):
    """How to reach NATS, from `NATS_*`."""

    model_config = SettingsConfigDict(env_prefix="NATS_", frozen=True)

    url: str = Field(default="nats://127.0.0.1:4222", description="comma-separated server addresses")
    user: str | None = None
    password: SecretStr | None = None
    creds_file: Path | None = Field(
        default=None, description="a NATS credentials file, in place of a password"
    )
    nkey_seed_file: Path | None = Field(default=None, description="an nkey seed, in place of a password")
    tls_ca_file: Path | None = Field(default=None, description="CA to verify the server with; turns TLS on")
    tls_cert_file: Path | None = None
    tls_key_file: Path | None = None
    ack_timeout_s: float = Field(default=2.0, gt=0, description="deadline of one PubAck or API answer")


class StreamSettings(BaseSettings):
    """What the streams promise, from `STREAM_*`. Read by the scheduler, which declares them."""

    model_config = SettingsConfigDict(env_prefix="STREAM_", frozen=True)

    replicas: int = Field(default=1, ge=1, le=5, description="copies of each message; 3 in production")
    max_requests: int = Field(
        default=100_000, ge=1, description="admission limit: requests stored for each model and lane"
    )
    max_bytes: int = Field(default=8 << 30, ge=1 << 20, description="size limit of the INFER stream")
    live_max_bytes: int = Field(
        default=512 << 20, ge=1 << 20, description="size limit of INFER_LIVE, in memory"
    )
    results_max_bytes: int = Field(default=16 << 30, ge=1 << 20)
    result_ttl_s: float = Field(default=86_400, ge=1, description="how long jobs and their results are kept")
    dead_ttl_s: float = Field(default=14 * 86_400, ge=1, description="how long dead letters are kept")
    duplicate_window_s: float = Field(default=120, ge=0.1)
    ack_wait_s: float = Field(
        default=30, ge=1, description="a delivery not extended for so long is delivered again"
    )
    live_ack_wait_s: float = Field(
        default=5, ge=1, description="the same for callers who wait, so a dead worker costs them seconds"
    )
    max_deliver: int = Field(default=3, ge=1, le=100, description="starts of one request, at most")
    max_ack_pending: int = Field(
        default=2000, ge=1, description="deliveries in hand of all workers of a model and lane"
    )

    def ack_wait_of(self, lane: Lane) -> float:
        """Return how long a delivery on `lane` may go without being extended, seconds."""
        return self.live_ack_wait_s if lane is Lane.LIVE else self.ack_wait_s


class RedisSettings(BaseSettings):
    """How to reach Redis or Valkey, from `REDIS_*`."""

    model_config = SettingsConfigDict(env_prefix="REDIS_", frozen=True)

    url: SecretStr = SecretStr("redis://127.0.0.1:6379/0")
    timeout_s: float = Field(default=2.0, gt=0, description="deadline of one command")


class BlobSettings(BaseSettings):
    """Where bodies over the inline limit lie, from `BLOB_*`."""

    model_config = SettingsConfigDict(env_prefix="BLOB_", frozen=True)

    store: str = Field(
        default="file://.model-serving/blobs", description="file://folder or s3://bucket/prefix"
    )
    s3_endpoint: str | None = Field(default=None, description="an S3 server other than AWS")
    inline_limit_bytes: int = Field(default=768 * 1024, ge=1024, description="larger bodies go to the store")
    ttl_s: float = Field(default=86_400, ge=60, description="blobs older than this may be deleted")
    timeout_s: float = Field(default=30, gt=0)


class WebhookSettings(BaseSettings):
    """Whom webhooks may reach and how they are signed, from `WEBHOOK_*`. Gateway and scheduler read it."""

    model_config = SettingsConfigDict(env_prefix="WEBHOOK_", frozen=True)

    secrets: SecretStr = Field(default=SecretStr(""), description="tenant:whsec_<base64>,...")
    secret: SecretStr | None = Field(default=None, description="whsec_<base64>, for every other tenant")
    allow_private: bool = Field(default=False, description="let webhooks reach addresses that are not public")
    ca_file: Path | None = Field(default=None, description="CA to trust in place of the public ones")
    timeout_s: float = Field(default=10.0, gt=0, description="deadline of one try")
    tries: int = Field(default=5, ge=1, le=20)
    retry_s: float = Field(
        default=10.0, ge=0, description="wait after the first try; each next is 4x as long"
    )
    at_once: int = Field(default=64, ge=1, description="tries under way")
    per_tenant: int = Field(default=8, ge=1, description="of these, for one tenant")

    @field_validator("secrets")
    @classmethod
    def _readable_secrets(cls, secrets: SecretStr) -> SecretStr:
        read_secrets(secrets.get_secret_value())
        return secrets

    @field_validator("secret")
    @classmethod
    def _readable_secret(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None:
            read_secret(secret.get_secret_value())
        return secret

    def key_of(self, tenant: str) -> bytes | None:
        """Return the key that signs for a tenant, or None if it may have no webhooks."""
        keys = read_secrets(self.secrets.get_secret_value())
        if tenant in keys or self.secret is None:
            return keys.get(tenant)
        return read_secret(self.secret.get_secret_value())


class LogSettings(BaseSettings):
    """How to log, from `LOG_*`."""

    model_config = SettingsConfigDict(env_prefix="LOG_", frozen=True)

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"
