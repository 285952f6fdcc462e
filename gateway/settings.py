"""The gateway's settings: `GATEWAY_*`, and `API_KEYS`, `ADMIN_API_KEYS` and `AUTH` of the whole service."""

import ipaddress
from dataclasses import dataclass, field
from typing import Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from gateway.auth import Keys, parse_keys
from infra.connections.settings import BlobSettings, LogSettings, NatsSettings, RedisSettings, WebhookSettings
from infra.connections.tenants import Tenancy, TenantSettings

ENV_PREFIX = "GATEWAY_"


class MissingSigningKey(Exception):
    """There is an API key for a tenant other than `public`, and nothing to sign its requests with."""


class GatewaySettings(BaseSettings):
    """Read once, in `__main__`. `AUTH=off` is the only way to serve without keys, and on loopback only."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, populate_by_name=True)

    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8000, ge=0, le=65535)
    processes: int = Field(default=1, ge=1, le=256, description="processes that share the port")
    max_body_bytes: int = Field(default=64 << 20, ge=1024, description="limit of one body, JSONL excepted")
    max_line_bytes: int = Field(default=8 << 20, ge=1024, description="limit of one line of JSONL")
    max_upload_bytes: int = Field(default=4 << 30, ge=1024, description="limit of one JSONL upload")
    max_job_items: int = Field(default=100_000, ge=1, le=10_000_000)
    default_timeout_s: float = Field(default=30.0, gt=0, description="deadline of callers who give none")
    publish_window: int = Field(default=256, ge=1, le=4096, description="PubAcks in flight for one job")
    upload_patience_s: float = Field(
        default=30.0, ge=0, description="how long a full queue may stall an upload"
    )
    start_timeout_s: float = Field(default=15.0, gt=0, description="how long to wait for NATS at the start")
    drain_grace_s: float = Field(default=25.0, ge=0, description="must be under the pod's 30 s")
    tenant_max_in_flight: int = Field(
        default=1024, ge=1, description="requests of one tenant under way in one process"
    )
    tenant_requests_per_s: float = Field(
        default=0, ge=0, description="requests of one tenant a second to one process; 0 is no limit"
    )
    max_wait_s: float = Field(
        default=10.0, gt=0, description="callers who would wait longer than this are refused at once"
    )
    open_metrics: bool | None = Field(
        default=None, description="serve /metrics without a key; by default on a loopback host only"
    )
    api_keys: SecretStr = Field(
        default=SecretStr(""),
        validation_alias="API_KEYS",
        description="tenant:key,... or one bare key; sha256=<hex> may stand for a key",
    )
    admin_api_keys: SecretStr = Field(
        default=SecretStr(""),
        validation_alias="ADMIN_API_KEYS",
        description="name:key,... of admins, in the form of API_KEYS and apart from those; none: no admins",
    )
    auth: Literal["keys", "off"] = Field(default="keys", validation_alias="AUTH")

    @property
    def admin_keys(self) -> Keys | None:
        """The keys of admins; None if there are no admins."""
        text = self.admin_api_keys.get_secret_value()
        return parse_keys(text) if text.strip() else None

    @property
    def caller_keys(self) -> Keys | None:
        """The keys of tenants; None if callers need none."""
        return None if self.auth == "off" else parse_keys(self.api_keys.get_secret_value())

    @property
    def on_loopback(self) -> bool:
        """Say whether only this machine can reach the gateway."""
        return is_loopback(self.host)

    @property
    def metrics_are_open(self) -> bool:
        """Say whether /metrics needs no key."""
        return self.on_loopback if self.open_metrics is None else self.open_metrics

    @field_validator("api_keys", "admin_api_keys")
    @classmethod
    def _readable_keys(cls, keys: SecretStr) -> SecretStr:
        parse_keys(keys.get_secret_value())
        return keys

    @model_validator(mode="after")
    def _never_open_to_the_world(self) -> Self:
        if self.auth == "off" and not self.on_loopback:
            raise ValueError(
                f"AUTH=off is refused with GATEWAY_HOST={self.host}: it is not a loopback address"
            )
        if self.auth == "keys" and not self.api_keys.get_secret_value().strip():
            raise ValueError("API_KEYS is empty: give at least one key, or say AUTH=off on a loopback host")
        return self

    @model_validator(mode="after")
    def _nobody_is_both(self) -> Self:
        callers, admins = parse_keys(self.api_keys.get_secret_value()), self.admin_keys
        if admins is not None and admins.shares_a_key_with(callers):
            raise ValueError("ADMIN_API_KEYS and API_KEYS share a key: an admin's key must be its own")
        return self


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that a gateway reads from its environment. Raises ValidationError, MissingSigningKey."""

    gateway: GatewaySettings = field(default_factory=GatewaySettings)
    nats: NatsSettings = field(default_factory=NatsSettings)
    redis: RedisSettings = field(default_factory=RedisSettings)
    blobs: BlobSettings = field(default_factory=BlobSettings)
    log: LogSettings = field(default_factory=LogSettings)
    webhooks: WebhookSettings = field(default_factory=WebhookSettings)
    tenants: TenantSettings = field(default_factory=TenantSettings)

    def __post_init__(self) -> None:
        """Refuse keys of a tenant whose requests no worker would take."""
        tenancy = Tenancy(self.tenants.signing_key)
        keys = self.gateway.caller_keys
        for tenant in () if keys is None else sorted(keys.tenants):
            if not tenancy.may_sign(tenant):
                raise MissingSigningKey(
                    f"TENANT_SIGNING_KEY: is missing, and API_KEYS names the tenant {tenant!r}; "
                    "give gateways, workers and scheduler the same one"
                )


def is_loopback(host: str) -> bool:
    """Say whether `host` names this machine only; a name other than localhost counts as public."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def explain(error: ValidationError) -> list[str]:
    """List what is wrong, a line each, naming the environment variable and never its value."""
    prefixes = {cls.__name__: cls.model_config.get("env_prefix", "") for cls in BaseSettings.__subclasses__()}
    lines = []
    for problem in error.errors(include_url=False, include_input=False):
        message = problem["msg"].removeprefix("Value error, ")
        name = str(problem["loc"][0]) if problem["loc"] else ""
        if name and not name.isupper():  # an alias is the whole name already
            name = prefixes.get(error.title, "") + name.upper()
        lines.append(f"{name}: {message}" if name else message)
    return lines
