"""model.yaml: every typing error is found, and the words that name it."""

from typing import Any

import pytest
from pydantic import ValidationError

from schemas.models import ModelCard, ModelConfig, Signature, TensorSpec, raw_input_of


def a_config(**keys: Any) -> ModelConfig:
    return ModelConfig.model_validate({"format": "onnx"} | keys)


def a_spec(**keys: Any) -> dict[str, Any]:
    return {"name": "x", "dtype": "float32", "shape": [-1, 4]} | keys


def where(raw: dict[str, Any]) -> str:
    """Return the path of the first thing that is wrong."""
    with pytest.raises(ValidationError) as refused:
        ModelConfig.model_validate({"format": "onnx"} | raw)
    return ".".join(map(str, refused.value.errors()[0]["loc"]))


def test_the_format_is_enough() -> None:
    config = a_config()
    assert config.max_batch_size is None
    assert config.warmup.batch_sizes == (1,)
    assert config.max_execution_s == 60.0


def test_the_format_is_needed() -> None:
    with pytest.raises(ValidationError, match="format"):
        ModelConfig.model_validate({})


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        ({"max_bach_size": 8}, "max_bach_size"),
        ({"warmup": {"batchsizes": [1]}}, "warmup.batchsizes"),
        ({"inputs": [a_spec(dype="int8")]}, "inputs.0.dype"),
        ({"preprocessing": {"name": "image", "sise": 5}}, "preprocessing.image.sise"),
        ({"postprocessing": {"name": "classify", "k": 5}, "labels": "l.txt"}, "postprocessing.k"),
    ],
)
def test_an_unknown_key_is_no_silent_default(raw: dict[str, Any], path: str) -> None:
    assert where(raw) == path


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        ({"format": "ONNX"}, "format"),
        ({"format": "../onnx"}, "format"),
        ({"format": 5}, "format"),
        ({"max_batch_size": 0}, "max_batch_size"),
        ({"max_batch_size": 4097}, "max_batch_size"),
        ({"batch_timeout_ms": -1}, "batch_timeout_ms"),
        ({"batch_timeout_ms": float("nan")}, "batch_timeout_ms"),
        ({"max_execution_s": 0}, "max_execution_s"),
        ({"inputs": [a_spec(dtype="FP32")]}, "inputs.0.dtype"),
        ({"inputs": [a_spec(shape=[-2])]}, "inputs.0.shape.0"),
        ({"inputs": [a_spec(name="")]}, "inputs.0.name"),
        ({"inputs": {"x": a_spec()}}, "inputs"),
        ({"preprocessing": {"name": "magic"}}, "preprocessing"),
        ({"preprocessing": {"name": "image", "crop": 0}}, "preprocessing.image.crop"),
        ({"preprocessing": {"name": "image", "std": [0.0]}}, "preprocessing.image.std"),
        ({"warmup": {"batch_sizes": [0]}}, "warmup.batch_sizes.0"),
        ({"labels": ["a", "b"]}, "labels"),
    ],
)
def test_a_value_out_of_range_is_named(raw: dict[str, Any], path: str) -> None:
    assert where(raw).startswith(path)


def test_classifying_needs_labels() -> None:
    with pytest.raises(ValidationError, match="postprocessing 'classify' needs 'labels'"):
        a_config(postprocessing={"name": "classify"})
    assert a_config(postprocessing={"name": "classify"}, labels="labels.txt").labels == "labels.txt"


def test_a_card_of_a_later_version_is_still_read() -> None:
    card = ModelCard(
        name="m",
        version=1,
        format="onnx",
        signature=Signature(inputs=(), outputs=()),
        max_batch_size=8,
    )
    assert ModelCard.model_validate(card.model_dump(mode="json") | {"cost": 5}) == card


def test_a_raw_body_fills_the_only_input_if_it_is_of_bytes() -> None:
    text = TensorSpec(name="text", dtype="bytes", shape=(-1,))
    number = TensorSpec(name="x", dtype="float32", shape=(-1,))
    assert raw_input_of(Signature(inputs=(text,), outputs=())) == "text"
    assert raw_input_of(Signature(inputs=(number,), outputs=())) is None
    assert raw_input_of(Signature(inputs=(text, number), outputs=())) is None
