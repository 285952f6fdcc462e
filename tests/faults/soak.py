"""Mixed load under random faults for as long as asked, and a ledger of what was promised.

usage: python -m tests.faults.soak [--minutes 10] [--seed 1]

Every job that was answered with 202 goes into the ledger with the outcome each of its rows must have. In the
end nothing may be lost, stored twice, wrong, changed after it was stored, or started more often than
allowed. The same seed gives the same faults in the same order.
"""

import argparse
import json
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import httpx

from tests.faults.chaos_model import ANSWER, KILL, RAISE, SLEEP
from tests.faults.stand import ACK_WAIT_S, FINAL, MAX_STARTS, Client, Service, System
from tests.servers import NatsServer, ValkeyServer, wait_until

ROWS = 60
PAUSE_S = 0.5
FAULT_EVERY_S = 6.0
SETTLE_S = 240.0
WORKERS = 3

Row = tuple[int, int, float]
EXPECTED = {ANSWER: "succeeded", SLEEP: "succeeded", RAISE: "failed", KILL: "failed"}


@dataclass(slots=True)
class Ledger:
    """What was accepted, and what became of it."""

    jobs: dict[str, list[Row]] = field(default_factory=dict)
    refused: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    waited: Counter[int] = field(default_factory=Counter)  # status of callers who waited; 0: no answer
    lost: int = 0
    duplicate: int = 0
    wrong: int = 0
    unstable: int = 0
    over: int = 0

    @property
    def clean(self) -> bool:
        """Say whether every promise was kept."""
        return not (self.lost or self.duplicate or self.wrong or self.unstable or self.over)

    def table(self, minutes: float, seed: int) -> str:
        """Lay the ledger out for people."""
        faults = ", ".join(f"{name} x {times}" for name, times in sorted(self.faults.items()))
        waited = ", ".join(
            f"{status or 'no answer'}: {times}" for status, times in sorted(self.waited.items())
        )
        rows = sum(len(rows) for rows in self.jobs.values())
        lines = [
            f"{minutes:g} minutes, seed {seed}: {len(self.jobs)} jobs of {rows} requests accepted,",
            f"{self.refused} submissions refused or unknown; callers who waited got {waited}.",
            f"Faults: {faults}.",
            "",
            "| lost | duplicate | wrong | unstable | over |",
            "|---|---|---|---|---|",
            f"| {self.lost} | {self.duplicate} | {self.wrong} | {self.unstable} | {self.over} |",
        ]
        return "\n".join(lines)


class Soak:
    """One run. Threads submit, wait and supervise; the main thread breaks things."""

    def __init__(self, system: System, seed: int) -> None:
        self._system = system
        self._random = random.Random(seed)
        self._numbers = count(1)
        self._stop = threading.Event()
        self._workers: list[Service] = []
        self._scheduler = system.services[0]
        self._lock = threading.Lock()
        self.ledger = Ledger()

    def run(self, minutes: float) -> Ledger:
        """Load and break for `minutes`, let everything settle, and audit."""
        self._workers = [self._system.start("workers") for _ in range(WORKERS)]
        client = self._system.start_gateway()
        with client.http:
            self._load_and_break(client, minutes)
        return self.ledger

    def _load_and_break(self, client: Client, minutes: float) -> None:
        client.until_served()
        threads = [
            threading.Thread(target=work, args=(client.url,), name=work.__name__)
            for work in (self._submit, self._wait, self._supervise)
        ]
        for thread in threads:
            thread.start()
        self._break_things(client, time.monotonic() + minutes * 60)
        self._stop.set()
        for thread in threads:
            thread.join()
        self._settle(client)

    def _submit(self, url: str) -> None:
        client = Client(url, self._scheduler)
        choose = random.Random(1)
        with client.http:
            while not self._stop.wait(PAUSE_S):
                rows = [self._row(choose) for _ in range(ROWS)]
                try:
                    self.ledger.jobs[client.submit(rows)] = rows
                except (AssertionError, httpx.HTTPError):
                    self.ledger.refused += 1  # not accepted, or nobody knows: no promise was made

    def _row(self, choose: random.Random) -> Row:
        action = choose.choices((ANSWER, SLEEP, RAISE, KILL), weights=(900, 90, 9, 0.4))[0]
        return next(self._numbers), action, 0.02

    def _wait(self, url: str) -> None:
        client = Client(url, self._scheduler)
        with client.http:
            while not self._stop.wait(0.05):
                number = next(self._numbers)
                try:
                    answer = client.predict([[number, ANSWER, 0]], timeout_ms=15_000)
                except httpx.HTTPError:
                    self.ledger.waited[0] += 1
                    continue
                self.ledger.waited[answer.status_code] += 1
                if answer.status_code == 200 and answer.json()["outputs"][0]["data"][0][0] != number:
                    self.ledger.wrong += 1

    def _supervise(self, _: str) -> None:
        """Start anew what ended, as a supervisor does, until everything has settled."""
        while not self._stop.wait(0.2):
            self._restart_what_ended()

    def _restart_what_ended(self) -> None:
        with self._lock:
            for i, worker in enumerate(self._workers):
                if worker.process.poll() is not None:
                    self._workers[i] = self._system.start("workers")
            if self._scheduler.process.poll() is not None:
                self._scheduler = self._system.start("scheduler")

    def _break_things(self, client: Client, until_s: float) -> None:
        faults: Sequence[Callable[[], None]] = (
            self._kill_worker,
            self._freeze_worker,
            self._stop_worker,
            self._restart_broker,
            self._kill_broker,
            self._kill_scheduler,
            self._restart_placement,
        )
        while time.monotonic() < until_s:
            time.sleep(FAULT_EVERY_S)
            fault = self._random.choice(faults)
            self.ledger.faults[fault.__name__.strip("_").replace("_", " ")] += 1
            fault()
            client.until_served(timeout_s=60)

    def _any_worker(self) -> Service:
        with self._lock:
            return self._random.choice(self._workers)

    def _kill_worker(self) -> None:
        self._any_worker().process.kill()

    def _stop_worker(self) -> None:
        self._any_worker().process.terminate()

    def _freeze_worker(self) -> None:
        worker = self._any_worker()
        worker.signal(signal.SIGSTOP)
        time.sleep(3 * ACK_WAIT_S)
        worker.signal(signal.SIGCONT)

    def _restart_broker(self) -> None:
        self._system.nats.restart()

    def _kill_broker(self) -> None:
        self._system.nats.restart(kill=True)

    def _kill_scheduler(self) -> None:
        self._scheduler.process.kill()

    def _restart_placement(self) -> None:
        self._system.valkey.restart(kill=True)

    def _settle(self, client: Client) -> None:
        pending = set(self.ledger.jobs)

        def all_ended() -> bool:
            self._restart_what_ended()
            pending.difference_update(
                [job for job in list(pending)[:50] if client.status(job).get("state") in FINAL]
            )
            return not pending

        with suppress(AssertionError):
            wait_until(all_ended, "every job to end", timeout_s=SETTLE_S)
        starts = self._system.starts()
        self.ledger.over += sum(times > MAX_STARTS for times in starts.values())
        for job, rows in self.ledger.jobs.items():
            self._audit(client, job, rows)

    def _audit(self, client: Client, job: str, rows: Sequence[Row]) -> None:
        url, headers = f"/v1/jobs/{job}/results", {"Accept": "application/jsonl"}
        text = client.http.get(url, headers=headers).text
        if client.http.get(url, headers=headers).text != text:
            self.ledger.unstable += 1
        records = [json.loads(line) for line in text.splitlines()]
        by_item = Counter(record["item"] for record in records)
        self.ledger.duplicate += sum(times - 1 for times in by_item.values())
        self.ledger.lost += sum(i not in by_item for i in range(len(rows)))
        for record in records:
            number, action, _ = rows[record["item"]]
            right = record["state"] == EXPECTED[action]
            if right and record["state"] == "succeeded":
                right = record["outputs"][0]["data"][0][0] == number
            self.ledger.wrong += not right


def main() -> int:
    """Run, print the table, and exit with 1 if a promise was broken."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        ledger = run(Path(scratch), minutes=options.minutes, seed=options.seed)
    print(ledger.table(options.minutes, options.seed))
    return 0 if ledger.clean else 1


def run(folder: Path, *, minutes: float, seed: int) -> Ledger:
    """Run one soak on servers of its own."""
    with NatsServer(folder / "nats") as nats, ValkeyServer(folder / "valkey") as valkey:
        system = System(folder, nats, valkey)
        system.install_model(max_batch_size=16)
        system.start("scheduler")
        try:
            return Soak(system, seed).run(minutes)
        finally:
            system.stop()


if __name__ == "__main__":
    sys.exit(main())
