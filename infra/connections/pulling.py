"""Pull deliveries from one durable consumer, continuously, and settle them.

A pull is a credit given to the server: that many messages may be pushed to our inbox, as they come.
Credit plus what is in hand never exceeds the room the worker has. The loop knows its pulls by an inbox
each; silence for longer than the server's heartbeat, or a reconnection, means the pull is lost, and a new
inbox and a new pull replace it. nats-py's `fetch()` is not used: it costs 4 times as much a message and
loses pulls over a reconnection.
"""

import asyncio
import json
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from infra.connections.clients import NatsConnection
from infra.connections.requests import Requests, publish
from schemas.errors import Unavailable

log = structlog.get_logger()

EXPIRES_S = 30.0
HEARTBEAT_S = 5.0
SILENCE_MEANS_YES_S = 0.3
RETIRE_TIMEOUT_S = 5.0
QUIET_S = 0.2
_RETRY_S = (0.1, 0.25, 0.5, 1.0)
_NO_RESPONDERS = "503"


@dataclass(frozen=True, slots=True)
class Delivery:
    """JetStream handing us a request, once. `pending` is how many more its consumer held at that moment."""

    subject: str
    headers: dict[str, str]
    body: bytes
    ack_subject: str
    stream: str
    stream_seq: int
    attempt: int  # 1 at the first delivery
    stored_at_ns: int  # unix, on the broker's clock
    pending: int


def parse_delivery(message: Msg) -> Delivery:
    """Read what JetStream says in the ack subject: 9 tokens, or more where domain and account stand in it."""
    tokens = message.reply.split(".")
    if len(tokens) > 9:
        tokens = [*tokens[:2], *tokens[4:]]
    return Delivery(
        subject=message.subject,
        headers=message.headers or {},
        body=message.data,
        ack_subject=message.reply,
        stream=tokens[2],
        stream_seq=int(tokens[5]),
        attempt=int(tokens[4]),
        stored_at_ns=int(tokens[7]),
        pending=int(tokens[8]),
    )


class PullConsumer:
    """Keeps credit open at one durable consumer and hands over what comes.

    `on_delivery` is called on the loop and must not block. `room()` says how many more deliveries the
    worker could take now, beyond those it holds. Call `top_up()` whenever that grows.
    """

    def __init__(
        self,
        connection: NatsConnection,
        stream: str,
        name: str,
        *,
        room: Callable[[], int],
        on_delivery: Callable[[Delivery], None],
    ) -> None:
        self.name = name
        self._connection = connection
        self._next_subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{name}"
        self._room = room
        self._on_delivery = on_delivery
        self._credit = 0
        self._inbox = ""
        self._subscription: Subscription | None = None
        self._last_heard = 0.0
        self._last_asked = 0.0
        self._answers = False
        self._failures = 0
        self._paused_until = 0.0
        self._wake = asyncio.Event()
        self._lost = False
        self._stopped = False

    async def run(self) -> None:
        """Pull until cancelled. Survives restarts of the server and a consumer that is not there yet."""
        self._connection.on_reconnect(self._pull_lost)
        try:
            while not self._stopped:
                await self._ensure_subscribed()
                if not self._stopped:  # asked while we waited for what came to the old inbox
                    await self._ask_for_room()
                    await self._wait()
        finally:
            if not self._stopped:  # else `stop` sees to it, when nothing more comes
                await self._unsubscribe()

    @property
    def available(self) -> bool:
        """Say whether pulls are open there; false while it does not exist or the server is away.

        A consumer that is there says nothing while it is empty; one that is not says so at once.
        """
        asked = self._credit > 0 and time.monotonic() - self._last_asked > SILENCE_MEANS_YES_S
        return self._connection.connected and (self._answers or asked)

    @property
    def has_credit(self) -> bool:
        """Say whether the server may push more to us without being asked again."""
        return self._credit > 0

    async def stop(self) -> None:
        """Ask for nothing more, and return when nothing more will come.

        What the server is sending for pulls that are open is waited for while it comes. What it would
        still send after that goes to others at once, but counts as delivered.
        """
        self._stopped = True
        self._wake.set()
        heard = None
        while self._credit > 0 and self._connection.connected and heard != self._last_heard:
            heard = self._last_heard
            await asyncio.sleep(QUIET_S)
        await self._retire_inbox()

    def top_up(self) -> None:
        """Ask for more, if there is room for more; to be called when deliveries were settled."""
        if self._worth_asking():
            self._wake.set()

    async def _ensure_subscribed(self) -> None:
        if self._subscription is not None and not self._lost:
            return
        await self._retire_inbox()
        if self._stopped:
            return
        self._lost = False
        self._credit = 0
        self._inbox = f"{self._connection.inbox_prefix}.pull.{secrets.token_hex(12)}"
        self._subscription = await self._connection.client.subscribe(
            self._inbox, cb=self._received, pending_msgs_limit=-1, pending_bytes_limit=-1
        )
        self._last_heard = time.monotonic()

    async def _unsubscribe(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is not None and not self._connection.client.is_closed:
            await subscription.unsubscribe()

    async def _retire_inbox(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await self._connection.client.retire(subscription, RETIRE_TIMEOUT_S)

    async def _ask_for_room(self) -> None:
        free = self._worth_asking()
        if free == 0 or time.monotonic() < self._paused_until:
            return
        pull = {"batch": free, "expires": int(EXPIRES_S * 1e9), "idle_heartbeat": int(HEARTBEAT_S * 1e9)}
        try:
            await publish(self._connection, self._next_subject, json.dumps(pull).encode(), reply=self._inbox)
        except Unavailable:
            self._pause()
            return
        self._credit += free
        self._last_heard = self._last_asked = time.monotonic()

    def _worth_asking(self) -> int:
        """Return how many to ask for. One at a time would double the traffic, so wait for a third more."""
        free = self._room() - self._credit
        return free if free > 0 and free >= self._credit // 3 else 0

    async def _wait(self) -> None:
        now = time.monotonic()
        patience = HEARTBEAT_S * 2.4
        if self._paused_until > now:
            patience = self._paused_until - now
        try:
            async with asyncio.timeout(patience):
                await self._wake.wait()
        except TimeoutError:
            if self._credit > 0 and time.monotonic() - self._last_heard >= HEARTBEAT_S * 2.3:
                log.warning("pull lost", consumer=self.name)
                self._lost = True
        self._wake.clear()

    async def _received(self, message: Msg) -> None:
        self._last_heard = time.monotonic()
        self._answers = True
        if message.reply.startswith("$JS.ACK."):
            self._credit = max(0, self._credit - 1)
            self._failures = 0
            self._on_delivery(parse_delivery(message))
            return
        self._status((message.headers or {}).get("Status", ""), message.headers or {})

    def _status(self, status: str, headers: dict[str, str]) -> None:
        if status == "100":
            self._failures = 0
            return
        left = headers.get("Nats-Pending-Messages")
        self._credit = max(0, self._credit - int(left)) if left is not None else 0
        if left is not None:
            self._failures = 0
        else:  # refused, or cut off by what happened to the consumer; at once again would be a hot loop
            gone = status == _NO_RESPONDERS or "Deleted" in headers.get("Description", "")
            self._lost = not gone  # which of our pulls are still open is not known, so all must end
            self._pause()
        self._wake.set()

    def _pause(self) -> None:
        self._credit = 0
        self._answers = False
        self._paused_until = time.monotonic() + _RETRY_S[min(self._failures, len(_RETRY_S) - 1)]
        self._failures += 1
        if self._failures == len(_RETRY_S):
            log.warning("consumer is not there", consumer=self.name)

    def _pull_lost(self) -> None:
        self._lost = True
        self._failures = 0
        self._paused_until = 0.0
        self._wake.set()


class Settler:
    """Tells JetStream what became of a delivery. Every call is one publish; none but `ack_stored` waits."""

    def __init__(self, connection: NatsConnection, requests: Requests) -> None:
        self._connection = connection
        self._requests = requests

    async def ack(self, delivery: Delivery) -> None:
        """Settle as done, without waiting. A lost ack means another delivery, which finds the answer."""
        await publish(self._connection, delivery.ack_subject, b"+ACK")

    async def ack_stored(self, delivery: Delivery) -> None:
        """Settle as done and await the server's word. Raises Unavailable if it does not come."""
        await self._requests.ask(delivery.ack_subject, b"+ACK")

    async def nak(self, delivery: Delivery, delay_s: float) -> None:
        """Ask for another delivery after `delay_s`; without a delay it would come at once, in a loop."""
        nak = json.dumps({"delay": int(delay_s * 1e9)})
        await publish(self._connection, delivery.ack_subject, f"-NAK {nak}".encode())

    async def term(self, delivery: Delivery, reason: str) -> None:
        """End it for good; an advisory carries `reason`."""
        await publish(self._connection, delivery.ack_subject, f"+TERM {reason}".encode())

    async def in_progress(self, delivery: Delivery) -> None:
        """Start its `ack_wait` anew."""
        await publish(self._connection, delivery.ack_subject, b"+WPI")
