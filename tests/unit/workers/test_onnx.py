"""What ONNX files are served, how model.yaml narrows them, and how their faults are told."""

import os
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from schemas.errors import ModelFailed, ModelUnavailable
from schemas.models import TensorSpec
from tests.models import Dims, a_config, a_request, add_model, affine_model, load, onnx_model
from workers.engines.base import DeviceLost, run_error
from workers.engines.onnx import OnnxEngine, OnnxModel


def load_engine_model(tmp_path: Path, model: bytes, *, device: str = "cpu", **config: object) -> OnnxModel:
    (tmp_path / "model.onnx").write_bytes(model)
    return OnnxEngine().load(tmp_path, a_config(**config), device=device)


def identity_of(dtype: str, dims: Dims) -> bytes:
    return onnx_model(
        [helper.make_node("Identity", ["x"], ["y"])], {"x": (dtype, dims)}, {"y": (dtype, dims)}
    )


@pytest.mark.parametrize(
    "dtype", ["bool", "uint8", "int8", "int32", "int64", "uint64", "float16", "float32", "float64", "bytes"]
)
def test_every_dtype_is_served_under_our_name_for_it(tmp_path: Path, dtype: str) -> None:
    model = load_engine_model(tmp_path, identity_of(dtype, ["batch", 3, "any"]))
    assert model.signature().inputs == (TensorSpec(name="x", dtype=dtype, shape=(-1, 3, -1)),)


def test_text_goes_in_as_bytes_and_comes_out_as_text(tmp_path: Path) -> None:
    model = load(add_model(tmp_path, "echo", identity_of("bytes", ["batch"])))
    [result] = model.run([model.prepare(a_request(x=["grün".encode(), b"a\0b"]))])
    assert model.finish(result)[0] == a_request(y=["grün".encode(), b"a\0b"]).inputs[0]


def test_bytes_that_are_no_text_fail_in_a_model_of_strings(tmp_path: Path) -> None:
    model = load(add_model(tmp_path, "echo", identity_of("bytes", ["batch"])))
    with pytest.raises(ModelFailed, match="input 'x' must be UTF-8"):
        model.run([model.prepare(a_request(x=[b"\xff"]))])


def test_model_yaml_may_narrow_what_the_file_leaves_open(tmp_path: Path) -> None:
    declared = {"name": "x", "dtype": "float32", "shape": [-1, 3], "allow_nan": True}
    model = load_engine_model(tmp_path, identity_of("float32", ["batch", "any"]), inputs=[declared])
    assert model.signature().inputs == (TensorSpec.model_validate(declared),)


@pytest.mark.parametrize(
    ("declared", "reason"),
    [
        ({"name": "x", "dtype": "int32", "shape": [-1, 4]}, "is float32 [-1, 4] in the file, not int32"),
        ({"name": "x", "dtype": "float32", "shape": [-1, 5]}, "is float32 [-1, 4] in the file"),
        ({"name": "x", "dtype": "float32", "shape": [-1]}, "is float32 [-1, 4] in the file"),
        ({"name": "z", "dtype": "float32", "shape": [-1, 4]}, "the file's inputs are x"),
    ],
)
def test_model_yaml_must_not_contradict_the_file(
    tmp_path: Path, declared: dict[str, object], reason: str
) -> None:
    with pytest.raises(ModelUnavailable) as refused:
        load_engine_model(tmp_path, affine_model(), inputs=[declared])
    assert reason in refused.value.message


def test_outputs_that_model_yaml_leaves_out_are_not_answered(tmp_path: Path) -> None:
    shape: Dims = ["batch", 4]
    nodes = [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Neg", ["x"], ["z"])]
    both = onnx_model(nodes, {"x": ("float32", shape)}, {"y": ("float32", shape), "z": ("float32", shape)})
    model = load_engine_model(tmp_path, both, outputs=[{"name": "z", "dtype": "float32", "shape": [-1, 4]}])
    [result] = model.run([{"x": np.ones((1, 4), dtype=np.float32)}])
    assert list(result) == ["z"]


def test_an_output_without_a_shape_must_be_declared(tmp_path: Path) -> None:
    total = onnx_model(
        [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)],
        {"x": ("float32", ["batch"])},
        {"y": ("float32", [])},
    )
    with pytest.raises(ModelUnavailable, match="output 'y' has no shape in the file; declare outputs"):
        load_engine_model(tmp_path, total)


def test_an_output_of_other_rows_than_the_batch_fails_the_run(tmp_path: Path) -> None:
    total = onnx_model(
        [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=1)],
        {"x": ("float32", ["batch"])},
        {"y": ("float32", ["rows"])},
    )
    model = load_engine_model(tmp_path, total)
    with pytest.raises(ModelFailed, match=r"output 'y' has shape \[1\] for a batch of 3 items"):
        model.run([{"x": np.ones(2, dtype=np.float32)}, {"x": np.ones(1, dtype=np.float32)}])


@pytest.mark.parametrize("content", [b"", b"not a model at all", b"\x08\x0a\x12\x04test"])
def test_a_file_that_is_no_model_is_refused_with_a_reason_and_no_path(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ModelUnavailable, match=r"^file 'model\.onnx' can not be loaded: \w") as refused:
        load_engine_model(tmp_path, content)
    assert str(tmp_path) not in refused.value.message
    assert "ONNXRuntimeError" not in refused.value.message


def test_a_failing_run_tells_what_was_wrong_and_nothing_of_this_machine(tmp_path: Path) -> None:
    node = helper.make_node("Add", ["a", "b"], ["y"])
    inputs: dict[str, tuple[str, Dims]] = {"a": ("float32", ["n", "i"]), "b": ("float32", ["n", "j"])}
    model = load_engine_model(tmp_path, onnx_model([node], inputs, {"y": ("float32", ["n", "k"])}))
    with pytest.raises(ModelFailed, match="3 by 4") as failed:
        model.run([{"a": np.ones((1, 3), dtype=np.float32), "b": np.ones((1, 4), dtype=np.float32)}])
    assert "/" not in failed.value.message


@pytest.mark.parametrize(
    "location", ["../secret", "/etc/hostname", "sub/../../secret", "link", "hard", "missing"]
)
def test_external_data_must_be_a_file_of_the_models_own(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret").write_bytes(bytes(16))
    folder = tmp_path / "model"
    folder.mkdir()
    if location == "link":
        (folder / location).symlink_to(tmp_path / "secret")
    if location == "hard":
        os.link(tmp_path / "secret", folder / location)
    with pytest.raises(ModelUnavailable) as refused:
        load_engine_model(folder, model_with_external_data(location))
    assert str(tmp_path) not in refused.value.message


def test_external_data_beside_the_model_is_read(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(np.full(4, 3, dtype=np.float32).tobytes())
    model = load_engine_model(tmp_path, model_with_external_data("weights"))
    [result] = model.run([{"x": np.zeros((1, 4), dtype=np.float32)}])
    assert result["y"].tolist() == [[3, 3, 3, 3]]
    assert model.memory_bytes() > 16


def model_with_external_data(location: str) -> bytes:
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4])
    weights.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("length", "16")):
        entry = weights.external_data.add()
        entry.key, entry.value = key, value
    shape: list[str | int | None] = ["batch", 4]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "external",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    serialized: bytes = model.SerializeToString()
    return serialized


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"intra_op_threads": 0}, "parameters.intra_op_threads: Input should be greater"),
        ({"threads": 2}, "parameters.threads: Extra inputs"),
    ],
)
def test_wrong_parameters_are_named(tmp_path: Path, parameters: dict[str, int], reason: str) -> None:
    with pytest.raises(ModelUnavailable) as refused:
        load_engine_model(tmp_path, affine_model(), parameters=parameters)
    assert reason in refused.value.message


@pytest.mark.parametrize("device", ["tpu", "cuda:", "cuda:x", "CPU"])
def test_a_device_that_is_none_is_refused(tmp_path: Path, device: str) -> None:
    with pytest.raises(ModelUnavailable, match="runs on cpu or cuda:N"):
        load_engine_model(tmp_path, affine_model(), device=device)


def test_a_build_without_cuda_says_so_and_does_not_run_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ModelUnavailable, match="has no CUDA"):
        load_engine_model(tmp_path, affine_model(), device="cuda:0")


def test_a_cuda_fault_is_a_lost_device_but_its_memory_running_out_is_not() -> None:
    assert isinstance(run_error(RuntimeError("CUDA failure 700: illegal address"), reason=""), DeviceLost)
    full = RuntimeError("CUDA failure 2: out of memory")
    assert not isinstance(run_error(full, reason=""), DeviceLost)
