"""Serves HTTP until told to stop: `python -m gateway`, or only checks what it would need: `--check`."""

import argparse
import asyncio
import os
import signal
import sys
import tempfile
from typing import NoReturn

import structlog
import uvicorn
from pydantic import ValidationError

from gateway.app import create_app
from gateway.check import check
from gateway.front import Front
from gateway.settings import MissingSigningKey, Settings, explain
from infra.connections.telemetry import configure_logging

log = structlog.get_logger()

KEEP_ALIVE_S = 75  # longer than a load balancer's 60 s, so that it closes first
WRONG_SETTINGS = 2


def main() -> None:
    """Run the gateway. Exits with 0 after SIGTERM, 2 if a setting is wrong, 3 if it can not start."""
    parser = argparse.ArgumentParser(
        prog="python -m gateway", description="The HTTP gateway of model-serving."
    )
    parser.add_argument("--check", action="store_true", help="check settings and connections, then exit")
    only_check = parser.parse_args().check
    settings = _read_settings()
    configure_logging(settings.log, service="gateway")
    if only_check:
        sys.exit(asyncio.run(check(settings)))
    signal.signal(signal.SIGTERM, _stop)  # uvicorn raises the signal again once it has drained
    with tempfile.TemporaryDirectory(prefix="model-serving-metrics-") as folder:
        if settings.gateway.processes > 1:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = (
                folder  # read where prometheus_client is imported: in each process
            )
        _serve(settings)


def build() -> Front:
    """Build the app in a process that uvicorn started."""
    settings = _read_settings()
    configure_logging(settings.log, service="gateway")
    return create_app(settings)


def _serve(settings: Settings) -> None:
    uvicorn.run(
        "gateway.__main__:build",
        factory=True,
        host=settings.gateway.host,
        port=settings.gateway.port,
        workers=settings.gateway.processes,
        loop="uvloop",
        http="httptools",
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,  # nothing here depends on who a proxy says the caller is
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(settings.gateway.drain_grace_s),
    )


def _read_settings() -> Settings:
    try:
        return Settings()
    except ValidationError as error:
        sys.stderr.write("".join(f"gateway: {line}\n" for line in explain(error)))
        sys.exit(WRONG_SETTINGS)
    except MissingSigningKey as error:
        sys.stderr.write(f"gateway: {error}\n")
        sys.exit(WRONG_SETTINGS)


def _stop(*_: object) -> NoReturn:
    raise SystemExit(0)


if __name__ == "__main__":
    main()
