"""What `model-serving check` does: show the shared settings, and try the servers behind them."""

import asyncio
import sys

from pydantic import ValidationError
from pydantic_settings import BaseSettings

from infra.connections.checks import check_connections, explain_settings_error
from infra.connections.clients import Role
from infra.connections.settings import BlobSettings, LogSettings, NatsSettings, RedisSettings
from scripts.cli.exits import Exit, Stop


def check_all() -> int:
    """Print settings, secrets hidden, then a line for each server. Returns 0 if both answer, else 1.

    Raises Stop if a setting is wrong.
    """
    try:
        nats, redis, others = NatsSettings(), RedisSettings(), (BlobSettings(), LogSettings())
    except ValidationError as error:
        raise Stop(Exit.REFUSED, explain_settings_error(error)) from error
    for settings in (nats, redis, *others):
        _print_settings(settings)
    return asyncio.run(check_connections(nats, redis, _role_of(nats.user)))


def _role_of(user: str | None) -> Role:
    return Role(user) if user in set(Role) else Role.MONITOR


def _print_settings(settings: BaseSettings) -> None:
    prefix = settings.model_config.get("env_prefix", "")
    for name, value in settings.model_dump(mode="json").items():
        if value is not None:
            sys.stdout.write(f"{prefix}{name.upper()}={value}\n")
    sys.stdout.flush()
