"""The engine alone: a model run in a loop in this process, without queue, gateway or preprocessing.

usage: python -m benchmarks.bare_engine REPOSITORY MODEL SECONDS [BATCH ...]
Prints a JSON object of items/s by batch size.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

from schemas.models import TensorSpec
from schemas.tensors import Array
from workers.engines.base import find_engine
from workers.repository import find_model

_VARIABLE = 1  # stands in for sizes that may vary, other than the batch


def items_per_s(repository: Path, name: str, *, seconds: float, batch: int) -> float:
    """Run zeros of one batch size for `seconds` and return items/s."""
    found = find_model(repository, name)
    model = find_engine(found.config.format).load(found.folder, found.config, device="cpu")
    inputs = {spec.name: _zeros(spec, batch) for spec in model.signature().inputs}
    requests = [{name: array[i : i + 1] for name, array in inputs.items()} for i in range(batch)]
    model.run(requests)
    started_s, runs = time.perf_counter(), 0
    while time.perf_counter() - started_s < seconds:
        model.run(requests)
        runs += 1
    return runs * batch / (time.perf_counter() - started_s)


def _zeros(spec: TensorSpec, batch: int) -> Array:
    shape = (batch, *(size if size > 0 else _VARIABLE for size in spec.shape[1:]))
    return np.zeros(shape, dtype=spec.dtype)


def main(repository: str, name: str, seconds: str, *batches: str) -> None:
    """Measure each batch size."""
    sizes = [int(batch) for batch in batches] or [1]
    found = {size: items_per_s(Path(repository), name, seconds=float(seconds), batch=size) for size in sizes}
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
