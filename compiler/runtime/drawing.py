"""Draws what a bundle says of a picture into it: boxes with labels and scores, or classes."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from compiler.errors import one_line
from compiler.runtime.vision import Prediction

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

    Colour = tuple[int, int, int]
    Box = tuple[float, float, float, float]

# Formats by the suffix of a file.
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".bmp": "BMP", ".webp": "WEBP"}
_JPEG_QUALITY = 90
# Shares of a picture's smaller side.
_LINE = 1 / 240
_TEXT = 1 / 32
_LEAST_TEXT = 11  # pixels
_LONGEST_LABEL = 40  # characters
# Steps between the hues of neighbouring classes: the golden ratio spreads any number of them.
_HUE_STEP = 0.618


def drawn(image: Image, predictions: Sequence[Prediction]) -> Image:
    """A copy of a picture in colours with predictions in it."""
    from PIL import ImageDraw

    copy = image.convert("RGB")
    pen = ImageDraw.Draw(copy)
    # The best ones last, above the others; no label hides a frame.
    objects = [found for found in reversed(predictions) if found.box is not None]
    for prediction in objects:
        _draw_label(pen, copy, prediction)
    for prediction in objects:
        _draw_frame(pen, copy, prediction)
    top = 0.0
    for prediction in predictions:
        if prediction.box is None:
            _, _, _, top = _draw_text(pen, copy, prediction, (0.0, top))
    return copy


def save(image: Image, file: BinaryIO, path: Path) -> None:
    """Write a picture in the format of the suffix of `path`, which FORMATS has."""
    format_name = FORMATS[path.suffix.lower()]
    options = {"quality": _JPEG_QUALITY} if format_name == "JPEG" else {}
    image.save(file, format_name, **options)


def _draw_frame(pen: ImageDraw, image: Image, prediction: Prediction) -> None:
    assert prediction.box is not None
    width = max(2, round(min(image.size) * _LINE))
    pen.rectangle(prediction.box, outline=_colour(prediction.index), width=width)


def _draw_label(pen: ImageDraw, image: Image, prediction: Prediction) -> None:
    """Above the box, or in it where there is no room."""
    assert prediction.box is not None
    left, top, _, _ = prediction.box
    height = _text_size(image) * 1.3
    place = top - height if top >= height else top
    _draw_text(pen, image, prediction, (left, place))


def _draw_text(
    pen: ImageDraw, image: Image, prediction: Prediction, corner: tuple[float, float]
) -> Box:
    """Label and score on a ground of the class's colour; returns where they are."""
    from PIL import ImageFont

    font = ImageFont.load_default(_text_size(image))
    label = one_line(prediction.label)[:_LONGEST_LABEL]
    text = f"{label} {prediction.score:.2f}"
    _, _, right, bottom = pen.textbbox(corner, text, font)
    margin = 0.2 * _text_size(image)
    # All of the text is in the picture.
    shift = min(0.0, image.width - right - 2 * margin)
    ground = (corner[0] + shift, corner[1], right + shift + 2 * margin, bottom + margin)
    pen.rectangle(ground, fill=_colour(prediction.index))
    pen.text((corner[0] + shift + margin, corner[1]), text, "white", font)
    return ground


def _text_size(image: Image) -> float:
    return max(_LEAST_TEXT, round(min(image.size) * _TEXT))


def _colour(index: int) -> Colour:
    """A colour of a class that white text can be read on."""
    red, green, blue = colorsys.hsv_to_rgb(index * _HUE_STEP % 1, 0.9, 0.65)
    return round(red * 255), round(green * 255), round(blue * 255)
