"""From a picture to what a bundle says of it: classes, or boxes with labels. `run`, `serve` and
`Runner.look` read pictures and outputs here and nowhere else."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compiler.runtime import detections, pictures
from compiler.runtime.detections import LEAST_SCORE, Corners, Detections
from compiler.runtime.inputs import Arrays
from compiler.runtime.manifest import Manifest, VisionEntry
from compiler.runtime.pictures import Prepared

if TYPE_CHECKING:
    from compiler.runtime.pictures import Source

Stream = Callable[[Iterable[Arrays]], Iterator[Mapping[str, np.ndarray]]]

# Classes of a picture that are told where no number is asked for.
MOST_CLASSES = 5
# Corners that all lie within are shares of the picture; boxes of two pixels are none.
_LARGEST_SHARE = 2.0


class VisionError(ValueError):
    """A bundle that takes no pictures, or does not say what its outputs mean."""


@dataclass(frozen=True)
class Prediction:
    """A class of a picture, or an object in it.

    label: the name of the class; its number where the bundle has no names
    index: the number of the class
    score: from 0 to 1
    box:   of an object: left, top, right, bottom in pixels of the upright picture
    """

    label: str
    index: int
    score: float
    box: tuple[float, float, float, float] | None = None

    def as_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "label": self.label,
            "class": self.index,
            "score": round(self.score, 4),
        }
        if self.box is not None:
            found["box"] = [round(side, 1) for side in self.box]
        return found


class Vision:
    """How a bundle takes pictures, and how its outputs are read.

        vision = Vision(bundle.manifest)
        prepared = vision.prepare("photo.jpg")
        outputs = runner.run(vision.inputs(prepared))
        predictions = vision.read(outputs, prepared)

    `task` is "classify", "detect", or None where what the outputs say is not known. Raises
    VisionError for a bundle that does not say how it takes pictures, or takes more than a picture.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._entry = _entry(manifest)
        self._picture = self._entry["picture"]
        self._dtype = _dtype(manifest, self._picture["input"])
        self.labels: Sequence[str] = self._entry.get("labels", [])
        self.task = self._entry["task"]
        height, width = self._picture["size"]
        self.size = (height, width)
        self._head: detections.Head | None = None
        if self.task == "detect":
            try:
                self._head = detections.head_of(self._entry["head"], self.size)
            except ValueError as error:
                raise VisionError(str(error)) from error

    def prepare(self, source: Source) -> Prepared:
        """A picture, the path of a file or a file's bytes as the model takes it. Raises
        PictureError."""
        if isinstance(source, str):
            source = Path(source)
        image = pictures.read(source) if isinstance(source, Path | bytes) else source
        return pictures.prepare(image, self._picture, self._dtype)

    def inputs(self, prepared: Prepared) -> dict[str, np.ndarray]:
        """What the model runs on."""
        return {self._picture["input"]: prepared.array}

    def takes(self, inputs: Arrays) -> bool:
        """Whether there is an array for the picture."""
        return self._picture["input"] in inputs

    def reads(self, outputs: Arrays) -> bool:
        """Whether the outputs that the task needs are there."""
        needed = self._head.outputs if self._head is not None else (self._entry.get("scores"),)
        return all(name in outputs for name in needed)

    def looks(
        self, sources: Iterable[Source], stream: Stream
    ) -> Iterator[tuple[Prepared, Mapping[str, np.ndarray]]]:
        """The outputs of many pictures, in their order. `stream` is that of a runner, which decides
        how many are in memory."""
        waiting: deque[Prepared] = deque()

        def inputs() -> Iterator[Arrays]:
            for source in sources:
                prepared = self.prepare(source)
                waiting.append(prepared)
                yield self.inputs(prepared)

        for outputs in stream(inputs()):
            yield waiting.popleft(), outputs

    def read(
        self,
        outputs: Arrays,
        prepared: Prepared,
        least: float | None = None,
        most: int | None = None,
    ) -> list[Prediction]:
        """What the outputs say of a picture, best first.

        least: what scores at least this; by default 0.25 for objects, 0 for classes
        most:  so many; by default the five best classes, and all objects

        Raises VisionError where the task is None, and for outputs that do not fit the head.
        """
        if self.task is None:
            raise VisionError("the bundle does not say what its outputs mean")
        if self.task == "classify":
            return self._classes(outputs, least or 0.0, most or MOST_CLASSES)
        found = self._objects(outputs, prepared, LEAST_SCORE if least is None else least)
        return found[:most]

    def _classes(self, outputs: Arrays, least: float, most: int) -> list[Prediction]:
        scores = outputs[self._entry["scores"]].reshape(-1).astype(np.float64)
        if self._entry.get("softmax"):
            powers = np.exp(scores - scores.max())
            scores = powers / powers.sum()
        best = np.argsort(-scores, kind="stable")[:most]
        return [
            Prediction(self._label(index), int(index), float(scores[index]))
            for index in best
            if scores[index] >= least
        ]

    def _objects(self, outputs: Arrays, prepared: Prepared, least: float) -> list[Prediction]:
        assert self._head is not None
        try:
            found = detections.detect(self._head, outputs, least)
        except (ValueError, IndexError) as error:
            raise VisionError("the outputs are not those of its head: build it again") from error
        corners = self._in_pixels(found)
        boxes = prepared.boxes_in_picture(corners)
        predictions = []
        for box, score, index in zip(boxes, found.scores, found.classes, strict=True):
            left, top, right, bottom = (float(side) for side in box)
            # What lies in the grey around a picture is not in it.
            if right > left and bottom > top:
                sides = left, top, right, bottom
                predictions.append(Prediction(self._label(index), int(index), float(score), sides))
        return predictions

    def _in_pixels(self, found: Detections) -> np.ndarray:
        """Boxes in pixels of the model's input. Of `Corners` they may be shares of it."""
        if not isinstance(self._head, Corners) or found.boxes.max(initial=0) > _LARGEST_SHARE:
            return found.boxes
        height, width = self.size
        pixels: np.ndarray = found.boxes * [width, height, width, height]
        return pixels

    def _label(self, index: int) -> str:
        name = self.labels[index] if index < len(self.labels) else ""
        return name or str(index)


def as_json(task: str, size: tuple[int, int], predictions: Sequence[Prediction]) -> dict[str, Any]:
    """What is said of a picture of `size` (height, width), as `run --json` and `serve` write it."""
    height, width = size
    return {
        "task": task,
        "width": width,
        "height": height,
        "predictions": [prediction.as_json() for prediction in predictions],
    }


def _entry(manifest: Manifest) -> VisionEntry:
    entry = manifest.get("vision")
    if entry is None:
        raise VisionError(
            "the bundle does not say how pictures become its input: build it with pictures as "
            "--calibration, or give it arrays"
        )
    for tensor in manifest["inputs"]:
        if tensor["name"] != entry["picture"]["input"]:
            raise VisionError(
                f"the model takes input '{tensor['name']}' beside a picture: give it arrays"
            )
    return entry


def _dtype(manifest: Manifest, name: str) -> np.dtype[Any]:
    tensors = {tensor["name"]: tensor for tensor in manifest["inputs"]}
    return np.dtype(tensors[name]["dtype"])
