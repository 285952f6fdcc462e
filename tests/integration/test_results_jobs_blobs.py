"""Results, jobs and cancel marks on a real broker, and blobs in a folder and in S3."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from infra.connections.clients import Role
from infra.connections.jobs import CancelledJobs, Jobs
from infra.connections.reading import StreamReader
from infra.connections.results import Results
from schemas.errors import Unavailable
from schemas.jobs import ItemState, JobRecord
from schemas.subjects import Lane
from tests.integration.broker_stand import Declared, Link, connected, declared, hung
from tests.servers import NatsServer
from tests.waiting import until

pytestmark = pytest.mark.integration


JOB, OTHER_JOB = "job-0123456789abcdef", "job-other-0123456789"


@pytest_asyncio.fixture
async def broker(nats_server: NatsServer) -> AsyncIterator[Declared]:
    async with declared(nats_server) as broker:
        yield broker


@pytest_asyncio.fixture
async def gateway(nats_server: NatsServer, broker: Declared) -> AsyncIterator[Link]:
    async with connected(nats_server, Role.GATEWAY) as gateway:
        yield gateway


@pytest_asyncio.fixture
async def worker(nats_server: NatsServer, broker: Declared) -> AsyncIterator[Link]:
    async with connected(nats_server, Role.WORKER) as worker:
        yield worker


def results_of(link: Link) -> Results:
    return Results(link.connection, link.requests, timeout_s=2)


async def write(
    results: Results,
    item: int,
    *,
    body: bytes = b"body",
    state: ItemState = ItemState.SUCCEEDED,
    job: str = JOB,
    tenant: str = "acme",
) -> bool:
    return await results.write(tenant, job, item, state=state, body=body, attempts=1)


async def readers(broker: Declared, stream: str) -> int:
    """Count the consumers that reading has left at the server."""
    return int((await broker.info(stream))["state"]["consumer_count"])


async def test_a_result_is_written_once_and_read_by_its_gateway(worker: Link, gateway: Link) -> None:
    written, read = results_of(worker), results_of(gateway)
    assert await read.read("acme", JOB, 3) is None
    assert await written.write("acme", JOB, 3, state=ItemState.FAILED, body=b"first", attempts=2)
    assert not await write(written, 3, body=b"second")
    record = await read.read("acme", JOB, 3)
    assert record is not None
    assert (record.item, record.state, record.attempts) == (3, ItemState.FAILED, 2)
    assert record.body == b"first"
    assert await read.read("umbrella", JOB, 3) is None


async def test_of_many_writers_at_once_one_wins(worker: Link, gateway: Link) -> None:
    wins = await asyncio.gather(
        *(write(results_of(link), 0, body=b"%d" % n) for n, link in enumerate([worker, gateway] * 10))
    )
    assert sum(wins) == 1
    record = await results_of(gateway).read("acme", JOB, 0)
    assert record is not None
    assert record.body == b"%d" % wins.index(True)


async def test_records_come_in_the_order_of_their_writing_by_pages(worker: Link, gateway: Link) -> None:
    results = results_of(worker)
    order = [5, 3, 9, 0, 1, 7, 2]
    for item in order:
        await write(results, item)
        await write(results, item, job=OTHER_JOB)
    read = results_of(gateway)
    first = await read.page("acme", JOB, limit=3)
    rest = await read.page("acme", JOB, after_seq=first[-1].seq, limit=100)
    assert [record.item for record in first + rest] == order
    assert await read.page("acme", JOB, after_seq=rest[-1].seq) == []
    assert await read.page("umbrella", JOB) == []
    assert [record.item async for record in read.every("acme", JOB)] == order
    assert sorted([item async for item in read.items("acme", JOB)]) == sorted(order)


async def test_reading_leaves_nothing_at_the_server_or_here(
    broker: Declared, worker: Link, gateway: Link
) -> None:
    for item in range(6):
        await write(results_of(worker), item)
    subscriptions = len(gateway.connection.client._subs)
    read = results_of(gateway)
    for _ in range(5):
        await read.page("acme", JOB, limit=2)
        await read.counts("acme", JOB)
    assert len(gateway.connection.client._subs) == subscriptions
    await gateway.connection.client.flush()
    assert await readers(broker, "RESULTS") == 0


async def test_a_page_ends_where_the_next_record_has_no_room(
    worker: Link, gateway: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.connections.reading.PAGE_BYTES", 100_000)
    for item in range(10):
        await write(results_of(worker), item, body=bytes(40_000))
    records = [record async for record in results_of(gateway).every("acme", JOB)]
    assert [(record.item, len(record.body)) for record in records] == [(n, 40_000) for n in range(10)]


@pytest.mark.parametrize("count", [1, 7, 8, 9, 16, 20])
async def test_every_record_is_read_whatever_the_size_of_a_page(
    worker: Link, gateway: Link, count: int
) -> None:
    for item in range(count):
        await write(results_of(worker), item)
    reader = StreamReader(gateway.connection, gateway.requests, "RESULTS", timeout_s=2)
    seqs = [stored.seq async for stored in reader.every(f"result.acme.{JOB}.*", page=8)]
    assert len(seqs) == count
    assert seqs == sorted(set(seqs))


async def test_a_reader_that_the_server_forgot_goes_on_where_it_was(
    broker: Declared, worker: Link, gateway: Link
) -> None:
    """The server forgets one after 30 s, which somebody who downloads slowly may take for a page."""
    for item in range(20):
        await write(results_of(worker), item)
    reader = StreamReader(gateway.connection, gateway.requests, "RESULTS", timeout_s=2)
    items = []
    async for stored in reader.every(f"result.acme.{JOB}.*", page=8):
        items.append(int(stored.subject.rpartition(".")[2]))
        if len(items) in (3, 11):
            names = (await broker.link.requests.api("CONSUMER.NAMES.RESULTS"))["consumers"]
            for name in names:
                await broker.link.requests.api(f"CONSUMER.DELETE.RESULTS.{name}")
    assert items == list(range(20))


async def test_a_stream_that_is_gone_is_unavailable_and_never_looks_read_to_its_end(
    broker: Declared, worker: Link, gateway: Link
) -> None:
    for item in range(20):
        await write(results_of(worker), item)
    reader = StreamReader(gateway.connection, gateway.requests, "RESULTS", timeout_s=2)
    async with aclosing(reader.every(f"result.acme.{JOB}.*", page=8)) as messages:
        for _ in range(8):
            await anext(messages)
        await broker.link.requests.api("STREAM.DELETE.RESULTS")
        with pytest.raises(Unavailable):
            await anext(messages)


async def test_counts_go_on_from_the_last_count(worker: Link, gateway: Link) -> None:
    written, read = results_of(worker), results_of(gateway)
    assert await read.counts("acme", JOB) == {}
    for item, state in enumerate([ItemState.SUCCEEDED, ItemState.FAILED, ItemState.SUCCEEDED]):
        await write(written, item, state=state)
    assert await read.counts("acme", JOB) == {ItemState.SUCCEEDED: 2, ItemState.FAILED: 1}
    seen: list[int] = []
    every = read._reader.every

    async def spied(subjects: str, **keys: int) -> AsyncIterator[object]:
        async for stored in every(subjects, **keys):  # type: ignore[arg-type]
            seen.append(stored.seq)
            yield stored

    read._reader.every = spied  # type: ignore[method-assign, assignment]
    await write(written, 3, state=ItemState.CANCELLED)
    counts = {ItemState.SUCCEEDED: 2, ItemState.FAILED: 1, ItemState.CANCELLED: 1}
    assert await read.counts("acme", JOB) == counts
    assert len(seen) == 1
    assert await asyncio.gather(*(read.counts("acme", JOB) for _ in range(5))) == [counts] * 5


def a_job(job: str = JOB, created_at: float = 1.5) -> JobRecord:
    return JobRecord(job, "m", Lane.BATCH, created_at, 2)


async def test_a_job_is_its_tenants_and_any_gateway_knows_it(gateway: Link, nats_server: NatsServer) -> None:
    jobs = Jobs(gateway.connection, gateway.requests, timeout_s=2)
    await jobs.put("acme", a_job())
    await jobs.put("acme", replace(a_job(), items=5))
    async with connected(nats_server, Role.GATEWAY) as other:
        elsewhere = Jobs(other.connection, other.requests, timeout_s=2)
        assert await elsewhere.get("acme", JOB) == replace(a_job(), items=5)
        assert await elsewhere.get("umbrella", JOB) is None
        assert await elsewhere.get("acme", OTHER_JOB) is None


async def test_the_newest_jobs_come_first(gateway: Link) -> None:
    jobs = Jobs(gateway.connection, gateway.requests, timeout_s=2)
    for n in range(5):
        await jobs.put("acme", a_job(f"job-{n}-0123456789abcdef", float(n)))
    await jobs.put("umbrella", a_job())
    assert [job.created_at for job in await jobs.newest("acme", 3)] == [4.0, 3.0, 2.0]
    assert await jobs.newest("nobody", 3) == []


async def test_a_cancel_mark_is_heard_live_and_found_by_who_comes_later(gateway: Link, worker: Link) -> None:
    jobs = Jobs(gateway.connection, gateway.requests, timeout_s=2)
    listening = CancelledJobs(worker.connection, worker.requests, timeout_s=2)
    await listening.open()
    await worker.connection.client.flush()
    assert not listening("acme", JOB)
    await jobs.cancel("acme", JOB)
    await until(lambda: listening("acme", JOB), "the mark to be heard")
    assert not listening("acme", OTHER_JOB)
    assert not listening("umbrella", JOB)
    assert await jobs.is_cancelled("acme", JOB)
    assert not await jobs.is_cancelled("acme", OTHER_JOB)

    late = CancelledJobs(worker.connection, worker.requests, timeout_s=2)
    assert not late("acme", JOB)
    await jobs.cancel("acme", OTHER_JOB)
    await late.catch_up()
    assert late("acme", JOB)
    assert late("acme", OTHER_JOB)


async def test_reading_a_hung_broker_is_unavailable_within_the_deadline(tmp_path: Path) -> None:
    with NatsServer(tmp_path) as server:
        async with declared(server), connected(server, Role.GATEWAY, timeout_s=0.3) as gateway:
            results = Results(gateway.connection, gateway.requests, timeout_s=0.3)
            jobs = Jobs(gateway.connection, gateway.requests, timeout_s=0.3)
            with hung(server):
                for attempt in (
                    results.read("acme", JOB, 0),
                    write(results, 0),
                    results.page("acme", JOB),
                    results.counts("acme", JOB),
                    jobs.put("acme", a_job()),
                    jobs.is_cancelled("acme", JOB),
                ):
                    async with asyncio.timeout(3):
                        with pytest.raises(Unavailable):
                            await attempt
