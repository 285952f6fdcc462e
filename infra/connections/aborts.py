"""Word that nobody waits for a live request any more: a plain message, at most once, both ends of it.

A worker that misses it runs the request for nothing, and that is all.
"""

from collections import OrderedDict

from nats.aio.msg import Msg

from infra.connections.clients import NatsConnection
from infra.connections.requests import publish
from schemas.subjects import abort_subject

MAX_ABORTED = 10_000


async def send_abort(connection: NatsConnection, request_id: str) -> None:
    """Tell every worker. Raises Unavailable while disconnected."""
    await publish(connection, abort_subject(request_id), b"")


class AbortedRequests:
    """The worker's end: the newest MAX_ABORTED requests that nobody waits for."""

    def __init__(self, connection: NatsConnection) -> None:
        self._connection = connection
        self._subjects: OrderedDict[str, None] = OrderedDict()

    def __call__(self, request_id: str) -> bool:
        """Say whether nobody waits for a request any more. Its id may be a stranger's, and hold anything."""
        return f"abort.{request_id}" in self._subjects

    async def open(self) -> None:
        """Listen. Call once."""

        async def heard(message: Msg) -> None:
            self._subjects[message.subject] = None
            if len(self._subjects) > MAX_ABORTED:
                self._subjects.popitem(last=False)

        await self._connection.client.subscribe(abort_subject("*"), cb=heard)
