"""The `identity` model: answers its input, float32 `[-1, 4]`, at no cost, so it measures all the rest."""

from pathlib import Path

from scripts.models.publish import publishing, write_config

NAME = "identity"
WIDTH = 4


def install_identity_model(repository: Path, *, max_batch_size: int = 64) -> Path:
    """Write the model into `repository` and return its folder. Doing so again changes nothing.

    Input `x` and output `y`. Raises ImportError without the package `onnx` (extra `dev`).
    """
    with publishing(repository, NAME) as folder:
        (folder / "model.onnx").write_bytes(identity_model())
        write_config(
            folder,
            {
                "format": "onnx",
                "description": "Answers its input.",
                "max_batch_size": max_batch_size,
                "warmup": {"batch_sizes": [1, max_batch_size]},
            },
        )
    return repository / NAME / "1"


def identity_model() -> bytes:
    """Build the ONNX file."""
    from onnx import TensorProto, helper  # noqa: PLC0415 - only this needs the package

    shape: list[str | int | None] = ["batch", WIDTH]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        NAME,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    serialized: bytes = model.SerializeToString()
    return serialized
