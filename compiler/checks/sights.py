"""Held-out pictures with what the float model and the bundle say of them, for the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from compiler.checks.verify import HeldOut
from compiler.runtime import Bundle, Pipeline, drawing, pictures
from compiler.runtime.pictures import Prepared
from compiler.runtime.vision import Prediction, Vision, VisionError

Sight = dict[str, str]
"""Two pictures as data URIs, "float" and "bundle"."""

MOST_SIGHTS = 4
# Pixels of the longer side.
_LARGEST = 300
_QUALITY = 75


def sights(bundle: Bundle, held_out: HeldOut) -> list[Sight]:
    """The held-out pictures in which the float model finds most, as the model sees them.

    There are none where the bundle's task is not known, or the samples are not what it takes.
    """
    try:
        vision = Vision(bundle.manifest)
    except VisionError:
        return []
    if vision.task is None or not _fits(vision, held_out):
        return []
    entry = bundle.manifest["vision"]["picture"]
    name = entry["input"]
    ranked = []
    for sample, wanted in zip(held_out.samples, held_out.expected, strict=True):
        found = _read(vision, wanted, sample[name])
        ranked.append((len(found), sample, found))
    ranked.sort(key=lambda rank: -rank[0])
    pipeline = Pipeline(bundle)
    shown = []
    for _, sample, found in ranked[:MOST_SIGHTS]:
        image = pictures.restored(sample[name], entry)
        ours = _read(vision, pipeline.run(sample), sample[name])
        shown.append({"float": _data_uri(image, found), "bundle": _data_uri(image, ours)})
    return shown


def _fits(vision: Vision, held_out: HeldOut) -> bool:
    """Whether samples and results have the names that the task reads."""
    return all(
        vision.takes(sample) and vision.reads(wanted)
        for sample, wanted in zip(held_out.samples, held_out.expected, strict=True)
    )


def _read(vision: Vision, outputs: Mapping[str, np.ndarray], array: np.ndarray) -> list[Prediction]:
    """What outputs say, with boxes in pixels of the array."""
    itself = Prepared(array, (1.0, 1.0), (0.0, 0.0), vision.size)
    return vision.read(outputs, itself)


def _data_uri(image: Image.Image, found: Sequence[Prediction]) -> str:
    picture = drawing.drawn(image, found)
    picture.thumbnail((_LARGEST, _LARGEST))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
