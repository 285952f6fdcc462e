"""Model placement in Redis: which models exist, and which workers serve them.

Redis is a hint and never on the path of a request: every reader keeps what it last saw.
"""

from collections.abc import Sequence
from typing import TypeVar

import redis.asyncio
import redis.exceptions
from pydantic import BaseModel, ValidationError

from schemas.errors import Unavailable
from schemas.models import ModelCard
from schemas.placement import (
    BACKLOG_KEY,
    BACKLOG_TTL_S,
    CARDS_KEY,
    WORKER_KEY_PREFIX,
    WORKER_TTL_S,
    BacklogReport,
    BacklogReports,
    WorkerStatus,
)

F = TypeVar("F", bound=BaseModel)


class Placement:
    """Reads and writes placement. Every call raises Unavailable if Redis does not answer in time."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._client = client

    async def announce(self, status: WorkerStatus, cards: list[ModelCard]) -> None:
        """Say that a worker lives and what it serves; valid for WORKER_TTL_S."""
        try:
            async with self._client.pipeline(transaction=False) as pipe:
                pipe.set(
                    WORKER_KEY_PREFIX + status.worker, status.model_dump_json(), px=int(WORKER_TTL_S * 1000)
                )
                if cards:
                    pipe.hset(CARDS_KEY, mapping={card.name: card.model_dump_json() for card in cards})
                await pipe.execute()
        except (redis.exceptions.RedisError, OSError, TimeoutError) as error:
            raise Unavailable("placement can not be written") from error

    async def leave(self, worker: str) -> None:
        """Take a worker's heartbeat away at once, in place of waiting for it to lapse."""
        try:
            await self._client.delete(WORKER_KEY_PREFIX + worker)
        except (redis.exceptions.RedisError, OSError, TimeoutError) as error:
            raise Unavailable("placement can not be written") from error

    async def cards(self) -> dict[str, ModelCard]:
        """Return every known model by name; cards of a form we can not read are left out."""
        try:
            raw = await self._client.hgetall(CARDS_KEY)
        except (redis.exceptions.RedisError, OSError, TimeoutError) as error:
            raise Unavailable("placement can not be read") from error
        cards = (_read(ModelCard, value) for value in raw.values())
        return {card.name: card for card in cards if card is not None}

    async def report_backlog(self, reports: Sequence[BacklogReport]) -> None:
        """Say how far behind every model and lane is; valid for BACKLOG_TTL_S."""
        text = BacklogReports(reports=tuple(reports)).model_dump_json()
        try:
            await self._client.set(BACKLOG_KEY, text, px=int(BACKLOG_TTL_S * 1000))
        except (redis.exceptions.RedisError, OSError, TimeoutError) as error:
            raise Unavailable("placement can not be written") from error

    async def backlog(self) -> Sequence[BacklogReport]:
        """Return the newest reports, or none if there are none that count any more."""
        try:
            raw = await self._client.get(BACKLOG_KEY)
        except (redis.exceptions.RedisError, OSError, TimeoutError) as error:
            raise Unavailable("placement can not be read") from error
        found = None if raw is None else _read(BacklogReports, raw)
        return () if found is None else found.reports

    async def workers(self) -> list[WorkerStatus]:
        """Return the workers whose heartbeat has not lapsed; those we can not read are left out."""
        try:
            keys = [key async for key in self._client.scan_iter(match=f"{WORKER_KEY_PREFIX}*", count=500)]
            values = await self._client.mget(keys) if keys else []
        except (redis.exceptions.RedisError, OSError, TimeoutError) as error:
            raise Unavailable("placement can not be read") from error
        statuses = (_read(WorkerStatus, value) for value in values if value is not None)
        return [status for status in statuses if status is not None]


def _read(form: type[F], raw: bytes | str) -> F | None:
    try:
        return form.model_validate_json(raw)
    except ValidationError:
        return None
