"""The pictures of the page: what the float model and the bundle find in held-out samples."""

from __future__ import annotations

import base64
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from PIL import Image

from compiler.checks.sights import MOST_SIGHTS, sights
from compiler.checks.verify import HeldOut
from compiler.emit import report
from compiler.runtime import Bundle
from compiler.runtime.vision import Vision
from tests import eyes
from tests.emit.test_report import CHROMIUM, drawn


@pytest.fixture(scope="module")
def bundle(detector_bundle: Path) -> Bundle:
    return Bundle.open(detector_bundle)


def held_out(bundle: Bundle) -> HeldOut:
    """Black pictures, and one with two squares in their midst."""
    vision = Vision(bundle.manifest)
    images = [Image.new("RGB", (eyes.SIDE, eyes.SIDE)) for _ in range(6)]
    images[3] = eyes.street()
    session = ort.InferenceSession(bundle.path.parent / "eyes.onnx")
    samples = [vision.inputs(vision.prepare(image)) for image in images]
    expected = [{"y": session.run(None, sample)[0]} for sample in samples]
    return HeldOut(samples, expected)


def opened(uri: str) -> np.ndarray:
    head, _, data = uri.partition(",")
    assert head == "data:image/jpeg;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).astype(int)


def test_pictures_in_which_most_is_found_come_first(bundle: Bundle) -> None:
    truth = held_out(bundle)
    # A float model that finds nothing in the street: only the bundle draws its boxes.
    blind = HeldOut(truth.samples, [{"y": np.zeros_like(one["y"])} for one in truth.expected])
    shown = sights(bundle, truth)
    assert len(shown) == MOST_SIGHTS
    street = opened(shown[0]["float"])
    assert street.shape == (eyes.SIDE, eyes.SIDE, 3) and np.ptp(street) > 150
    same = opened(shown[1]["float"])
    assert np.ptp(same) < 20  # black, and nothing drawn
    third = sights(bundle, blind)[3]
    difference = np.abs(opened(third["float"]) - opened(third["bundle"]))
    assert difference.max() > 100


def test_there_are_none_where_the_task_is_not_known(bundle: Bundle, tmp_path: Path) -> None:
    truth = held_out(bundle)
    others = HeldOut(truth.samples, [{"raw": one["y"]} for one in truth.expected])
    assert sights(bundle, others) == []
    copy = tmp_path / "copy.bundle"
    shutil.copytree(bundle.path, copy)
    vision: Any
    for vision in (None, {"picture": eyes.PICTURE, "task": None}):
        eyes.add_vision(copy, vision)
        assert sights(Bundle.open(copy), truth) == []


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_the_page_shows_them(bundle: Bundle, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(report.page(bundle.manifest, sights(bundle, held_out(bundle))))
    assert drawn(page, 1280).count("<img src=") == 2 * MOST_SIGHTS
    page.write_text(report.page(bundle.manifest))
    assert "Held-out pictures:" not in drawn(page, 1280).partition("<script")[0]
