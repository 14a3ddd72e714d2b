"""Preparing pictures, against Pillow's own steps and by hand."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compiler.runtime.manifest import PictureEntry
from compiler.runtime.pictures import PictureError, prepare, read

FLOAT = np.dtype(np.float32)


def entry(**changes: object) -> PictureEntry:
    base = {
        "input": "x",
        "layout": "NCHW",
        "size": [8, 8],
        "colours": "RGB",
        "fit": "stretch",
        "mean": [0.0],
        "std": [255.0],
    }
    return {**base, **changes}  # type: ignore[typeddict-item]


def picture(height: int, width: int) -> Image.Image:
    """Black, with a white square of 2 x 2 pixels in the middle."""
    pixels = np.zeros((height, width, 3), np.uint8)
    top, left = height // 2 - 1, width // 2 - 1
    pixels[top : top + 2, left : left + 2] = 255
    return Image.fromarray(pixels)


def test_pixels_of_the_right_size_are_only_normalised() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    image = Image.fromarray(pixels)
    found = prepare(image, entry(mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0]), FLOAT).array
    want = (pixels.astype(np.float32) - [1, 2, 3]) / [4, 5, 6]
    np.testing.assert_allclose(found, want.transpose(2, 0, 1)[None], rtol=1e-6)
    raw = entry(layout="NHWC", colours="BGR", std=[1.0])
    np.testing.assert_array_equal(
        prepare(image, raw, np.dtype(np.uint8)).array, pixels[None, :, :, ::-1]
    )
    shifted = entry(layout="NHWC", mean=[128.0], std=[1.0])
    signed = prepare(image, shifted, np.dtype(np.int8)).array
    np.testing.assert_array_equal(signed.astype(int) + 128, pixels[None])


@pytest.mark.parametrize("fit", ["stretch", "letterbox", "crop"])
@pytest.mark.parametrize("size", [(20, 40), (40, 20), (8, 8), (7, 9)])
def test_boxes_come_back_to_where_they_were(fit: str, size: tuple[int, int]) -> None:
    height, width = size
    ready = prepare(picture(height, width), entry(fit=fit, size=[64, 64]), FLOAT)
    bright = np.argwhere(ready.array[0, 0] > 0.75)
    top, left = bright.min(axis=0)
    bottom, right = bright.max(axis=0) + 1
    box = ready.boxes_in_picture(np.array([[left, top, right, bottom]], np.float64))[0]
    want = [width // 2 - 1, height // 2 - 1, width // 2 + 1, height // 2 + 1]
    # Interpolation blurs the sides of the square by less than a pixel of the picture.
    np.testing.assert_allclose(box, want, atol=0.75)


def test_a_letterbox_is_grey_and_a_middle_is_cut_out() -> None:
    white = Image.new("RGB", (16, 8), "white")
    boxed = prepare(white, entry(fit="letterbox", std=[1.0]), FLOAT).array[0]
    assert set(np.unique(boxed[:, :2])) == {114.0} == set(np.unique(boxed[:, -2:]))
    assert set(np.unique(boxed[:, 2:6])) == {255.0}
    resized = prepare(picture(8, 8), entry(size=[4, 4], resize=[8, 8]), FLOAT).array[0, 0]
    assert resized[1:3, 1:3].min() == 1.0
    assert resized.sum() == 4.0


def test_orientation_is_that_of_the_camera(tmp_path: Path) -> None:
    image = Image.new("RGB", (10, 20))
    exif = image.getexif()
    exif[0x0112] = 6  # turned by a quarter
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert read(tmp_path / "turned.jpg").size == (20, 10)


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match="not an image"):
        read(b"no picture")
    with pytest.raises(PictureError, match="not an image"):
        read(tmp_path / "missing.png")
    buffer = io.BytesIO()
    Image.new("1", (9000, 9000)).save(buffer, "PNG")
    with pytest.raises(PictureError, match="9000 x 9000"):
        read(buffer.getvalue())
