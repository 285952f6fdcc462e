"""How the tests run commands, and models that the fake gateway has."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

TEXT_MODEL = {
    "name": "embedder",
    "version": 1,
    "format": "onnx",
    "description": "",
    "ready": True,
    "workers": 2,
    "max_batch_size": 8,
    "signature": {
        "inputs": [{"name": "text", "dtype": "bytes", "shape": [-1]}],
        "outputs": [{"name": "embedding", "dtype": "float32", "shape": [-1, 384]}],
    },
}
NUMBER_MODEL = {
    **TEXT_MODEL,
    "name": "adder",
    "signature": {"inputs": [{"name": "x", "dtype": "float32", "shape": [-1, 2]}], "outputs": []},
}


@dataclass(frozen=True)
class Ended:
    """How a command ended and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Command = Callable[..., Ended]
