"""The scheduler's duties for jobs over a real broker, in this process, on a clock that tests move."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr

from infra.connections.callbacks import Resolve
from infra.connections.clients import Role
from infra.connections.clock import BrokerClock
from infra.connections.jobs import Jobs
from infra.connections.results import Results
from infra.connections.settings import StreamSettings, WebhookSettings
from infra.connections.streams import Streams
from scheduler.job_duties import JobDuties, open_job_duties
from scheduler.settings import SchedulerSettings
from schemas.jobs import ItemState, JobRecord
from schemas.subjects import Lane
from tests.integration.broker_stand import connected
from tests.servers import HOST, NatsServer

TENANT = "acme"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


class MovedClock(BrokerClock):
    """The broker's clock, ahead by as much as a test says."""

    ahead_s = 0.0

    def now_ns(self) -> int:
        return super().now_ns() + int(self.ahead_s * 1e9)


@dataclass(frozen=True, slots=True)
class Gateway:
    """What a gateway and a worker store."""

    jobs: Jobs
    results: Results

    async def submit(self, job: str, *, items: int = 1, **said: Any) -> JobRecord:
        """Store the record of a job; its messages do not matter here."""
        record = JobRecord(job, "m", Lane.BATCH, said.pop("created_at", 0.0), items, **said)
        await self.jobs.put(TENANT, record)
        return record

    async def end(self, job: str, item: int = 0, state: ItemState = ItemState.SUCCEEDED) -> bool:
        """Store how an item ended."""
        return await self.results.write(TENANT, job, item, state=state, body=b"theirs", attempts=1)


@dataclass(frozen=True, slots=True)
class Duties:
    """A scheduler's duties, which a test does by hand or lets run."""

    of: JobDuties
    clock: MovedClock

    async def end_due(self, *, ahead_s: float = 0.0) -> None:
        """Do one round of deadlines, so many seconds from now."""
        self.clock.ahead_s = ahead_s
        await self.of.expiry.end_due()

    async def tell(self, *, ahead_s: float = 60.0) -> None:
        """Do one round of webhooks, and return when what it began has ended."""
        self.clock.ahead_s = ahead_s
        async with asyncio.TaskGroup() as tries:
            await self.of.webhooks.look(tries)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run both loops meanwhile."""
        async with asyncio.TaskGroup() as tasks:
            loops = [tasks.create_task(self.of.expiry.run()), tasks.create_task(self.of.webhooks.run())]
            yield
            for loop in loops:
                loop.cancel()


@asynccontextmanager
async def gateway(server: NatsServer) -> AsyncIterator[Gateway]:
    """Connect as a gateway."""
    async with connected(server, Role.GATEWAY) as link:
        jobs = Jobs(link.connection, link.requests, timeout_s=2)
        yield Gateway(jobs, Results(link.connection, link.requests, timeout_s=2))


@asynccontextmanager
async def duties(
    server: NatsServer, *, resolve: Resolve | None = None, max_open_jobs: int = 1000, **webhook: Any
) -> AsyncIterator[Duties]:
    """Start a scheduler that knows nothing yet; entering this again is a restart of it."""
    webhooks: dict[str, Any] = {
        "secrets": SecretStr(f"{TENANT}:{SECRET}"),
        "allow_private": True,
        "retry_s": 0.0,
    }
    async with connected(server, Role.SCHEDULER) as link:
        clock = MovedClock(link.requests)
        async with open_job_duties(
            link.connection,
            link.requests,
            Streams(link.requests, StreamSettings()),
            SchedulerSettings(jobs_s=0.02, expiry_grace_s=5, max_open_jobs=max_open_jobs),
            WebhookSettings(**(webhooks | webhook)),
            kept_s=86_400,
            timeout_s=2,
            clock=clock,
            resolve=resolve,
        ) as of:
            yield Duties(of, clock)


@dataclass(frozen=True, slots=True)
class Heard:
    """One request that a receiver got."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def event(self) -> dict[str, Any]:
        """What it says."""
        event: dict[str, Any] = json.loads(self.body)
        return event


class Receiver:
    """Somebody's HTTP server on a free port. It answers with the next of `statuses`, and then with 200."""

    def __init__(self, *statuses: str) -> None:
        self.heard: list[Heard] = []
        self.port = 0
        self._statuses = list(statuses)

    @property
    def url(self) -> str:
        """Where to tell it."""
        return f"http://{HOST}:{self.port}/told"

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["Receiver"]:
        """Listen meanwhile."""
        server = await asyncio.start_server(self._answer, HOST, 0)
        self.port = server.sockets[0].getsockname()[1]
        async with server:
            yield self

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        request, *lines = head.strip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(headers["content-length"]))
        self.heard.append(Heard(request.split()[1], headers, body))
        status = self._statuses.pop(0) if self._statuses else "200 OK"
        answer = (
            f"HTTP/1.1 {status}\r\nlocation: /elsewhere\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        )
        writer.write(answer.encode())
        await writer.drain()
        writer.close()
