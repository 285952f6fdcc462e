"""Every engine, with one model that all of them can hold: `y = 2x + 1` for float32 `[-1, 4]`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.models import affine_model

_PYTHON_MODEL = """\
class Model:
    def __init__(self, folder, parameters):
        pass

    def run(self, inputs):
        x = inputs["x"].reshape(-1, 4)
        x *= 2
        x += 1
        return {"y": x}
"""


@dataclass(frozen=True, slots=True)
class EngineCase:
    """An engine, and how to write the model for it. `file` is the file that it loads."""

    engine: str
    file: str
    config: dict[str, Any]
    write: Callable[[Path], object]


def _write_onnx(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(affine_model())


def _write_python(folder: Path) -> None:
    (folder / "model.py").write_text(_PYTHON_MODEL)


_DECLARED = {
    "inputs": [{"name": "x", "dtype": "float32", "shape": [-1, 4]}],
    "outputs": [{"name": "y", "dtype": "float32", "shape": [-1, 4]}],
}

CASES = (
    EngineCase("onnx", "model.onnx", {}, _write_onnx),
    EngineCase("python", "model.py", _DECLARED, _write_python),
)
