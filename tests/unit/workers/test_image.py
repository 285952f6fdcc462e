"""Images as callers send them: upright, cropped, bounded, and refused when they are none."""

import io
import struct
import zlib

import numpy as np
import PIL.Image
import pytest

from schemas.errors import InvalidInput
from schemas.models import ImagePreprocessing, TensorSpec
from schemas.tensors import Array
from workers.transforms.image import Image

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def an_image(**config: object) -> Image:
    keys = {"name": "image", "size": 8, "crop": 1.0, "mean": [0], "std": [255], **config}
    model_input = TensorSpec(name="pixels", dtype="float32", shape=(-1, 3, 8, 8))
    return Image(ImagePreprocessing.model_validate(keys), [model_input])


def encode(picture: PIL.Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def plain(
    colour: tuple[int, ...] | int, mode: str = "RGB", size: tuple[int, int] = (16, 16)
) -> PIL.Image.Image:
    return PIL.Image.new(mode, size, colour)


def half_red_half_blue() -> PIL.Image.Image:
    """Red above, blue below."""
    picture = plain(RED)
    picture.paste(BLUE, (0, 8, 16, 16))
    return picture


def pixels(value: bytes, **config: object) -> Array:
    array: Array = an_image(**config).run([value], field="inputs[0]")["pixels"][0]
    return array


def colour_at(array: Array, row: int, column: int) -> list[float]:
    return [round(float(value), 2) for value in array[:, row, column]]


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_jpeg_and_png_become_float32_rgb_planes(kind: str) -> None:
    result = an_image().run([encode(plain(GREEN), kind)] * 2, field="inputs[0]")["pixels"]
    assert result.dtype == np.float32
    assert result.shape == (2, 3, 8, 8)
    np.testing.assert_allclose(result[1].mean(axis=(1, 2)), [0, 1, 0], atol=0.02)


def test_mean_and_std_apply_to_each_channel() -> None:
    array = pixels(encode(plain((10, 20, 30))), mean=[10, 10, 10], std=[1, 2, 4])
    assert colour_at(array, 0, 0) == [0, 5, 5]


def test_a_photo_that_says_it_lies_on_its_side_is_turned_upright() -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    array = pixels(encode(half_red_half_blue(), exif=exif))
    assert colour_at(array, 4, 0) == [0, 0, 1]
    assert colour_at(array, 4, 7) == [1, 0, 0]


def test_the_centre_is_kept() -> None:
    wide = plain(RED, size=(64, 16))
    wide.paste(BLUE, (24, 0, 40, 16))
    array = pixels(encode(wide))
    assert colour_at(array, 0, 0) == colour_at(array, 7, 7) == [0, 0, 1]


def test_crop_is_the_share_of_the_shorter_edge() -> None:
    framed = plain(RED)
    framed.paste(BLUE, (4, 4, 12, 12))
    assert colour_at(pixels(encode(framed), crop=1.0), 0, 0) == [1, 0, 0]
    assert colour_at(pixels(encode(framed), crop=0.5), 0, 0) == [0, 0, 1]


@pytest.mark.parametrize(
    ("picture", "colour"),
    [
        (plain(51, "L"), [0.2, 0.2, 0.2]),
        (plain((255, 0, 0, 255), "RGBA"), [1, 0, 0]),
        (plain(BLUE).convert("P"), [0, 0, 1]),
        (plain(1, "1"), [1, 1, 1]),
        (PIL.Image.fromarray(np.full((16, 16), 51 << 8, dtype=np.uint16)), [0.2, 0.2, 0.2]),
    ],
    ids=["grey", "transparent", "palette", "black-and-white", "16-bit"],
)
def test_every_kind_of_pixel_becomes_rgb(picture: PIL.Image.Image, colour: list[float]) -> None:
    assert colour_at(pixels(encode(picture)), 4, 4) == colour


def test_a_cmyk_jpeg_becomes_rgb() -> None:
    np.testing.assert_allclose(
        pixels(encode(plain(RED).convert("CMYK"), "JPEG"))[:, 4, 4], [1, 0, 0], atol=0.02
    )


def test_too_many_pixels_are_refused_before_they_are_decoded() -> None:
    header_only = encode(plain(RED, size=(2000, 1000)))[:100]
    with pytest.raises(InvalidInput, match="has 2000 x 1000 pixels; at most 1000000") as refused:
        pixels(header_only, max_pixels=1_000_000)
    assert refused.value.field == "inputs[0]"


def test_a_bomb_beyond_pillows_own_limit_is_refused_by_ours() -> None:
    with pytest.raises(InvalidInput, match="has 20000 x 20000 pixels; at most 50000000"):
        pixels(png_that_claims(20_000, 20_000))


def png_that_claims(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", len(header) - 4) + header + struct.pack(">I", zlib.crc32(header))
    return encode(plain(RED))[:8] + chunk + encode(plain(RED))[8 + len(chunk) :]


@pytest.mark.parametrize(
    "value",
    [b"", b"hello", encode(plain(RED), "GIF"), encode(plain(RED), "BMP"), encode(plain(RED), "TIFF")],
    ids=["empty", "text", "gif", "bmp", "tiff"],
)
def test_what_is_no_jpeg_or_png_is_refused_with_the_accepted_formats(value: bytes) -> None:
    with pytest.raises(InvalidInput, match="item 1 of 'image' is not an image; accepted are JPEG and PNG"):
        an_image().run([encode(plain(RED)), value], field="inputs[0]")


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_an_image_that_breaks_off_is_refused(kind: str) -> None:
    whole = encode(PIL.Image.effect_noise((64, 64), 100), kind)
    with pytest.raises(InvalidInput, match="item 0 of 'image' is a broken image") as refused:
        pixels(whole[: len(whole) // 2])
    assert refused.value.field == "inputs[0]"
