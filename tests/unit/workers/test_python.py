"""A class of the repository's own as a model: how it is loaded, and what its answers must be."""

import sys
from pathlib import Path

import numpy as np
import pytest

from schemas.errors import InvalidInput, ModelFailed, ModelUnavailable, ResourceExhausted
from schemas.tensors import Array
from tests.models import a_config
from workers.engines.base import DeviceLost
from workers.engines.python import PythonEngine, PythonModel

DECLARED = {
    "inputs": [{"name": "x", "dtype": "float32", "shape": [-1, 2]}],
    "outputs": [{"name": "y", "dtype": "float32", "shape": [-1, 2]}],
}


def load_code(folder: Path, code: str, **config: object) -> PythonModel:
    (folder / "model.py").write_text(code)
    return PythonEngine().load(folder, a_config(format="python", **{**DECLARED, **config}), device="cpu")


def a_model(folder: Path, run: str, **config: object) -> PythonModel:
    """A model whose `run` is the given lines."""
    code = "import numpy as np\nfrom schemas.errors import InvalidInput\n\nclass Model:\n"
    code += "    def __init__(self, folder, parameters):\n        self.parameters = parameters\n"
    code += f"    def run(self, inputs):\n        {run}\n"
    return load_code(folder, code, **config)


def ones() -> dict[str, Array]:
    return {"x": np.ones((1, 2), dtype=np.float32)}


def test_the_class_gets_its_folder_its_parameters_and_the_device(tmp_path: Path) -> None:
    code = """\
import numpy as np
class Scale:
    def __init__(self, folder, parameters):
        assert (folder / "model.py").exists() and parameters["device"] == "cpu"
        self.by = parameters["by"]
    def run(self, inputs):
        return {"y": inputs["x"] * np.float32(self.by)}
"""
    model = load_code(tmp_path, code, parameters={"class": "Scale", "by": 3})
    assert model.run([ones()])[0]["y"].tolist() == [[3, 3]]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("class Model\n", "is not valid Python, at line 1"),
        ("import a_module_that_is_not_there\n", "needs a module that is missing: a_module_that_is_not_there"),
        ("class Other: ...\n", "has no class 'Model'"),
        ("\nraise OSError('secret')\n", "loading failed: OSError at line 2 of model.py"),
    ],
)
def test_code_that_can_not_be_loaded_is_refused_with_the_reason(
    tmp_path: Path, code: str, reason: str
) -> None:
    before = set(sys.modules)
    with pytest.raises(ModelUnavailable) as refused:
        load_code(tmp_path, code)
    assert refused.value.message.endswith(reason)
    assert not [name for name in set(sys.modules) - before if name.startswith("model_serving_user_model")]


def test_inputs_and_outputs_must_be_declared(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="inputs and outputs are required"):
        load_code(tmp_path, "class Model: ...\n", outputs=None)


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        ("return {}", "did not answer output 'y' as an array"),
        ("return None", "did not answer output 'y' as an array"),
        ("return {'y': [[1.0, 2.0]]}", "did not answer output 'y' as an array"),
        ("return {'y': np.ones((1, 2))}", r"declared float32 \[-1, 2\], the model gave float64 \[1, 2\]"),
        ("return {'y': np.ones((1, 3), 'float32')}", r"the model gave float32 \[1, 3\]"),
        ("return {'y': np.ones((2, 2), 'float32')}", "for a batch of 1 items"),
    ],
)
def test_an_answer_that_is_not_what_model_yaml_says_fails(tmp_path: Path, run: str, reason: str) -> None:
    with pytest.raises(ModelFailed, match=reason):
        a_model(tmp_path, run).run([ones()])


def test_an_exception_shows_its_kind_and_line_but_not_its_text(tmp_path: Path) -> None:
    with pytest.raises(ModelFailed) as failed:
        a_model(tmp_path, "raise KeyError('/home/secret')").run([ones()])
    assert failed.value.message == "the model raised: KeyError at line 8 of model.py"


@pytest.mark.parametrize(
    ("raised", "error"),
    [
        ("MemoryError()", ResourceExhausted),
        ("RuntimeError('CUDA out of memory. Tried to allocate 20 GiB')", ResourceExhausted),
        ("RuntimeError('CUDA error: an illegal memory access')", DeviceLost),
        ("InvalidInput('must be positive', field='x')", InvalidInput),
    ],
)
def test_memory_the_device_and_the_callers_own_faults_are_told_apart(
    tmp_path: Path, raised: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        a_model(tmp_path, f"raise {raised}").run([ones()])


def test_bytes_must_be_bytes_or_text(tmp_path: Path) -> None:
    outputs = [{"name": "y", "dtype": "bytes", "shape": [-1]}]
    good = a_model(tmp_path, "return {'y': np.array(['text'], dtype=object)}", outputs=outputs)
    assert good.run([ones()])[0]["y"].tolist() == ["text"]
    with pytest.raises(ModelFailed, match=r"declared bytes \[-1\], the model gave object"):
        a_model(tmp_path, "return {'y': np.array([10**12], dtype=object)}", outputs=outputs).run([ones()])


def test_closing_calls_the_classes_own_close_once(tmp_path: Path) -> None:
    code = """\
class Model:
    def __init__(self, folder, parameters):
        self.note = folder / "closed"
    def run(self, inputs):
        return {"y": inputs["x"]}
    def close(self):
        self.note.open("x").close()
"""
    model = load_code(tmp_path, code)
    model.close()
    model.close()
    assert (tmp_path / "closed").exists()
