"""Top-1 and top-5 against labels, of scores that are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from compiler.checks.accuracy import accuracy
from compiler.checks.labelled import Labelled
from compiler.runtime.manifest import Manifest
from compiler.runtime.vision import Vision

PICTURE = {
    "input": "x",
    "layout": "NCHW",
    "size": [4, 4],
    "colours": "RGB",
    "fit": "stretch",
    "mean": [0.0],
    "std": [255.0],
}


@pytest.mark.parametrize(
    ("classes", "expected"), [(12, {"top1": 0.25, "top5": 0.75}), (10, {"top1": 0.25})]
)
def test_being_near_counts_among_many_classes(
    classes: int, expected: dict[str, float], tmp_path: Path
) -> None:
    """The scores of all pictures fall from class 0 on."""
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    vision = {"picture": PICTURE, "task": "classify", "scores": "y", "softmax": True}
    inputs = [{"name": "x", "dtype": "float32", "shape": [1, 3, 4, 4], "layout": None}]
    manifest = cast(Manifest, {"vision": vision, "inputs": inputs})
    scores = -np.arange(classes, dtype=np.float32)[None]

    def run(given: dict[str, Any]) -> dict[str, np.ndarray]:
        assert given["x"].shape == (1, 3, 4, 4)
        return {"y": scores}

    pictures = [Labelled(tmp_path / "a.png", np.array([number])) for number in (0, 1, 4, 5)]
    assert accuracy(Vision(manifest), pictures, run) == expected
