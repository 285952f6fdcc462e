"""The `--check` of every service: are the settings right, and do the servers behind them answer."""

import asyncio
import sys

import redis.exceptions
from pydantic import ValidationError

from infra.connections.clients import Role, open_nats, open_redis
from infra.connections.settings import NatsSettings, RedisSettings

CHECK_TIMEOUT_S = 5.0


async def check_connections(nats: NatsSettings, redis_settings: RedisSettings, role: Role) -> int:
    """Try NATS and Redis, say a line each on stdout, and return an exit status."""
    failed = 0
    for name, attempt in (("nats", _try_nats(nats, role)), ("redis", _try_redis(redis_settings))):
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                await attempt
        except (OSError, TimeoutError, redis.exceptions.RedisError) as error:
            failed = 1
            sys.stdout.write(f"{name}: failed ({type(error).__name__})\n")
        else:
            sys.stdout.write(f"{name}: ok\n")
    return failed


async def _try_nats(settings: NatsSettings, role: Role) -> None:
    async with open_nats(settings, role) as connection:
        await connection.client.flush()


async def _try_redis(settings: RedisSettings) -> None:
    async with open_redis(settings) as client:
        await client.ping()


def explain_settings_error(error: ValidationError) -> str:
    """Name each setting that is wrong and what was expected, without its value, which may be a secret."""
    found = error.errors(include_input=False, include_url=False, include_context=False)
    lines = [f"  {'.'.join(map(str, one['loc'])) or 'settings'}: {one['msg']}" for one in found]
    return "\n".join([f"{error.title}:", *lines])
