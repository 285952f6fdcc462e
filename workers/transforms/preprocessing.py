"""What turns the bytes that callers send (images, text, files) into the tensors that a model takes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from schemas.errors import ModelUnavailable
from schemas.models import (
    FileBytesPreprocessing,
    ImagePreprocessing,
    Preprocessing,
    Signature,
    TensorSpec,
    TextPreprocessing,
)
from workers.engines.base import Arrays
from workers.transforms.file_bytes import FileBytes


class Preprocess(Protocol):
    """One kind of preprocessing, as one model uses it. Safe to call from several threads."""

    public: TensorSpec  # the one input that callers fill, in place of the model's own

    def makes(self) -> tuple[TensorSpec, ...]:
        """Return the inputs of the model that it fills."""

    def run(self, values: Sequence[bytes], *, field: str) -> Arrays:
        """Turn `n` values into arrays of `n` rows. Blocks. Raises InvalidInput at `field`."""


def load_preprocessing(config: Preprocessing, folder: Path, signature: Signature) -> Preprocess:
    """Build what `config` describes for a model of `signature`, with the files it needs from `folder`.

    Raises ModelUnavailable if they do not fit together.
    """
    try:
        preprocess = _build(config, folder, signature.inputs)
    except ImportError as error:
        raise ModelUnavailable(
            f"preprocessing {config.name!r} needs a library that is missing: {error.name}"
        ) from error
    _check_fits(preprocess, signature, name=config.name)
    return preprocess


def _build(config: Preprocessing, folder: Path, inputs: Sequence[TensorSpec]) -> Preprocess:
    match config:  # Pillow and tokenizers are imported only for the models that need them
        case ImagePreprocessing():
            from workers.transforms.image import Image  # noqa: PLC0415

            return Image(config, inputs)
        case TextPreprocessing():
            from workers.transforms.text import Text  # noqa: PLC0415

            return Text(config, folder, inputs)
        case FileBytesPreprocessing():
            return FileBytes(config, inputs)


def _check_fits(preprocess: Preprocess, signature: Signature, *, name: str) -> None:
    made = {spec.name: spec for spec in preprocess.makes()}
    for spec in signature.inputs:
        makes = made.get(spec.name)
        if makes is None or makes.dtype != spec.dtype or not _shapes_fit(makes.shape, spec.shape):
            what = ", ".join(f"{m.name!r} {m.dtype} {list(m.shape)}" for m in made.values())
            raise ModelUnavailable(
                f"preprocessing {name!r} makes {what}, but the model takes "
                f"{spec.name!r} {spec.dtype} {list(spec.shape)}"
            )


def _shapes_fit(made: Sequence[int], taken: Sequence[int]) -> bool:
    """Compare all but the batch; the model may leave a size open, or demand the one that is made."""
    return len(made) == len(taken) and all(
        there in (-1, here) for here, there in zip(made[1:], taken[1:], strict=True)
    )
