"""Boxes from the outputs of object detectors, for the families whose outputs tell by shape and
range what they are.

| head | outputs |
|---|---|
| YOLOv8, v9, v11 | [1, 4 + C, N]: centre, width, height in pixels; scores of C classes |
| YOLOv5, v7, YOLOX | [1, N, 5 + C]: the same with objectness in front of the scores |
| YOLOX without decoding | [1, N, 5 + C]: offsets in cells, logarithms of sizes in cells |
| PicoDet | for each stride scores [1, n, C] and distributions of four distances [1, n, 4 * bins] |
| SSD, or after suppression | corners [N, 4] or [1, N, 4] beside scores [N], [1, N] or [1, N, C] and labels, if any |

What fits none of them is not recognised: a wrong reading is worse than none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Arrays = Mapping[str, np.ndarray]
Size = tuple[int, int]
"""(height, width) of a detector's image, in pixels."""

LEAST_SCORE = 0.25
OVERLAP = 0.45
# Candidates of one image that suppression looks at.
MOST_CANDIDATES = 2000
STRIDES = ((8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32))
ROUNDING = 1e-3


@dataclass(frozen=True)
class Detections:
    """What is found in an image: `boxes` [n, 4] as left, top, right, bottom (heads with corners of
    their own keep their order and unit), `scores` [n], and `classes` [n]; highest scores first."""

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)

    def chosen(self, indices: np.ndarray) -> Detections:
        return Detections(self.boxes[indices], self.scores[indices], self.classes[indices])

    def above(self, score: float) -> Detections:
        return self.chosen(np.flatnonzero(self.scores >= score))


@dataclass(frozen=True)
class Yolo:
    """All boxes in one output. `rows`: a box is a row, not a column; `objectness` comes before the
    scores; `cells`: boxes are in cells of the grids with these strides."""

    output: str
    rows: bool
    objectness: bool
    cells: tuple[int, ...] = ()
    size: Size = (0, 0)

    @property
    def outputs(self) -> tuple[str, ...]:
        return (self.output,)

    @property
    def axis(self) -> int:
        """The axis of coordinates and scores."""
        return 2 if self.rows else 1

    @property
    def splits(self) -> tuple[int, ...]:
        """Where along that axis coordinates end, and objectness."""
        return (4, 5) if self.objectness else (4,)

    def candidates(self, arrays: Arrays) -> tuple[np.ndarray, np.ndarray]:
        """(boxes [N, 4], scores [N, C])."""
        values = arrays[self.output][0].astype(np.float64)
        values = values if self.rows else values.T
        centre, extent = values[:, 0:2], values[:, 2:4]
        if self.cells:
            points, strides = _cells(self.size, self.cells, 0.0)
            centre = centre * strides + points
            extent = np.exp(np.clip(extent, -20, 20)) * strides
        boxes = np.concatenate([centre - extent / 2, centre + extent / 2], axis=1)
        scores = values[:, 5:] * values[:, 4:5] if self.objectness else values[:, 4:]
        return boxes, scores


@dataclass(frozen=True)
class PicoDet:
    """Scores and distributions of distances, one pair of outputs for each stride."""

    scores: tuple[str, ...]
    distances: tuple[str, ...]
    strides: tuple[int, ...]
    size: Size

    @property
    def outputs(self) -> tuple[str, ...]:
        return (*self.scores, *self.distances)

    axis = 2
    splits = ()

    def candidates(self, arrays: Arrays) -> tuple[np.ndarray, np.ndarray]:
        scores = np.concatenate([arrays[name][0] for name in self.scores]).astype(np.float64)
        spread = np.concatenate([arrays[name][0] for name in self.distances]).astype(np.float64)
        spread = spread.reshape(len(spread), 4, -1)
        weights = np.exp(spread - spread.max(axis=2, keepdims=True))
        weights /= weights.sum(axis=2, keepdims=True)
        points, strides = _cells(self.size, self.strides, 0.5)
        distances = (weights @ np.arange(spread.shape[2])) * strides
        boxes = np.concatenate([points - distances[:, :2], points + distances[:, 2:]], axis=1)
        return boxes, scores


@dataclass(frozen=True)
class Corners:
    """Corners in one output, scores in another; labels in a third where a box has one score.
    `background`: class 0 says that there is nothing."""

    boxes: str
    scores: str
    labels: str | None = None
    background: bool = False

    axis = -1
    splits = ()

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(name for name in (self.boxes, self.scores, self.labels) if name is not None)

    def candidates(self, arrays: Arrays) -> tuple[np.ndarray, np.ndarray]:
        boxes = arrays[self.boxes].reshape(-1, 4).astype(np.float64)
        scores = arrays[self.scores].astype(np.float64)
        if not len(boxes):
            return boxes, np.zeros((0, 1))
        if self.labels is None:
            scores = scores.reshape(len(boxes), -1)
            return boxes, scores[:, 1:] if self.background else scores
        labels = np.maximum(arrays[self.labels].reshape(-1).astype(np.int64), 0)
        table = np.zeros((len(boxes), int(labels.max(initial=0)) + 1))
        table[np.arange(len(boxes)), labels] = scores.reshape(-1)
        return boxes, table


Head = Yolo | PicoDet | Corners


def detect(
    head: Head, arrays: Arrays, least: float = LEAST_SCORE, overlap: float = OVERLAP
) -> Detections:
    """What a detector's outputs say: boxes with scores of at least `least`, without those that
    overlap a better one of the same class by more than `overlap`."""
    boxes, scores = head.candidates(arrays)
    if not scores.size:
        return Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64))
    best = scores.max(axis=1)
    order = np.argsort(-best, kind="stable")[:MOST_CANDIDATES]
    order = order[best[order] >= least]
    found = Detections(boxes[order], best[order], scores[order].argmax(axis=1))
    return suppressed(found, overlap)


def suppressed(found: Detections, overlap: float = OVERLAP) -> Detections:
    """Detections, highest scores first, without those that overlap an earlier one of their class."""
    kept: list[int] = []
    alive = np.ones(len(found), bool)
    for index in range(len(found)):
        if not alive[index]:
            continue
        kept.append(index)
        same = found.classes == found.classes[index]
        alive &= ~(same & (overlaps(found.boxes[index], found.boxes) > overlap))
    return found.chosen(np.array(kept, np.int64))


def overlaps(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Intersection over union of a box [4] with each of boxes [n, 4]; 0 for boxes without area."""
    lower = np.maximum(box[:2], boxes[:, :2])
    upper = np.minimum(box[2:], boxes[:, 2:])
    common = np.prod(np.maximum(upper - lower, 0), axis=1)
    own = np.prod(np.maximum(box[2:] - box[:2], 0))
    theirs = np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=1)
    union = own + theirs - common
    return np.divide(common, union, out=np.zeros(len(boxes)), where=union > 0)


def recognise(results: Sequence[Arrays], size: Size) -> Head | None:
    """The head that gave `results`, all outputs of a float model for some images of `size`; None
    where it is unsure.

    Shapes must be those of a family exactly, and values within what boxes and scores can be.
    """
    floats = [name for name, array in results[0].items() if array.dtype.kind == "f"]
    if any(not np.isfinite(result[name]).all() for result in results for name in floats):
        return None
    if len(floats) == 1:
        return _yolo(floats[0], results, size)
    return _pico_det(floats, results, size) or _corners(floats, results)


def _yolo(name: str, results: Sequence[Arrays], size: Size) -> Yolo | None:
    shape = results[0][name].shape
    if len(shape) != 3 or shape[0] != 1:
        return None
    # One box for each cell of three or four grids, or three (anchors).
    grids = {anchors * _count(size, s): (anchors, s) for s in STRIDES for anchors in (1, 3)}
    rows = shape[1] in grids
    if rows == (shape[2] in grids):
        return None
    anchors, strides = grids[shape[1] if rows else shape[2]]
    channels = shape[2] if rows else shape[1]
    if channels < 5:
        return None
    values = np.concatenate([result[name][0] if rows else result[name][0].T for result in results])
    if not _probabilities(values[:, 4:]):
        return None
    objectness = rows and channels > 5
    if _in_pixels(values, size):
        return Yolo(name, rows, objectness)
    # Offsets are a few cells, and sizes are logarithms.
    if rows and anchors == 1 and np.abs(values[:, :4]).max() < 20 and values[:, 2:4].min() < 0:
        return Yolo(name, rows, objectness, strides, size)
    return None


def _in_pixels(values: np.ndarray, size: Size) -> bool:
    """Whether the first four columns are centre, width and height within an image, give or take a
    few boxes."""
    extent = np.array([size[1], size[0]], np.float64)
    centres, sizes = values[:, 0:2], values[:, 2:4]
    inside = (centres > -0.5 * extent) & (centres < 1.5 * extent)
    # In units of the image nothing would be larger than one.
    wide = centres.max(axis=0) > 0.5 * extent
    positive = (sizes >= 0) & (sizes < 4 * extent)
    return bool(inside.mean() > 0.99 and wide.all() and positive.mean() > 0.99)


def _pico_det(floats: Sequence[str], results: Sequence[Arrays], size: Size) -> PicoDet | None:
    shapes = {name: results[0][name].shape for name in floats}
    if any(len(shape) != 3 or shape[0] != 1 for shape in shapes.values()):
        return None
    for strides in STRIDES:
        if len(floats) != 2 * len(strides):
            continue
        pairs = [
            [n for n in floats if shapes[n][1] == _count(size, (stride,))] for stride in strides
        ]
        if any(len(pair) != 2 for pair in pairs):
            continue
        scores = [name for pair in pairs for name in pair if _all_probabilities(name, results)]
        distances = [name for pair in pairs for name in pair if name not in scores]
        if len(scores) != len(distances) or [shapes[n][1] for n in scores] != [
            shapes[n][1] for n in distances
        ]:
            continue
        if len({shapes[n][2] for n in scores}) == 1 and _same_bins(
            [shapes[n][2] for n in distances]
        ):
            return PicoDet(tuple(scores), tuple(distances), strides, size)
    return None


def _same_bins(widths: Sequence[int]) -> bool:
    """Four distributions of the same number of bins, in each output."""
    return len(set(widths)) == 1 and widths[0] % 4 == 0 and widths[0] >= 16


def _corners(floats: Sequence[str], results: Sequence[Arrays]) -> Corners | None:
    boxes = [name for name in floats if _are_corners(name, results)]
    if len(floats) != 2 or len(boxes) != 1:
        return None
    (scores,) = (name for name in floats if name != boxes[0])
    shape = results[0][scores].shape
    wide = len(shape) == 3
    if not 1 <= len(shape) <= 3 or (wide and shape[0] != 1) or (len(shape) == 2 and shape[0] != 1):
        return None
    places = 1 if len(shape) > 1 else 0
    for result in results:
        if result[scores].shape[places] != result[boxes[0]].size // 4:
            return None
    if not _all_probabilities(scores, results):
        return None
    if not wide:
        labels = [
            name
            for name, array in results[0].items()
            if array.dtype.kind in "iu" and array.shape == results[0][scores].shape
        ]
        return Corners(boxes[0], scores, labels[0] if len(labels) == 1 else None)
    sums = np.concatenate([result[scores].sum(axis=2).reshape(-1) for result in results])
    one = bool(len(sums)) and bool(np.abs(sums - 1).max() < 0.01)
    # A softmax has a class that says nothing is there.
    return Corners(boxes[0], scores, background=one and shape[2] > 1)


def _are_corners(name: str, results: Sequence[Arrays]) -> bool:
    shape = results[0][name].shape
    if shape[-1:] != (4,) or len(shape) not in (2, 3) or (len(shape) == 3 and shape[0] != 1):
        return False
    values = np.concatenate([result[name].reshape(-1, 4) for result in results])
    if len(values) < 2 or np.ptp(values) == 0:
        return False
    ordered = (values[:, 2] >= values[:, 0]) & (values[:, 3] >= values[:, 1])
    return bool(ordered.mean() > 0.99)


def _all_probabilities(name: str, results: Sequence[Arrays]) -> bool:
    return all(_probabilities(result[name]) for result in results)


def _probabilities(values: np.ndarray) -> bool:
    return bool(values.min(initial=0) >= -ROUNDING and values.max(initial=0) <= 1 + ROUNDING)


def _count(size: Size, strides: Sequence[int]) -> int:
    """Cells of the grids with these strides over an image."""
    return sum(-(-size[0] // stride) * -(-size[1] // stride) for stride in strides)


def _cells(size: Size, strides: Sequence[int], offset: float) -> tuple[np.ndarray, np.ndarray]:
    """(places [N, 2] of cells in pixels, x first, `offset` cells behind their corner; strides [N,
    1])."""
    places, steps = [], []
    for stride in strides:
        rows, columns = np.mgrid[: -(-size[0] // stride), : -(-size[1] // stride)]
        grid = np.stack([columns.reshape(-1), rows.reshape(-1)], axis=1)
        places.append((grid + offset) * stride)
        steps.append(np.full((len(grid), 1), stride))
    return np.concatenate(places).astype(np.float64), np.concatenate(steps).astype(np.float64)
