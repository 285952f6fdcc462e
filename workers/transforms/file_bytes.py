"""Files: their stripped head and tail become int32, as the Magika content-type models take them."""

from collections.abc import Sequence

import numpy as np

from schemas.models import FileBytesPreprocessing, TensorSpec
from schemas.tensors import BYTES
from workers.engines.base import Arrays


class FileBytes:
    """Reads a block from each end, strips white space off its outer side, and keeps what the model takes.

    A short head is padded after, a short tail before. Any file is accepted, an empty one too.
    """

    public = TensorSpec(name="file", dtype=BYTES, shape=(-1,))

    def __init__(self, config: FileBytesPreprocessing, inputs: Sequence[TensorSpec]) -> None:
        self._config = config
        self._input = inputs[0].name

    def makes(self) -> tuple[TensorSpec, ...]:
        """Return int32 `[-1, head_bytes + tail_bytes]`."""
        width = self._config.head_bytes + self._config.tail_bytes
        return (TensorSpec(name=self._input, dtype="int32", shape=(-1, width)),)

    def run(self, values: Sequence[bytes], *, field: str) -> Arrays:
        """Turn `n` files into `[n, head_bytes + tail_bytes]`."""
        config = self._config
        width = config.head_bytes + config.tail_bytes
        rows = np.full((len(values), width), config.padding, dtype=np.int32)
        for row, value in zip(rows, values, strict=True):
            head = value[: config.block_bytes].lstrip()[: config.head_bytes]
            tail = value[-config.block_bytes :].rstrip()[-config.tail_bytes :]
            row[: len(head)] = np.frombuffer(head, dtype=np.uint8)
            row[width - len(tail) :] = np.frombuffer(tail, dtype=np.uint8)
        return {self._input: rows}
