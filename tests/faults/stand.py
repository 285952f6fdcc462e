"""The system as real processes that tests may kill, freeze and restart, and a ledger of what was promised."""

import json
import os
import secrets
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

from scripts.stack.orphans import die_with_parent
from tests.faults.chaos_model import ANSWER
from tests.servers import HOST, NatsServer, ValkeyServer, free_port, wait_until

MODEL = "chaos"
KEY = secrets.token_hex(16)
MAX_STARTS = 3
ACK_WAIT_S = 2.0
FINAL = ("succeeded", "failed", "cancelled", "expired")


@dataclass(slots=True)
class Service:
    """One of our processes."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """End it as a crash would, and wait for that."""
        self.process.kill()
        self.process.wait(10)

    def stop(self) -> int:
        """End it as an operator would; returns its exit status."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


@dataclass(slots=True)
class System:
    """Servers and services. `max_batch_size` is the chaos model's."""

    folder: Path
    nats: NatsServer
    valkey: ValkeyServer
    environment: dict[str, str] = field(default_factory=dict)
    services: list[Service] = field(default_factory=list)

    @property
    def starts_file(self) -> Path:
        """Where the chaos model notes its starts."""
        return self.folder / "starts"

    def starts(self) -> Counter[int]:
        """How often each row was started, by the model's own word."""
        if not self.starts_file.exists():
            return Counter()
        return Counter(int(line) for line in self.starts_file.read_text().splitlines())

    def install_model(self, *, max_batch_size: int = 64) -> None:
        """Write the chaos model into the repository."""
        folder = self.folder / "models" / MODEL / "1"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.py").write_text((Path(__file__).parent / "chaos_model.py").read_text())
        tensor = {"dtype": "float64", "shape": [-1, 3]}
        config = {
            "format": "python",
            "inputs": [{"name": "x", **tensor}],
            "outputs": [{"name": "y", "dtype": "float64", "shape": [-1, 2]}],
            "max_batch_size": max_batch_size,
            "max_execution_s": 20,
            "parameters": {"starts": str(self.starts_file)},
        }
        (folder / "model.yaml").write_text(yaml.safe_dump(config))

    def start(self, module: str, **environment: str) -> Service:
        """Start a service; it waits by itself for what it needs."""
        role = {"workers": "worker"}.get(module, module)
        log = self.folder / f"{module}-{len(self.services)}.log"
        settings = self.nats.settings(role)
        assert settings.password is not None
        everything = {
            **os.environ,
            "NATS_URL": settings.url,
            "NATS_USER": role,
            "NATS_PASSWORD": settings.password.get_secret_value(),
            "REDIS_URL": self.valkey.url,
            "BLOB_STORE": f"file://{self.folder}/blobs",
            "MODEL_REPOSITORY": str(self.folder / "models"),
            "ALLOW_PYTHON_MODELS": "true",
            "API_KEYS": f"public:{KEY}",
            "WORKER_METRICS_PORT": "0",
            "SCHEDULER_METRICS_PORT": "0",
            "STREAM_ACK_WAIT_S": str(ACK_WAIT_S),
            "STREAM_LIVE_ACK_WAIT_S": str(ACK_WAIT_S),
            "STREAM_MAX_DELIVER": str(MAX_STARTS),
            **self.environment,
            **environment,
        }
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", module],
                env=everything,
                stdout=out,
                stderr=out,
                preexec_fn=die_with_parent(),  # noqa: PLW1509 - tests start services from one thread
            )
        service = Service(module, process, log)
        self.services.append(service)
        return service

    def start_gateway(self, **environment: str) -> "Client":
        """Start a gateway and return a client of it; it need not be ready yet."""
        port = free_port()
        service = self.start("gateway", GATEWAY_PORT=str(port), **environment)
        return Client(f"http://{HOST}:{port}", service)

    def stop(self) -> None:
        """End everything that still runs."""
        for service in self.services:
            if service.process.poll() is None:
                service.signal(signal.SIGCONT)
                service.kill()


@dataclass(slots=True)
class Client:
    """Talks to one gateway, and keeps the ledger."""

    url: str
    service: Service
    http: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        headers = {"Authorization": f"Bearer {KEY}"}
        self.http = httpx.Client(base_url=self.url, headers=headers, timeout=40)

    def until_served(self, *, timeout_s: float = 30) -> None:
        """Wait until a request is answered."""
        wait_until(self._answers, "the system to answer", timeout_s=timeout_s)

    def _answers(self) -> bool:
        try:
            return self.predict([[-1, ANSWER, 0]]).status_code == 200
        except httpx.HTTPError:
            return False

    def predict(self, rows: Sequence[Sequence[float]], **options: Any) -> httpx.Response:
        """Ask and wait."""
        return self.http.post("/v1/predict", json={"model": MODEL, "inputs": {"x": rows}, **options})

    def submit(self, rows: Sequence[Sequence[float]], **query: str) -> str:
        """Submit one job with an item for each row; returns its id. Fails if it is not accepted."""
        lines = "\n".join(json.dumps({"inputs": {"x": [list(row)]}}) for row in rows)
        answer = self.http.post(
            "/v1/jobs",
            params={"model": MODEL, **query},
            content=lines.encode(),
            headers={"Content-Type": "application/jsonl"},
        )
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def status(self, job: str) -> dict[str, Any]:
        """The job's status; empty while it can not be had."""
        try:
            answer = self.http.get(f"/v1/jobs/{job}")
        except httpx.HTTPError:
            return {}
        found: dict[str, Any] = answer.json() if answer.status_code == 200 else {}
        return found

    def ended(self, job: str, *, timeout_s: float = 60) -> dict[str, Any]:
        """Wait for the job's end and return its status."""
        wait_until(lambda: self.status(job).get("state") in FINAL, "the job to end", timeout_s=timeout_s)
        return self.status(job)

    def results(self, job: str) -> dict[int, dict[str, Any]]:
        """Every terminal record by item; fails on a second record of one item."""
        answer = self.http.get(f"/v1/jobs/{job}/results", headers={"Accept": "application/jsonl"})
        records = [json.loads(line) for line in answer.text.splitlines()]
        found = {record["item"]: record for record in records}
        assert len(found) == len(records)
        return found


@dataclass(frozen=True, slots=True)
class Audit:
    """What the ledger says of a job whose rows should all succeed: five counts that must be zero."""

    lost: int
    duplicate: int
    wrong: int
    unstable: int
    over: int

    @property
    def clean(self) -> bool:
        """Say whether every promise was kept."""
        return not (self.lost or self.duplicate or self.wrong or self.unstable or self.over)


def audit(client: Client, system: System, job: str, rows: Sequence[Sequence[float]]) -> Audit:
    """Compare what was accepted with what is stored. Call once the job has ended."""
    answer = client.http.get(f"/v1/jobs/{job}/results", headers={"Accept": "application/jsonl"})
    records = [json.loads(line) for line in answer.text.splitlines()]
    by_item = Counter(record["item"] for record in records)
    first = {record["item"]: record for record in records}
    again = client.results(job)
    wrong = sum(not _is_answer_to(first[i], row) for i, row in enumerate(rows) if i in first)
    starts = system.starts()
    return Audit(
        lost=sum(i not in by_item for i in range(len(rows))),
        duplicate=sum(count - 1 for count in by_item.values()),
        wrong=wrong,
        unstable=sum(again.get(item) != record for item, record in first.items()),
        over=sum(starts[int(row[0])] > MAX_STARTS for row in rows),
    )


def _is_answer_to(record: dict[str, Any], row: Sequence[float]) -> bool:
    return bool(record["state"] == "succeeded" and record["outputs"][0]["data"][0][0] == row[0])
