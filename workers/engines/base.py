"""What an engine is: the few calls through which a worker runs any kind of model.

Engines are found by name through the `model_serving.engines` entry-point group, and import their
library only when they load a model. One conformance suite, `tests/conformance/`, holds for all of them.
"""

import re
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol

import numpy as np

from schemas.errors import ModelFailed, ModelUnavailable, ResourceExhausted
from schemas.models import ModelConfig, Signature
from schemas.tensors import Array

ENGINE_GROUP = "model_serving.engines"

_OUT_OF_MEMORY = re.compile(r"failed to allocate|bad_alloc|bad allocation|out of memory", re.IGNORECASE)
_DEVICE_FAULT = re.compile(r"\b(?:CUDA|CUDNN|CUBLAS) (?:failure|error)", re.IGNORECASE)

Arrays = Mapping[str, Array]


class DeviceLost(Exception):
    """The device or the engine's process is broken for good; this process must not answer again."""


class BatchModel(Protocol):
    """A loaded model that runs whole batches. Used by one thread at a time."""

    def signature(self) -> Signature:
        """Return what `run` takes and gives.

        The first dimension of each is the batch, -1, or 1 for a model that runs one item at a time.
        """

    def run(self, batch: Sequence[Arrays]) -> list[Arrays]:
        """Return one result per request, in order. Blocks; never called on the event loop.

        Requests share every dimension but the first: `x` is `[n, 3, 224, 224]` with its own `n` in each.
        Raises ModelFailed if the model raises on the batch, ResourceExhausted if it does not fit in
        memory, and DeviceLost if the engine can not be used again.
        """

    def memory_bytes(self) -> int:
        """Estimate what the model holds on its device, in bytes."""

    def close(self) -> None:
        """Free everything. Calling it twice does nothing."""


class BatchEngine(Protocol):
    """Loads models of one format."""

    def load(self, folder: Path, config: ModelConfig, *, device: str) -> BatchModel:
        """Load the model in `folder`. Blocks. Raises ModelUnavailable with the reason."""


def find_engine(name: str) -> BatchEngine:
    """Return the engine called `name`. Raises ModelUnavailable, also if its library is missing."""
    found = entry_points(group=ENGINE_GROUP, name=name)
    if not found:
        known = ", ".join(sorted(entry_points(group=ENGINE_GROUP).names))
        raise ModelUnavailable(f"there is no engine {name!r}; known are {known}", field="format")
    try:
        engine: BatchEngine = next(iter(found)).load()()
    except ImportError as error:
        raise ModelUnavailable(f"engine {name!r} needs a library that is missing: {error.name}") from error
    return engine


def stack(batch: Sequence[Arrays]) -> dict[str, Array]:
    """Join the requests of a batch along the first dimension."""
    if len(batch) == 1:
        return dict(batch[0])
    return {name: np.concatenate([request[name] for request in batch]) for name in batch[0]}


def batch_rows(request: Arrays) -> int:
    """Count the items of one request: the first dimension that its inputs share."""
    return int(next(iter(request.values())).shape[0])


def split(outputs: Arrays, batch: Sequence[Arrays]) -> list[Arrays]:
    """Cut stacked outputs back into one result per request.

    Raises ModelFailed if an output has not as many rows as the batch, for then nobody knows whose is whose.
    """
    counts = [batch_rows(request) for request in batch]
    for name, output in outputs.items():
        if output.ndim == 0 or output.shape[0] != sum(counts):
            raise ModelFailed(
                f"output {name!r} has shape {list(output.shape)} for a batch of {sum(counts)} items"
            )
    if len(counts) == 1:
        return [outputs]
    bounds = np.cumsum(counts)[:-1]
    cut = {name: np.split(output, bounds) for name, output in outputs.items()}
    return [{name: parts[i] for name, parts in cut.items()} for i in range(len(counts))]


def run_error(error: Exception, *, reason: str) -> Exception:
    """Say by its text what a library's exception during `run` means; `reason` is what callers may read.

    After a failed allocation the device still works (ResourceExhausted), after other faults it does not.
    """
    text = str(error)
    if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(text):
        return ResourceExhausted(f"this input needs more memory than there is: {reason}")
    if _DEVICE_FAULT.search(text):
        return DeviceLost(reason)
    return ModelFailed(f"the model raised: {reason}")
