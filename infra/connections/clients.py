"""Open the raw clients with settings that notice a dead server in seconds and never give up on one."""

import asyncio
import secrets
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from enum import StrEnum
from typing import Any

import redis.asyncio
import structlog
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from infra.connections.settings import NatsSettings, RedisSettings
from infra.connections.sturdy import SturdyClient

log = structlog.get_logger()

CLOSE_TIMEOUT_S = 5.0


class Role(StrEnum):
    """Who connects. Permissions and inboxes are a role's own, so roles can not read each other's replies."""

    GATEWAY = "gateway"
    WORKER = "worker"
    SCHEDULER = "scheduler"
    PUBLISHER = "publisher"
    MONITOR = "monitor"


class NatsConnection:
    """One NATS connection, its private inbox prefix, and who wants to know when it comes and goes."""

    def __init__(self, role: Role) -> None:
        self.role = role
        self.instance = secrets.token_hex(8)
        self.client = SturdyClient()
        self._closing = False
        self._last_failure = ""
        self._on_reconnect: list[Callable[[], None]] = []
        self._on_disconnect: list[Callable[[], None]] = []

    @property
    def connected(self) -> bool:
        """Say whether the connection is up now."""
        return bool(self.client.is_connected)

    @property
    def max_payload_bytes(self) -> int:
        """The server's limit on one message."""
        return int(self.client.max_payload)

    @property
    def inbox_prefix(self) -> str:
        """The subject under which this connection alone listens."""
        return f"_INBOX_{self.role}.{self.instance}"

    def on_reconnect(self, notify: Callable[[], None]) -> None:
        """Call `notify` after each reconnection. It must not block or raise."""
        self._on_reconnect.append(notify)

    def on_disconnect(self, notify: Callable[[], None]) -> None:
        """Call `notify` when the connection is lost. It must not block or raise."""
        self._on_disconnect.append(notify)

    async def close(self) -> None:
        """Flush and close; nothing is told of it. A server that does not read is not waited for long."""
        self._closing = True
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self.client.close()
        except TimeoutError:
            self.client.abort()
            log.warning("nats closed with data unsent", role=self.role)

    async def reconnected(self) -> None:
        """Tell everyone; called by the client."""
        log.info("nats reconnected", role=self.role)
        for notify in self._on_reconnect:
            notify()

    async def disconnected(self) -> None:
        """Tell everyone; called by the client, also when we close it ourselves."""
        if self.client.is_closed or self._closing:
            return
        log.warning("nats disconnected", role=self.role)
        for notify in self._on_disconnect:
            notify()

    async def failed(self, error: Exception) -> None:
        """Log what the client could not raise to anybody: violations, lost connections, slow consumers.

        The client tries to reconnect twice a second, and each try that fails as the last did is not news.
        """
        text = f"{type(error).__name__}: {error}"
        if text == self._last_failure and not self.connected:
            return
        self._last_failure = text
        log.warning("nats error", role=self.role, error=text)


@asynccontextmanager
async def open_nats(settings: NatsSettings, role: Role) -> AsyncIterator[NatsConnection]:
    """Connect, waiting for as long as there is no server; wrap it in a timeout where that must end."""
    connection = NatsConnection(role)
    await connection.client.connect(**_connect_options(settings, connection))
    try:
        yield connection
    finally:
        await connection.close()


def _connect_options(settings: NatsSettings, connection: NatsConnection) -> dict[str, Any]:
    options: dict[str, Any] = {
        "servers": settings.url.split(","),
        "name": f"model-serving-{connection.role}-{connection.instance}",
        "inbox_prefix": f"_INBOX_{connection.role}",
        "ping_interval": 5,
        "max_outstanding_pings": 2,
        "max_reconnect_attempts": -1,
        "reconnect_time_wait": 0.5,
        "connect_timeout": 2,
        "drain_timeout": 5,
        "pending_size": 0,  # fail at once while disconnected, rather than buffer
        "error_cb": connection.failed,
        "disconnected_cb": connection.disconnected,
        "reconnected_cb": connection.reconnected,
    }
    if settings.user is not None and settings.password is not None:
        options |= {"user": settings.user, "password": settings.password.get_secret_value()}
    if settings.creds_file is not None:
        options["user_credentials"] = str(settings.creds_file)
    if settings.nkey_seed_file is not None:
        options["nkeys_seed"] = str(settings.nkey_seed_file)
    if settings.tls_ca_file is not None:
        options["tls"] = _tls_context(settings)
    return options


def _tls_context(settings: NatsSettings) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=settings.tls_ca_file)
    if settings.tls_cert_file is not None:
        context.load_cert_chain(settings.tls_cert_file, settings.tls_key_file)
    return context


@asynccontextmanager
async def open_redis(settings: RedisSettings) -> AsyncIterator[redis.asyncio.Redis]:
    """Open a client; it connects when first used. Every command has a deadline and no silent retries."""
    client = redis.asyncio.Redis.from_url(
        settings.url.get_secret_value(),
        socket_timeout=settings.timeout_s,
        socket_connect_timeout=settings.timeout_s,
        retry=Retry(NoBackoff(), 0),
        decode_responses=False,
        protocol=3,
    )
    try:
        yield client
    finally:
        await client.aclose()
