"""From a picture to the array that a model takes, and from points of that array back to the
picture. Calibration, `run` and `serve` prepare pictures here and nowhere else.

Pillow is imported when the first picture is read: a device that runs on arrays needs none.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from compiler.errors import first_line
from compiler.runtime.manifest import PictureEntry

if TYPE_CHECKING:
    from PIL.Image import Image

    # A picture, the path of its file, or the bytes of one.
    Source = Image | Path | str | bytes

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
# Pixels of a picture, also after resizing: in Pillow 4 bytes each.
MOST_PIXELS = 64_000_000
# What stands around a picture that is fitted as a whole, as Ultralytics' letterbox has it.
PADDING = 114


class PictureError(ValueError):
    """A picture that is not read, with the reason."""


@dataclass(frozen=True)
class Prepared:
    """A picture as the model takes it: `array` [1, C, H, W] or [1, H, W, C].

    A point (x, y) of the array lies at (point - `offset`) / `scale` in the upright picture, which
    has `size` (height, width).
    """

    array: np.ndarray
    scale: tuple[float, float]
    offset: tuple[float, float]
    size: tuple[int, int]

    def boxes_in_picture(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes [n, 4], left, top, right, bottom in pixels of the array, in those of the picture,
        cut off at its sides."""
        scale = np.array([*self.scale, *self.scale])
        offset = np.array([*self.offset, *self.offset])
        height, width = self.size
        largest = np.array([width, height, width, height], np.float64)
        inside: np.ndarray = np.clip((boxes - offset) / scale, 0, largest)
        return inside


def in_folder(folder: Path) -> list[Path]:
    """The files of a folder that are pictures by their suffix, in the order of their names."""
    files = sorted(file for file in folder.iterdir() if file.is_file())
    return [file for file in files if file.suffix.lower() in SUFFIXES]


def read(source: Path | bytes) -> Image:
    """The picture in a file or in a file's bytes, upright (by its EXIF orientation). Raises
    PictureError for what is too large or not a PNG, JPEG, BMP or WebP."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    where = source if isinstance(source, Path) else io.BytesIO(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our limit is lower
            file = Image.open(where, formats=_FORMATS)
        with file:
            if file.width * file.height > MOST_PIXELS:
                raise PictureError(
                    f"{file.width} x {file.height} pixels; at most {MOST_PIXELS:,} are read: make "
                    "it smaller"
                )
            upright = ImageOps.exif_transpose(file)
            upright.load()
            return upright
    except PictureError:
        raise
    except Image.DecompressionBombError as error:
        raise PictureError(
            f"more than {MOST_PIXELS:,} pixels are not read: make it smaller"
        ) from error
    except UnidentifiedImageError as error:
        raise PictureError(f"not an image that can be read ({' or '.join(_FORMATS)})") from error
    except Exception as error:  # decoders fail in too many ways to list
        raise PictureError(f"not an image that can be read ({first_line(error)})") from error


def prepare(image: Image, entry: PictureEntry, dtype: np.dtype) -> Prepared:
    """A picture as the input of `dtype` takes it. uint8 and int8 inputs take the values rounded;
    int8 takes pixels less 128 where `mean` is 128 and `std` 1."""
    height, width = entry["size"]
    coloured = image.convert("L" if entry["colours"] == "L" else "RGB")
    tall, wide = entry.get("resize", entry["size"])
    fitted, scale, offset = _fitted(coloured, entry["fit"], (wide, tall))
    left = (wide - width) // 2
    top = (tall - height) // 2
    cut = fitted.crop((left, top, left + width, top + height))
    pixels = np.asarray(cut, np.uint8).reshape(height, width, -1)
    if entry["colours"] == "BGR":
        pixels = pixels[:, :, ::-1]
    array = _normalised(pixels, entry, dtype)
    if entry["layout"] == "NCHW":
        array = array.transpose(2, 0, 1)
    return Prepared(
        np.ascontiguousarray(array)[None],
        scale,
        (offset[0] - left, offset[1] - top),
        (image.height, image.width),
    )


def _fitted(
    image: Image, fit: str, size: tuple[int, int]
) -> tuple[Image, tuple[float, float], tuple[float, float]]:
    """An image of `size` (width, height), and the scale and the offset that took it there."""
    from PIL import Image, ImageOps

    bilinear = Image.Resampling.BILINEAR
    width, height = size
    across = width / image.width
    down = height / image.height
    if fit == "stretch":
        return image.resize(size, bilinear), (across, down), (0.0, 0.0)
    if fit == "letterbox":
        factor = min(across, down)
        grey = PADDING if image.mode == "L" else (PADDING,) * 3
        fitted = ImageOps.pad(image, size, bilinear, grey)
    else:
        factor = max(across, down)
        fitted = ImageOps.fit(image, size, bilinear)
    offset = ((width - image.width * factor) / 2, (height - image.height * factor) / 2)
    return fitted, (factor, factor), offset


def _normalised(pixels: np.ndarray, entry: PictureEntry, dtype: np.dtype) -> np.ndarray:
    """Pixels [H, W, C] as (pixel - mean) / std in the input's type."""
    mean = np.array(entry["mean"], np.float32)
    std = np.array(entry["std"], np.float32)
    values = (pixels.astype(np.float32) - mean) / std
    if dtype.kind == "f":
        return values.astype(dtype)
    limits = np.iinfo(dtype)
    rounded: np.ndarray = np.clip(np.rint(values), limits.min, limits.max).astype(dtype)
    return rounded


def restored(array: np.ndarray, entry: PictureEntry) -> Image:
    """The picture that `prepare` made an array [1, C, H, W] or [1, H, W, C] of, in the size of the
    array."""
    from PIL import Image

    values = array[0].astype(np.float32)
    if entry["layout"] == "NCHW":
        values = values.transpose(1, 2, 0)
    mean = np.array(entry["mean"], np.float32)
    std = np.array(entry["std"], np.float32)
    pixels = np.clip(np.rint(values * std + mean), 0, 255).astype(np.uint8)
    if entry["colours"] == "BGR":
        pixels = pixels[:, :, ::-1]
    if entry["colours"] == "L":
        pixels = pixels[:, :, 0]
    return Image.fromarray(np.ascontiguousarray(pixels))
