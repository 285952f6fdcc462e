"""A busy model: EfficientNet behind the queue, under 64 callers, against its engine alone.

The engine runs on one thread in both. Alone it is measured at several batch sizes and the best counts;
behind the queue the same thread has company: decoding, batching, NATS, the gateway and the callers
share the other core. Turns alternate, and the median of their ratios is reported.
"""

import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image

from benchmarks.load import Load, run_load
from benchmarks.stack import Stack

MODEL = "efficientnet-lite0"
CALLERS = 64
BATCHES = ("1", "2", "4", "8")
PHOTO_EDGE = 256


@dataclass(frozen=True, slots=True)
class Saturation:
    """Items/s in turns: (behind the queue, engine alone by batch size)."""

    turns: list[tuple[float, dict[str, float]]]
    unexpected: int

    @property
    def best_batch(self) -> str:
        """The batch size at which the engine alone is fastest, by the median of the turns."""
        return max(BATCHES, key=lambda batch: statistics.median(bare[batch] for _, bare in self.turns))

    @property
    def ratio(self) -> float:
        """Items/s behind the queue as a share of the engine's at its best batch; median of the turns."""
        return statistics.median(queued / bare[self.best_batch] for queued, bare in self.turns)


def small_photo(repository: Path) -> bytes:
    """Return the sample photo as a small JPEG, as an application would send it."""
    with Image.open(repository.parent / "samples" / "coffee.png") as photo:
        shrunk = photo.convert("RGB")
        shrunk.thumbnail((PHOTO_EDGE, PHOTO_EDGE))
        out = BytesIO()
        shrunk.save(out, "JPEG", quality=90)
        return out.getvalue()


def bare_items_per_s(repository: Path, seconds: float) -> dict[str, float]:
    """Measure the engine alone, in a process of its own, at each batch size."""
    command = [sys.executable, "-m", "benchmarks.bare_engine", str(repository), MODEL, str(seconds), *BATCHES]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return found


async def measure(stack: Stack, repository: Path, *, turns: int, seconds: float) -> Saturation:
    """Measure in turns; while the engine runs alone, the stack is idle."""
    host, port = stack.host_and_port
    headers = {**stack.auth, "Content-Type": "image/jpeg"}
    load = Load(host, port, f"/v1/predict?model={MODEL}", small_photo(repository), headers)
    await run_load(load, connections=8, seconds=2)
    found, unexpected = [], 0
    for _ in range(turns):
        bare = bare_items_per_s(repository, seconds / len(BATCHES))
        queued = await run_load(load, connections=CALLERS, seconds=seconds)
        unexpected += queued.unexpected
        found.append((queued.per_s, bare))
    return Saturation(found, unexpected)
