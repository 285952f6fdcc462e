"""The scheduler and workers as processes, over the tests' own servers."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from scripts.stack.orphans import die_with_parent
from tests.servers import HOST, NatsServer, ValkeyServer, free_port, wait_until

STOP_TIMEOUT_S = 30.0


class Service:
    """One process of ours. It is started by `start`, and its log is kept for the test to read."""

    def __init__(self, module: str, folder: Path, environment: dict[str, str]) -> None:
        self.port = free_port()
        self._module = module
        self._log = folder / f"{module}-{self.port}.log"
        prefix = {"workers": "WORKER", "scheduler": "SCHEDULER"}[module]
        self._environment = {**os.environ, **environment, f"{prefix}_METRICS_PORT": str(self.port)}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        """What it wrote so far."""
        return self._log.read_text()

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def runs(self) -> bool:
        """Say whether it has not ended."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it; does not wait."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", self._module],
                env=self._environment,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent(),  # noqa: PLW1509 - the tests start services from one thread
            )

    def is_ready(self) -> bool:
        """Ask it. Fails if it has ended."""
        assert self.runs, f"{self._module} ended:\n{self.log[-3000:]}"
        try:
            return httpx.get(f"http://{HOST}:{self.port}/health/ready", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False

    def wait_ready(self) -> None:
        """Return when it is ready."""
        wait_until(self.is_ready, f"{self._module} to be ready")

    def metric(self, name: str, **labels: str) -> float:
        """Read one sample, 0 if there is none."""
        text = httpx.get(f"http://{HOST}:{self.port}/metrics", timeout=5).text
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        for line in text.splitlines():
            found = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
            if found and found[1] == name and all(one in (found[2] or "") for one in wanted):
                return float(found[3])
        return 0.0

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def wait(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Return its exit status."""
        assert self._process is not None
        return self._process.wait(timeout_s)

    def stop(self) -> int:
        """Stop it in order and return its exit status; one that does not end is killed."""
        if self._process is None:
            return 0
        if self.runs:
            self._process.terminate()
        try:
            return self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait(STOP_TIMEOUT_S)


@contextmanager
def service(
    module: str, folder: Path, nats: NatsServer, valkey: ValkeyServer, **environment: str
) -> Iterator[Service]:
    """Run a service, and stop it at the end; the test waits for it to be ready."""
    role = {"workers": "worker", "scheduler": "scheduler"}[module]
    where = {
        "NATS_URL": f"nats://{HOST}:{nats.port}",
        "NATS_USER": role,
        "NATS_PASSWORD": nats.passwords[role],
        "REDIS_URL": valkey.url,
        "BLOB_STORE": f"file://{folder}/blobs",
        "MODEL_REPOSITORY": str(folder / "models"),
    }
    one = Service(module, folder, where | environment)
    one.start()
    try:
        yield one
    finally:
        one.stop()
