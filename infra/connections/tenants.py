"""Proof of tenancy: which requests may write results for which tenant.

Whoever may publish requests may write any header, and NATS does not say who published. So a request for
any tenant but `public`, which is everybody's, carries a signature that only our gateways can make. A
publisher that forges a tenant gets a malformed message, not somebody else's job.
"""

import hashlib
import hmac
from collections.abc import Mapping

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from schemas.errors import InvalidInput
from schemas.headers import (
    DEFAULT_TENANT,
    SIGNATURE,
    TENANT,
    RequestHeaders,
    read_headers,
    write_headers,
)

MIN_KEY_CHARS = 16


class TenantSettings(BaseSettings):
    """The secret that gateways and workers share, from `TENANT_SIGNING_KEY`."""

    model_config = SettingsConfigDict(env_prefix="TENANT_", frozen=True)

    signing_key: SecretStr | None = Field(
        default=None,
        min_length=MIN_KEY_CHARS,
        description="shared by gateways, workers and scheduler; needed for tenants other than 'public'",
    )


class Tenancy:
    """Signs requests at the gateway and checks them at the worker. Without a key only `public` passes."""

    def __init__(self, key: SecretStr | None) -> None:
        self._key = key.get_secret_value().encode() if key is not None else None

    def may_sign(self, tenant: str) -> bool:
        """Say whether requests of `tenant` can be made here."""
        return tenant == DEFAULT_TENANT or self._key is not None

    def write(self, headers: RequestHeaders) -> dict[str, str]:
        """Format headers for publishing, signed where that is needed."""
        written = write_headers(headers)
        if headers.tenant != DEFAULT_TENANT and self._key is not None:
            written[SIGNATURE] = self._sign(headers)
        return written

    def read(self, raw: Mapping[str, str], *, fallback_id: str) -> RequestHeaders:
        """Parse the headers of a delivery. Raises InvalidInput, also for a tenant without its proof."""
        headers = read_headers(raw, fallback_id=fallback_id)
        if headers.tenant == DEFAULT_TENANT:
            return headers
        given = raw.get(SIGNATURE, "")
        if self._key is None or not hmac.compare_digest(given.encode(), self._sign(headers).encode()):
            raise InvalidInput("is not signed by a gateway; a publisher's tenant is 'public'", field=TENANT)
        return headers

    def _sign(self, headers: RequestHeaders) -> str:
        """Sign all that decides where a result is written. The fields hold no line breaks."""
        text = f"{headers.id}\n{headers.tenant}\n{headers.job or ''}\n{headers.item}"
        return hmac.new(self._key or b"", text.encode(), hashlib.sha256).hexdigest()
