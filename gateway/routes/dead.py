"""Dead letters, for admins."""

from typing import Annotated

from litestar import delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, QueryParameter

from gateway.auth import ADMINS_ONLY
from gateway.dead import MAX_PAGE, DeadBook
from schemas.api import DeadLetterAnswer, DeadLetterPage, Purged, Replayed

Model = Annotated[str | None, QueryParameter(description="only those of this model")]
Limit = Annotated[int, QueryParameter(ge=1, le=MAX_PAGE, description="letters of one page")]
After = Annotated[int | None, QueryParameter(ge=1, description="the `next` of the page before")]
OlderThan = Annotated[
    float | None, QueryParameter(ge=0, le=10 * 366 * 86_400, description="only those as old as this, seconds")
]
WithBody = Annotated[bool, QueryParameter(name="body", description="show the body too")]


@get("/v1/dead", opt=ADMINS_ONLY)
async def list_dead(
    dead: NamedDependency[DeadBook], model: Model = None, limit: Limit = 50, after: After = None
) -> DeadLetterPage:
    """List what was given up, newest first."""
    return await dead.page(model, limit=limit, after=after)


@get("/v1/dead/{seq:int}", opt=ADMINS_ONLY)
async def show_dead(
    seq: FromPath[int], dead: NamedDependency[DeadBook], with_body: WithBody = False
) -> DeadLetterAnswer:
    """Show one dead letter."""
    return await dead.letter(seq, with_body=with_body)


@post("/v1/dead/{seq:int}/replay", status_code=202, opt=ADMINS_ONLY)
async def replay_dead(seq: FromPath[int], dead: NamedDependency[DeadBook]) -> Replayed:
    """Run a dead letter again, as a new job."""
    return await dead.replay(seq)


@delete("/v1/dead/{seq:int}", status_code=200, opt=ADMINS_ONLY)
async def remove_dead(seq: FromPath[int], dead: NamedDependency[DeadBook]) -> Purged:
    """Delete one dead letter."""
    return await dead.remove(seq)


@delete("/v1/dead", status_code=200, opt=ADMINS_ONLY)
async def purge_dead(
    dead: NamedDependency[DeadBook], model: Model = None, older_than_s: OlderThan = None
) -> Purged:
    """Delete the dead letters of a model, or those that are old enough."""
    return await dead.purge(model, older_than_s=older_than_s)
