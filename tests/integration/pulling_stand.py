"""One consumer, and somebody who pulls from it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from infra.connections.clients import Role
from infra.connections.pulling import Delivery, PullConsumer, Settler
from schemas.subjects import Lane, consumer_name
from tests.integration.broker_stand import MODEL, Declared, Link, connected
from tests.servers import NatsServer
from tests.waiting import until

STREAM, CONSUMER = Lane.BATCH.stream, consumer_name(MODEL, Lane.BATCH)


SUBJECT = b"infer.m~2Ev1.batch"


class Puller:
    """A worker's pulling, and nothing else of a worker: it holds what comes until it is told to settle."""

    def __init__(self, link: Link, *, hold: int) -> None:
        self.link = link
        self.settler = Settler(link.connection, link.requests)
        self.hold = hold
        self.held: dict[str, Delivery] = {}
        self.all: list[Delivery] = []
        self.most_promised = 0  # in hand and asked for, at any one time
        self.on_delivery: Callable[[Delivery], None] = lambda _: None
        self.consumer = PullConsumer(
            link.connection,
            STREAM,
            CONSUMER,
            room=lambda: self.hold - len(self.held),
            on_delivery=self._take,
        )

    def _take(self, delivery: Delivery) -> None:
        self.held[delivery.ack_subject] = delivery
        self.all.append(delivery)
        self.most_promised = max(self.most_promised, len(self.held) + self.consumer._credit)
        self.on_delivery(delivery)

    async def got(self, count: int) -> list[Delivery]:
        await until(lambda: len(self.all) >= count, f"{count} deliveries, got {len(self.all)}")
        return self.all

    async def ack(self, delivery: Delivery) -> None:
        await self.settler.ack_stored(delivery)
        self.held.pop(delivery.ack_subject)
        self.consumer.top_up()

    async def ack_held(self) -> None:
        for delivery in list(self.held.values()):
            await self.ack(delivery)


@asynccontextmanager
async def pulling_from(server: NatsServer, *, hold: int = 8) -> AsyncIterator[Puller]:
    async with connected(server, Role.WORKER) as link:
        puller = Puller(link, hold=hold)
        running = asyncio.create_task(puller.consumer.run())
        try:
            await until(lambda: puller.consumer._last_asked > 0, "the first pull")
            yield puller
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def settled(broker: Declared) -> bool:
    """Say whether nothing is waiting and nothing in hand."""
    backlog = await broker.streams.backlog(MODEL, Lane.BATCH)
    return (backlog.waiting, backlog.in_hand) == (0, 0)
