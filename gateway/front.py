"""What surrounds every request: its id, its key, its metrics and its log line. Deny is the default."""

import time
from collections.abc import Collection
from dataclasses import dataclass

import structlog
from litestar import Litestar
from litestar.types import Message, Receive, Scope, Send

from gateway import metrics
from gateway.auth import Keys
from gateway.call import Call, new_call
from gateway.errors import CLIENT_CLOSED_REQUEST, send_problem
from schemas.errors import ErrorCode, Unauthorized
from schemas.headers import DEFAULT_TENANT

log = structlog.get_logger()

HEALTH_PATHS = frozenset({"/health", "/health/live", "/health/ready"})
METRICS_PATH = "/metrics"
UNMATCHED = "unmatched"


@dataclass(slots=True)
class _Reply:
    """Watches what is sent, and adds the request's id to it."""

    send: Send
    request_id: str
    status: int = 0

    async def forward(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message["headers"], (b"x-request-id", self.request_id.encode())]
            message = {"type": "http.response.start", "status": self.status, "headers": headers}
        await self.send(message)


class Front:
    """The ASGI application: lets a request through to `app` if its path is open or its key is known.

    Without `keys` every caller is the default tenant; the settings allow that on a loopback host only.
    What a key of `admin_keys` opens, the app decides by its routes.
    """

    def __init__(
        self,
        app: Litestar,
        *,
        keys: Keys | None,
        open_paths: Collection[str],
        admin_keys: Keys | None = None,
    ) -> None:
        self.app = app
        self._keys = keys
        self._admin_keys = admin_keys
        self._open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection. A websocket is refused, for there is nothing that speaks it."""
        kind: str = scope["type"]
        if kind == "http":
            await self._serve(scope, receive, send)
        elif kind == "websocket":
            await send({"type": "websocket.close", "code": 1000, "reason": ""})
        else:
            await self.app(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        authorization, traceparent = _own_headers(scope)
        call = new_call(traceparent)
        scope.setdefault("state", {})["call"] = call
        reply = _Reply(send, call.request_id)
        metrics.requests_in_flight.inc()
        try:
            self._identify(call, scope["path"], authorization)
            await self.app(scope, receive, reply.forward)
        except Unauthorized as error:
            await send_problem(reply.forward, error, call)
        finally:
            metrics.requests_in_flight.dec()
            _note_end(scope, call, reply.status or 500, time.perf_counter() - started)

    def _identify(self, call: Call, path: str, authorization: list[str]) -> None:
        if path in self._open_paths:
            call.tenant = DEFAULT_TENANT
        elif admin := self._admin(authorization):
            call.tenant, call.is_admin = admin, True
        elif self._keys is None:
            call.tenant = DEFAULT_TENANT
        else:
            call.tenant = self._keys.tenant_of(authorization)

    def _admin(self, authorization: list[str]) -> str | None:
        if self._admin_keys is None:
            return None
        try:
            return self._admin_keys.owner_of(authorization)
        except Unauthorized:
            if self._keys is None:  # callers need no key, so what they show here is not looked at
                return None
            raise


def _own_headers(scope: Scope) -> tuple[list[str], str | None]:
    authorization, traceparent = [], None
    for name, value in scope["headers"]:
        if name == b"authorization":
            authorization.append(value.decode("latin-1"))
        elif name == b"traceparent":
            traceparent = value.decode("latin-1")
    return authorization, traceparent


def _note_end(scope: Scope, call: Call, status: int, seconds: float) -> None:
    route = str(scope.get("path_template") or UNMATCHED)
    model = call.model or metrics.UNKNOWN
    metrics.count(
        model=model,
        route=route,
        status=status,
        error=call.error,
        seconds=seconds,
        refused_for=call.refused_for,
    )
    if status < 400 or status == CLIENT_CLOSED_REQUEST:
        return
    log.warning(
        "request failed",
        request_id=call.request_id,
        trace_id=call.trace_id,
        route=route,
        model=model,
        status=status,
        code=str(call.error or ErrorCode.INTERNAL),
        latency_ms=round(seconds * 1000, 1),
    )
