"""Where a job is, read from what is stored, and an end for those of its items that have none."""

from infra.connections.bounded import for_each
from infra.connections.jobs import Jobs
from infra.connections.results import Results
from schemas.api import JobCounts
from schemas.envelope import encode_reply, failure_of
from schemas.errors import InferenceError
from schemas.jobs import JobRecord, JobState, item_state_of, job_state


async def read_state(
    jobs: Jobs, results: Results, tenant: str, record: JobRecord
) -> tuple[JobState, JobCounts]:
    """Say where a job is, and how its items ended. Raises Unavailable."""
    ended = await results.counts(tenant, record.job)
    count = sum(ended.values())
    unsettled = record.receiving or count < record.items or not count
    cancelled = unsettled and await jobs.is_cancelled(tenant, record.job)
    return job_state(record, ended, cancelled=cancelled), JobCounts.of(record.items, ended)


async def end_missing(
    results: Results, tenant: str, record: JobRecord, error: InferenceError, *, window: int
) -> int:
    """Write `error` as the end of every item that has none, and return how many those were.

    At most `window` are on their way at once. A result that comes first stands. Raises Unavailable with
    some written; calling it again writes the others.
    """
    ended = {item async for item in results.items(tenant, record.job)}
    written = 0

    async def end(item: int) -> None:
        nonlocal written
        body = encode_reply(failure_of(error, f"{record.job}.{item}"))
        state = item_state_of(error.code)
        if await results.write(tenant, record.job, item, state=state, body=body, attempts=0):
            written += 1

    missing = (item for item in range(record.items) if item not in ended)
    await for_each(end, missing, at_once=window)
    return written
