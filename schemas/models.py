"""What a model is: its `model.yaml`, its signature, and the card that workers announce.

A repository is a folder of `<name>/<version>/`, each with the model's files and a `model.yaml`.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, field_validator, model_validator

from schemas.tensors import BYTES, DTYPES

CONFIG_FILE = "model.yaml"


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorSpec(_Strict):
    """One input or output. In `shape`, -1 is a size that may vary; the first dimension is the batch."""

    name: Annotated[str, Field(min_length=1, max_length=256)]
    dtype: str
    shape: tuple[Annotated[int, Field(ge=-1)], ...]
    allow_nan: bool = Field(default=False, description="accept NaN and infinities in this input")

    @field_validator("dtype")
    @classmethod
    def _known_dtype(cls, dtype: str) -> str:
        if dtype not in DTYPES:
            raise ValueError(f"must be one of {', '.join(DTYPES)}")
        return dtype


class Signature(_Strict):
    """What a model takes and gives, as its callers see it."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class ImagePreprocessing(_Strict):
    """Decode JPEG or PNG bytes, crop the centre, resize, normalise to float32 NCHW RGB."""

    name: Literal["image"]
    size: Annotated[int, Field(ge=1, le=4096, description="edge of the square the model takes, pixels")] = 224
    crop: Annotated[float, Field(gt=0, le=1, description="share of the shorter edge that is kept")] = 0.875
    mean: tuple[float] | tuple[float, float, float] = Field(
        default=(127.0,), description="taken from pixels of 0 to 255, for all channels or for R, G, B"
    )
    std: tuple[PositiveFloat] | tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (128.0,)
    max_pixels: Annotated[int, Field(ge=1, description="larger images are refused undecoded")] = 50_000_000


class TextPreprocessing(_Strict):
    """Tokenize UTF-8 text with a Hugging Face `tokenizer.json` that lies beside the model."""

    name: Literal["text"]
    tokenizer: str = "tokenizer.json"
    max_tokens: Annotated[int, Field(ge=2, le=131_072, description="longer texts are cut")] = 256
    max_bytes: Annotated[int, Field(ge=1, description="longer texts are refused")] = 1 << 20


class FileBytesPreprocessing(_Strict):
    """Turn a file into the int32 head and tail that the Magika content-type models take."""

    name: Literal["file-bytes"]
    head_bytes: Annotated[int, Field(ge=1)] = 1024
    tail_bytes: Annotated[int, Field(ge=1)] = 1024
    block_bytes: Annotated[int, Field(ge=1)] = 4096
    padding: int = 256


Preprocessing = Annotated[
    ImagePreprocessing | TextPreprocessing | FileBytesPreprocessing, Field(discriminator="name")
]


class ClassifyPostprocessing(_Strict):
    """Answer the `top_k` best labels and their scores in place of raw class scores."""

    name: Literal["classify"]
    top_k: Annotated[int, Field(ge=1, le=1000)] = 5
    softmax: bool = Field(default=True, description="off where the model ends in a softmax itself")


class Warmup(_Strict):
    """Inputs to run before the model counts as ready: zeros of each batch size, or a sample file."""

    batch_sizes: tuple[Annotated[int, Field(ge=1)], ...] = (1,)
    sample: str | None = Field(
        default=None, description="a file beside the model, for models that take bytes"
    )


class ModelConfig(_Strict):
    """A `model.yaml`. Unknown keys are refused, so a typing error is not a silent default."""

    format: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,31}$", description="name of the engine")]
    description: str = ""
    file: str | None = Field(default=None, description="the model's file, where the default does not fit")
    inputs: tuple[TensorSpec, ...] | None = Field(default=None, description="if not in the model's file")
    outputs: tuple[TensorSpec, ...] | None = None
    max_batch_size: Annotated[int, Field(ge=1, le=4096, description="items, not messages")] | None = None
    batch_timeout_ms: Annotated[float, Field(ge=0, le=10_000)] | None = None
    max_execution_s: Annotated[float, Field(gt=0, le=3600)] = 60.0
    labels: str | None = Field(default=None, description="a text file beside the model, one label a line")
    preprocessing: Preprocessing | None = None
    postprocessing: ClassifyPostprocessing | None = None
    warmup: Warmup = Warmup()
    parameters: Mapping[str, Any] = Field(default_factory=dict, description="handed to the engine")

    @model_validator(mode="after")
    def _labels_for_classify(self) -> Self:
        if self.postprocessing is not None and self.labels is None:
            raise ValueError("postprocessing 'classify' needs 'labels'")
        return self


class ModelCard(BaseModel):
    """What the rest of the system knows of a model: enough to check a request and to list it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    version: int
    format: str
    description: str = ""
    signature: Signature
    max_batch_size: int
    raw_input: str | None = Field(default=None, description="the input that takes a whole body as it is")


def raw_input_of(signature: Signature) -> str | None:
    """Name the input that a plain image or binary body fills: the only one, and of dtype `bytes`."""
    if len(signature.inputs) == 1 and signature.inputs[0].dtype == BYTES:
        return signature.inputs[0].name
    return None
