"""`--check`: whether the settings hold and the servers behind them answer."""

import asyncio
import sys
from collections.abc import Awaitable, Callable

from gateway.settings import Settings
from infra.connections.clients import Role, open_nats, open_redis
from infra.connections.placement import Placement

DEADLINE_S = 5.0


async def check(settings: Settings) -> int:
    """Print a line for each thing that a gateway needs. Returns the exit code: 0 if all is well."""
    sys.stdout.write("settings: ok\n")
    nats_ok = await _try("nats", lambda: _reach_nats(settings))
    redis_ok = await _try("redis", lambda: _reach_redis(settings))
    return 0 if nats_ok and redis_ok else 1


async def _try(name: str, reach: Callable[[], Awaitable[str]]) -> bool:
    try:
        async with asyncio.timeout(DEADLINE_S):
            found = await reach()
    except TimeoutError:
        sys.stdout.write(f"{name}: no answer within {DEADLINE_S:g} s\n")
        return False
    except Exception as error:
        sys.stdout.write(f"{name}: {type(error).__name__}: {error}\n")
        return False
    sys.stdout.write(f"{name}: ok, {found}\n")
    return True


async def _reach_nats(settings: Settings) -> str:
    async with open_nats(settings.nats, Role.GATEWAY) as connection:
        return f"max_payload {connection.max_payload_bytes} bytes"


async def _reach_redis(settings: Settings) -> str:
    async with open_redis(settings.redis) as client:
        return f"{len(await Placement(client).cards())} models"
