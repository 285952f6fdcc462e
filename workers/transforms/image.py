"""Images: JPEG or PNG bytes become normalised float32 NCHW RGB."""

import io
from collections.abc import Sequence

import numpy as np
import PIL.Image
import PIL.ImageOps

from schemas.errors import InferenceError, InvalidInput
from schemas.models import ImagePreprocessing, TensorSpec
from schemas.tensors import BYTES, Array
from workers.engines.base import Arrays

_FORMATS = ("JPEG", "PNG")

PIL.Image.MAX_IMAGE_PIXELS = None  # Pillow only warns at its limit; `max_pixels` refuses


class Image:
    """Decodes, turns upright, crops the centre, resizes and normalises."""

    public = TensorSpec(name="image", dtype=BYTES, shape=(-1,))

    def __init__(self, config: ImagePreprocessing, inputs: Sequence[TensorSpec]) -> None:
        self._config = config
        self._input = inputs[0].name
        self._mean = np.array(config.mean, dtype=np.float32)
        self._scale = np.float32(1) / np.array(config.std, dtype=np.float32)

    def makes(self) -> tuple[TensorSpec, ...]:
        """Return float32 `[-1, 3, size, size]`."""
        size = self._config.size
        return (TensorSpec(name=self._input, dtype="float32", shape=(-1, 3, size, size)),)

    def run(self, values: Sequence[bytes], *, field: str) -> Arrays:
        """Turn `n` images into `[n, 3, size, size]`. Blocks. Raises InvalidInput at `field`."""
        size = self._config.size
        pixels = np.empty((len(values), 3, size, size), dtype=np.float32)
        for i, value in enumerate(values):
            pixels[i] = self._pixels(value, field=field, item=i)
        return {self._input: pixels}

    def _pixels(self, value: bytes, *, field: str, item: int) -> Array:
        try:
            with PIL.Image.open(io.BytesIO(value), formats=_FORMATS) as opened:
                self._check_size(opened, field=field, item=item)  # the header is read, nothing decoded
                upright = _to_rgb(PIL.ImageOps.exif_transpose(opened))
        except PIL.UnidentifiedImageError as error:
            raise InvalidInput(
                f"item {item} of 'image' is not an image; accepted are JPEG and PNG", field=field
            ) from error
        except (InferenceError, MemoryError):
            raise
        except Exception as error:  # Pillow's decoders raise anything on a broken file
            raise InvalidInput(
                f"item {item} of 'image' is a broken image; accepted are JPEG and PNG", field=field
            ) from error
        square = np.asarray(self._crop(upright), dtype=np.float32)
        return ((square - self._mean) * self._scale).transpose(2, 0, 1)

    def _check_size(self, picture: PIL.Image.Image, *, field: str, item: int) -> None:
        width, height = picture.size
        if width * height > self._config.max_pixels:
            raise InvalidInput(
                f"item {item} of 'image' has {width} x {height} pixels; "
                f"at most {self._config.max_pixels} in all are accepted",
                field=field,
            )

    def _crop(self, picture: PIL.Image.Image) -> PIL.Image.Image:
        width, height = picture.size
        edge = max(1, round(min(width, height) * self._config.crop))
        left, top = (width - edge) // 2, (height - edge) // 2
        square = picture.crop((left, top, left + edge, top + edge))
        return square.resize((self._config.size, self._config.size), PIL.Image.Resampling.BICUBIC)


def _to_rgb(picture: PIL.Image.Image) -> PIL.Image.Image:
    if picture.mode.startswith("I"):  # 16 bit grey, which Pillow would clip to white
        picture = picture.point(lambda value: value / 256).convert("L")
    return picture.convert("RGB")
