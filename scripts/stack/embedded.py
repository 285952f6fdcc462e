"""The embedded stack as children: NATS, Valkey, scheduler, workers and gateway on one machine.

The services run as they do in production; only the addresses in their environment differ.
"""

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scripts.stack.folder import (
    SIGNING_KEY,
    VALKEY_PASSWORD,
    DataFolder,
    Endpoints,
    admin_api_keys,
    api_keys,
)
from scripts.stack.policy import stream_limits
from scripts.stack.ports import LOOPBACK, Wanted
from scripts.stack.ready import http_ready, valkey_ready
from scripts.stack.servers import (
    NATS_PASSWORDS,
    NatsOptions,
    nats_command,
    nats_environment,
    valkey_command,
)
from scripts.stack.spec import ChildSpec

GATEWAY, NATS, MONITORING, VALKEY, SCHEDULER = "gateway", "nats", "nats monitoring", "valkey", "scheduler"
_USUAL = {GATEWAY: 8000, NATS: 4222, MONITORING: 8222, VALKEY: 6379, SCHEDULER: 9102}
_FIRST_WORKER_PORT = 9101
_ANY_ADDRESS = {"0.0.0.0": LOOPBACK, "::": "::1", "": LOOPBACK}  # noqa: S104 - where a client finds them


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What the user asks of `up`."""

    data: Path
    host: str = LOOPBACK  # of the gateway; everything else listens on loopback
    port: int | None = None  # of the gateway; None takes the usual one, or another if that is taken
    workers: int = 1
    gateway_processes: int = 1
    model_repository: Path | None = None  # None: `models` in the data folder
    usual_ports: bool = True  # False: any free ports


@dataclass(frozen=True, slots=True)
class Plan:
    """All that the children's settings follow from."""

    options: UpOptions
    folder: DataFolder
    secrets: Mapping[str, str]
    ports: Mapping[str, int]
    outer: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    @property
    def models(self) -> Path:
        """The model repository."""
        return (self.options.model_repository or self.folder.models).absolute()

    @property
    def gateway_url(self) -> str:
        """Where clients on this machine reach the gateway."""
        host = _ANY_ADDRESS.get(self.options.host, self.options.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.ports[GATEWAY]}"

    @property
    def endpoints(self) -> Endpoints:
        """What other commands are told."""
        return Endpoints(
            gateway=self.gateway_url,
            nats=f"nats://{LOOPBACK}:{self.ports[NATS]}",
            redis=f"redis://{LOOPBACK}:{self.ports[VALKEY]}/0",
            nats_monitoring=f"http://{LOOPBACK}:{self.ports[MONITORING]}",
            models=str(self.models),
            pid=os.getpid(),
        )


def worker_names(options: UpOptions) -> list[str]:
    """Name the workers: `worker`, or `worker-1` and so on if there are several."""
    if options.workers == 1:
        return ["worker"]
    return [f"worker-{i + 1}" for i in range(options.workers)]


def wanted_ports(options: UpOptions) -> dict[str, Wanted]:
    """List the ports that people are used to, one for each that `up` needs."""
    usual = {**_USUAL, **dict.fromkeys(worker_names(options), _FIRST_WORKER_PORT)}
    if not options.usual_ports:
        usual = dict.fromkeys(usual, 0)
    wanted = {name: Wanted(port) for name, port in usual.items()}
    wanted[GATEWAY] = Wanted(usual[GATEWAY], options.host)
    if options.port is not None:
        wanted[GATEWAY] = Wanted(options.port, options.host, exact=True)
    return wanted


def embedded_specs(plan: Plan) -> list[ChildSpec]:
    """Give every child. Raises MissingProgram if a server is not installed."""
    workers = [_worker(plan, name) for name in worker_names(plan.options)]
    return [_nats(plan), _valkey(plan), _scheduler(plan), *workers, _gateway(plan)]


def _nats(plan: Plan) -> ChildSpec:
    limits = _stream_settings(plan)
    options = NatsOptions(
        name="model-serving",
        port=plan.ports[NATS],
        monitoring_port=plan.ports[MONITORING],
        store=plan.folder.nats,
        passwords={who: plan.secrets[f"NATS_{who.upper()}_PASSWORD"] for who in NATS_PASSWORDS},
        max_file_store_bytes=sum(int(limit) for limit in limits.values()) + (64 << 30),
    )
    return ChildSpec(
        name="nats",
        role="nats",
        command=nats_command(),
        environment={**plan.outer, **nats_environment(options)},
        stage=0,
        is_ready=http_ready(f"{plan.endpoints.nats_monitoring}/healthz"),
        where=plan.endpoints.nats,
    )


def _valkey(plan: Plan) -> ChildSpec:
    password = plan.secrets[VALKEY_PASSWORD]
    return ChildSpec(
        name="valkey",
        role="valkey",
        command=valkey_command(plan.folder.valkey, port=plan.ports[VALKEY], password=password),
        environment=plan.outer,
        stage=0,
        is_ready=valkey_ready(plan.ports[VALKEY], password),
        where=plan.endpoints.redis,
    )


def _scheduler(plan: Plan) -> ChildSpec:
    port = plan.ports[SCHEDULER]
    return ChildSpec(
        name="scheduler",
        role="scheduler",
        command=_service("scheduler"),
        environment={
            **_common(plan, "scheduler"),
            **_stream_settings(plan),
            "SCHEDULER_METRICS_PORT": str(port),
        },
        stage=1,
        is_ready=http_ready(f"http://{LOOPBACK}:{port}/health/ready"),
    )


def _worker(plan: Plan, name: str) -> ChildSpec:
    port = plan.ports[name]
    return ChildSpec(
        name=name,
        role="worker",
        command=_service("workers"),
        environment={**_common(plan, "worker"), "WORKER_METRICS_PORT": str(port)},
        stage=1,
        is_ready=http_ready(f"http://{LOOPBACK}:{port}/health/ready"),
        ready_within_s=300,  # loading models takes what it takes
        stop_grace_s=30,
    )


def _gateway(plan: Plan) -> ChildSpec:
    return ChildSpec(
        name="gateway",
        role="gateway",
        command=_service("gateway"),
        environment={
            **_common(plan, "gateway"),
            "GATEWAY_HOST": plan.options.host,
            "GATEWAY_PORT": str(plan.ports[GATEWAY]),
            "GATEWAY_PROCESSES": str(plan.options.gateway_processes),
            "API_KEYS": api_keys(plan.secrets),
            "ADMIN_API_KEYS": admin_api_keys(plan.secrets),
        },
        stage=1,
        is_ready=http_ready(f"{plan.gateway_url}/health/ready"),
        stop_grace_s=30,
        where=plan.gateway_url,
    )


def _common(plan: Plan, role: str) -> dict[str, str]:
    return {
        **plan.outer,
        "NATS_URL": plan.endpoints.nats,
        "NATS_USER": role,
        "NATS_PASSWORD": plan.secrets[f"NATS_{role.upper()}_PASSWORD"],
        "REDIS_URL": f"redis://:{plan.secrets[VALKEY_PASSWORD]}@{LOOPBACK}:{plan.ports[VALKEY]}/0",
        "BLOB_STORE": f"file://{plan.folder.blobs}",
        SIGNING_KEY: plan.secrets[SIGNING_KEY],
        "MODEL_REPOSITORY": str(plan.models),
        "PYTHONUNBUFFERED": "1",
        # A folder called `workers` where the user stands must not take the place of ours.
        "PYTHONSAFEPATH": "1",
    }


def _service(module: str) -> Sequence[str]:
    return (sys.executable, "-m", module)


def _stream_settings(plan: Plan) -> dict[str, str]:
    stored = sum(file.stat().st_size for file in plan.folder.nats.rglob("*") if file.is_file())
    limits = stream_limits(shutil.disk_usage(plan.folder.path).free + stored)
    return {name: plan.outer.get(name, str(limit)) for name, limit in limits.items()}
