"""Jobs: work that is accepted now and answered later."""

from typing import Annotated, Any

from litestar import Request, Response, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, QueryParameter
from litestar.response import Stream

from gateway.answers import job_response, json_response, wants_lines
from gateway.call import call_of
from gateway.intake import JobIntake
from gateway.jobs import MAX_PAGE, JobBook
from gateway.openapi import (
    ITEM_RESPONSES,
    RESULTS_RESPONSES,
    STATUS_RESPONSES,
    SUBMIT_RESPONSES,
    SubmitOperation,
)
from gateway.parsing import JSONL
from schemas.api import JobList

Limit = Annotated[int, QueryParameter(ge=1, le=MAX_PAGE, description="results of one page")]
Newest = Annotated[int, QueryParameter(ge=1, le=100, description="how many jobs")]
After = Annotated[int, QueryParameter(ge=0, description="the `next` of the page before")]


@post("/v1/jobs", status_code=202, operation_class=SubmitOperation, responses=SUBMIT_RESPONSES)
async def submit_job(request: Request[Any, Any, Any], intake: NamedDependency[JobIntake]) -> Response[bytes]:
    """Store one or many inputs, or a JSONL upload, and answer when all of it is stored."""
    return await intake.submit(request)


@get("/v1/jobs")
async def list_jobs(
    request: Request[Any, Any, Any], book: NamedDependency[JobBook], limit: Newest = 20
) -> JobList:
    """List your newest jobs, newest first."""
    return await book.newest(call_of(request.scope).tenant, limit)


@get("/v1/jobs/{job:str}", responses=STATUS_RESPONSES)
async def get_job(
    request: Request[Any, Any, Any], job: FromPath[str], book: NamedDependency[JobBook]
) -> Response[bytes]:
    """Say where a job is; the answer of a job of one item holds its result."""
    return job_response(await book.status(call_of(request.scope).tenant, job))


@delete("/v1/jobs/{job:str}", status_code=200, responses=STATUS_RESPONSES)
async def cancel_job(
    request: Request[Any, Any, Any], job: FromPath[str], book: NamedDependency[JobBook]
) -> Response[bytes]:
    """Cancel what has not ended of a job. Results that are stored stay."""
    return job_response(await book.cancel(call_of(request.scope).tenant, job))


@get("/v1/jobs/{job:str}/items/{item:int}", responses=ITEM_RESPONSES)
async def get_item(
    request: Request[Any, Any, Any], job: FromPath[str], item: FromPath[int], book: NamedDependency[JobBook]
) -> Response[bytes]:
    """Say how one item ended, on which worker, and which attempts there were beyond the first."""
    return json_response(await book.item(call_of(request.scope).tenant, job, item))


@get("/v1/jobs/{job:str}/results", responses=RESULTS_RESPONSES)
async def get_results(
    request: Request[Any, Any, Any],
    job: FromPath[str],
    book: NamedDependency[JobBook],
    after: After = 0,
    limit: Limit = 100,
) -> Response[Any]:
    """Return a page of results, or with `Accept: application/jsonl` all there are, one a line."""
    tenant = call_of(request.scope).tenant
    if wants_lines(request.headers):
        return Stream(await book.lines(tenant, job), media_type=JSONL[0])
    return json_response(await book.page(tenant, job, after=after, limit=limit))
