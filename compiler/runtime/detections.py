"""Boxes from the outputs of object detectors, for the families that shape and range tell apart.

| head | outputs |
|---|---|
| YOLOv8, v9, v11 | [1, 4 + C, N]: centre, width, height in pixels; scores of C classes |
| YOLOv5, v7, YOLOX | [1, N, 5 + C]: the same with objectness in front of the scores |
| YOLOX without decoding | [1, N, 5 + C]: offsets in cells, logarithms of sizes in cells |
| YOLOv8, v9, v11, raw | distributions of four distances [1, N, 4 * bins] beside logits [1, N, C] |
| PicoDet | for each stride scores [1, n, C] and distributions of four distances [1, n, 4 * bins] |
| SSD, or after suppression | corners [N, 4] or [1, N, 4] beside scores [N], [1, N] or [1, N, C], \
and labels, if any |

A head here says which outputs hold what, and decodes them; `recognition.recognise` finds the head
of a model. A box is given by its corners, [left, top, right, bottom].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from compiler.runtime.manifest import HeadEntry

Arrays = Mapping[str, np.ndarray]
Size = tuple[int, int]
"""(height, width) of a detector's image, in pixels."""

LEAST_SCORE = 0.25
# Intersection over union beyond which two boxes of a class count as one object.
OVERLAP = 0.45
# Candidates of one image that suppression looks at, the best ones.
MOST_CANDIDATES = 2000
# exp of it still is far from the largest float64, and no box has e^20 cells.
_LARGEST_LOGARITHM = 20
# exp of it is finite; the scores of all lower logits are zero as well.
_LEAST_LOGIT = -500


@dataclass(frozen=True)
class Detections:
    """What is found in an image, highest scores first: `boxes` [n, 4], `scores` [n] and `classes`
    [n]. Boxes are left, top, right, bottom in pixels; those of `Corners` have the model's order and
    unit."""

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
    """All boxes in one output.

    `rows`: each box is a row, not a column. `objectness` stands in front of the scores and
    multiplies them. `cells`: boxes are in cells of the grids with these strides, over an image of
    `size`; without, they are in pixels.
    """

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
        if not self.rows:
            values = values.T
        centres = values[:, 0:2]
        extents = values[:, 2:4]
        if self.cells:
            corners, strides = cells(self.size, self.cells, 0.0)
            limit = _LARGEST_LOGARITHM
            centres = centres * strides + corners
            extents = np.exp(np.clip(extents, -limit, limit)) * strides
        boxes = np.concatenate([centres - extents / 2, centres + extents / 2], axis=1)
        scores = values[:, 4:]
        if self.objectness:
            scores = values[:, 5:] * values[:, 4:5]
        return boxes, scores


@dataclass(frozen=True)
class Distances:
    """The raw heads of YOLOv8, v9 and v11, as they leave the Edge TPU: distributions of the
    distances from the middle of a cell to the four sides of its box, and logits of classes."""

    boxes: str
    scores: str
    strides: tuple[int, ...]
    size: Size

    axis = 2
    splits = ()

    @property
    def outputs(self) -> tuple[str, ...]:
        return self.boxes, self.scores

    def candidates(self, arrays: Arrays) -> tuple[np.ndarray, np.ndarray]:
        """(boxes [N, 4], scores [N, C])."""
        logits = arrays[self.scores][0].astype(np.float64)
        scores = 1 / (1 + np.exp(-np.maximum(logits, _LEAST_LOGIT)))
        return _around_cells(arrays[self.boxes][0], self.strides, self.size), scores


@dataclass(frozen=True)
class PicoDet:
    """A pair of outputs for each stride: scores, and distributions of the distances from the middle
    of a cell to the four sides of its box."""

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
        """(boxes [N, 4], scores [N, C])."""
        scores = _joined(self.scores, arrays)
        logits = _joined(self.distances, arrays)
        return _around_cells(logits, self.strides, self.size), scores


def _around_cells(logits: np.ndarray, strides: Sequence[int], size: Size) -> np.ndarray:
    """Boxes [N, 4] whose sides lie around the middles of cells, by distributions [N, 4 * bins] of
    their distances."""
    logits = logits.astype(np.float64).reshape(len(logits), 4, -1)
    # The distance is the mean of a distribution over 0, 1, 2, ... strides.
    weights = np.exp(logits - logits.max(axis=2, keepdims=True))
    weights /= weights.sum(axis=2, keepdims=True)
    middles, widths = cells(size, strides, 0.5)
    distances = (weights @ np.arange(logits.shape[2])) * widths
    boxes = [middles - distances[:, :2], middles + distances[:, 2:]]
    return np.concatenate(boxes, axis=1)


def _joined(names: Sequence[str], arrays: Arrays) -> np.ndarray:
    """Outputs [1, n, channels] of all strides as one [N, channels]."""
    joined: np.ndarray = np.concatenate([arrays[name][0] for name in names])
    return joined.astype(np.float64)


@dataclass(frozen=True)
class Corners:
    """Corners in one output, scores in another, and labels in a third where a box has one score.

    `background`: class 0 says that nothing is there.
    """

    boxes: str
    scores: str
    labels: str | None = None
    background: bool = False

    axis = -1
    splits = ()

    @property
    def outputs(self) -> tuple[str, ...]:
        if self.labels is None:
            return self.boxes, self.scores
        return self.boxes, self.scores, self.labels

    def candidates(self, arrays: Arrays) -> tuple[np.ndarray, np.ndarray]:
        """(boxes [N, 4], scores [N, C])."""
        boxes = arrays[self.boxes].reshape(-1, 4).astype(np.float64)
        scores = arrays[self.scores].astype(np.float64)
        if not len(boxes):
            return boxes, np.zeros((0, 1))
        if self.labels is not None:
            labels = arrays[self.labels].reshape(-1).astype(np.int64)
            return boxes, _score_table(scores.reshape(-1), labels)
        scores = scores.reshape(len(boxes), -1)
        if self.background:
            scores = scores[:, 1:]
        return boxes, scores


def _score_table(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Scores [N, C] of boxes that have a score [N] for one class, their label [N], each."""
    # Where boxes are padded to a fixed number, -1 may stand for no label.
    labels = np.maximum(labels, 0)
    table = np.zeros((len(labels), int(labels.max(initial=0)) + 1))
    table[np.arange(len(labels)), labels] = scores
    return table


Head = Yolo | Distances | PicoDet | Corners


def head_of(entry: HeadEntry, size: Size) -> Head:
    """The head that a manifest describes, over an image of `size`."""
    if entry["kind"] == "yolo":
        strides = tuple(entry["strides"])
        return Yolo(entry["output"], entry["rows"], entry["objectness"], strides, size)
    if entry["kind"] == "distances":
        return Distances(entry["boxes"], entry["scores"], tuple(entry["strides"]), size)
    if entry["kind"] == "picodet":
        scores, distances = tuple(entry["scores"]), tuple(entry["distances"])
        return PicoDet(scores, distances, tuple(entry["strides"]), size)
    return Corners(entry["boxes"], entry["scores"], entry["labels"], entry["background"])


def entry_of(head: Head) -> HeadEntry:
    """What a manifest says of a head: `head_of` makes the same head of it."""
    if isinstance(head, Yolo):
        return {
            "kind": "yolo",
            "output": head.output,
            "rows": head.rows,
            "objectness": head.objectness,
            "strides": list(head.cells),
        }
    if isinstance(head, Distances):
        return {
            "kind": "distances",
            "boxes": head.boxes,
            "scores": head.scores,
            "strides": list(head.strides),
        }
    if isinstance(head, PicoDet):
        return {
            "kind": "picodet",
            "scores": list(head.scores),
            "distances": list(head.distances),
            "strides": list(head.strides),
        }
    return {
        "kind": "corners",
        "boxes": head.boxes,
        "scores": head.scores,
        "labels": head.labels,
        "background": head.background,
    }


def detect(
    head: Head, arrays: Arrays, least: float = LEAST_SCORE, overlap: float = OVERLAP
) -> Detections:
    """What a detector's outputs say: boxes whose best class scores at least `least`, without those
    that overlap a better one of the same class by more than `overlap`."""
    boxes, scores = head.candidates(arrays)
    if not scores.size:
        return Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64))
    best = scores.max(axis=1)
    order = np.argsort(-best, kind="stable")[:MOST_CANDIDATES]
    order = order[best[order] >= least]
    found = Detections(boxes[order], best[order], scores[order].argmax(axis=1))
    return suppressed(found, overlap)


def suppressed(found: Detections, overlap: float = OVERLAP) -> Detections:
    """Detections, highest scores first, without those that overlap an earlier one of their class
    (non-maximum suppression)."""
    kept: list[int] = []
    alive = np.ones(len(found), bool)
    for index in range(len(found)):
        if not alive[index]:
            continue
        kept.append(index)
        same_class = found.classes == found.classes[index]
        overlapping = overlaps(found.boxes[index], found.boxes) > overlap
        alive &= ~(same_class & overlapping)
    return found.chosen(np.array(kept, np.int64))


def overlaps(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Intersection over union of a box [4] with each of boxes [n, 4]; 0 for boxes without area."""
    lower = np.maximum(box[:2], boxes[:, :2])
    upper = np.minimum(box[2:], boxes[:, 2:])
    common = _areas(lower, upper)
    own = _areas(box[:2], box[2:])
    theirs = _areas(boxes[:, :2], boxes[:, 2:])
    union = own + theirs - common
    shares: np.ndarray = np.divide(common, union, out=np.zeros(len(boxes)), where=union > 0)
    return shares


def _areas(lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """Areas [n] between corners [n, 2]; 0 where they are in the wrong order."""
    areas: np.ndarray = np.prod(np.maximum(upper - lower, 0), axis=-1)
    return areas


def cell_count(size: Size, strides: Sequence[int]) -> int:
    """Cells of the grids with these strides over an image of `size`."""
    count = 0
    for stride in strides:
        rows, columns = _grid(size, stride)
        count += rows * columns
    return count


def cells(size: Size, strides: Sequence[int], offset: float) -> tuple[np.ndarray, np.ndarray]:
    """The cells of the grids with these strides over an image: a point of each in pixels [N, 2], x
    first and `offset` cells from its upper left corner; and its stride [N, 1]."""
    points = []
    widths = []
    for stride in strides:
        row_count, column_count = _grid(size, stride)
        rows, columns = np.mgrid[:row_count, :column_count]
        corners = np.stack([columns.reshape(-1), rows.reshape(-1)], axis=1)
        points.append((corners + offset) * stride)
        widths.append(np.full((len(corners), 1), stride))
    all_points = np.concatenate(points).astype(np.float64)
    all_widths = np.concatenate(widths).astype(np.float64)
    return all_points, all_widths


def _grid(size: Size, stride: int) -> tuple[int, int]:
    """Rows and columns of cells; the last ones may reach beyond the image."""
    height, width = size
    return -(-height // stride), -(-width // stride)
