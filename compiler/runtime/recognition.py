"""Which detector's head gave some outputs, told by their shapes and values.

What fits no family exactly is not recognised: a wrong reading is worse than none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from compiler.runtime.detections import (
    Arrays,
    Corners,
    Distances,
    Head,
    PicoDet,
    Size,
    Yolo,
    cell_count,
)

# An output's arrays, one for each image.
Images = Sequence[np.ndarray]
Shape = tuple[int, ...]

STRIDES = ((8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32))
# How far off 0 and 1 a probability may be, and the sum of a softmax.
ROUNDING = 1e-3
_SOFTMAX_ROUNDING = 0.01
# The share of boxes that must be as a family's are; a network gives a few that make no sense.
_NEARLY_ALL = 0.99
# Offsets and logarithms of sizes are a few cells.
_FEW_CELLS = 20
_LEAST_BINS = 4  # of a distribution of distances
_YOLO_BINS = 16  # those of YOLOv8, v9 and v11
# Nearly all cells show nothing of a class: the share of positive logits is less than this.
_FEW_POSITIVE = 0.1


def recognise(results: Sequence[Arrays], size: Size) -> Head | None:
    """The head that gave `results`, which are all outputs of a float model for some images of
    `size`; None where it is unsure."""
    outputs: dict[str, list[np.ndarray]] = {}
    for name, array in results[0].items():
        if array.dtype.kind == "f":
            outputs[name] = [result[name] for result in results]
    for images in outputs.values():
        if not all(np.isfinite(array).all() for array in images):
            return None
    if len(outputs) == 1:
        ((name, images),) = outputs.items()
        return _yolo(name, images, size)
    return _distances(outputs, size) or _pico_det(outputs, size) or _corners(outputs, results[0])


def _yolo(name: str, images: Images, size: Size) -> Yolo | None:
    shape = images[0].shape
    if len(shape) != 3 or shape[0] != 1:
        return None
    grids = _grids(size)
    rows = shape[1] in grids
    columns = shape[2] in grids
    if rows == columns:
        return None  # no axis has a box for each cell, or both have
    tables = [array[0] if rows else array[0].T for array in images]
    count, channels = tables[0].shape
    values = np.concatenate(tables)
    if channels < 5 or not _are_probabilities(values[:, 4:]):
        return None
    # YOLOv8 has columns and no objectness, older ones have rows and objectness.
    objectness = rows and channels > 5
    if _are_pixels(values, size):
        return Yolo(name, rows, objectness)
    grid = grids[count]
    if rows and grid.anchors == 1 and _are_in_cells(values):
        return Yolo(name, rows, objectness, grid.strides, size)
    return None


class _Grid(NamedTuple):
    """Where a network looks for boxes: `anchors` at each cell of the grids with these strides."""

    anchors: int
    strides: tuple[int, ...]


def _grids(size: Size) -> dict[int, _Grid]:
    """The grids that networks have, by the number of their boxes."""
    grids = {}
    for strides in STRIDES:
        for anchors in (1, 3):
            grids[anchors * cell_count(size, strides)] = _Grid(anchors, strides)
    return grids


def _are_pixels(values: np.ndarray, size: Size) -> bool:
    """Whether the first four columns are centre, width and height in pixels of the image."""
    height, width = size
    extent = np.array([width, height], np.float64)
    centres = values[:, 0:2]
    sizes = values[:, 2:4]
    inside = (centres > -0.5 * extent) & (centres < 1.5 * extent)
    if inside.mean() <= _NEARLY_ALL:
        return False
    # Boxes in units of the image lie inside as well, but no centre is beyond 1.
    spread = centres.max(axis=0) > 0.5 * extent
    if not spread.all():
        return False
    possible = (sizes >= 0) & (sizes < 4 * extent)
    return bool(possible.mean() > _NEARLY_ALL)


def _are_in_cells(values: np.ndarray) -> bool:
    """Whether the first four columns are offsets in cells and logarithms of sizes in cells."""
    largest = np.abs(values[:, :4]).max()
    # Boxes smaller than a cell have negative logarithms.
    smallest_size = values[:, 2:4].min()
    return bool(largest < _FEW_CELLS and smallest_size < 0)


def _distances(outputs: Mapping[str, Images], size: Size) -> Distances | None:
    """Of two outputs [1, N, channels], the one with 4 * 16 bins is that of boxes."""
    shapes = {name: images[0].shape for name, images in outputs.items()}
    if len(shapes) != 2 or any(len(shape) != 3 or shape[0] != 1 for shape in shapes.values()):
        return None
    boxes = [name for name, shape in shapes.items() if shape[2] == 4 * _YOLO_BINS]
    counts = {shape[1] for shape in shapes.values()}
    if len(boxes) != 1 or len(counts) != 1:
        return None  # with as many classes, both look alike
    (scores,) = (name for name in shapes if name != boxes[0])
    grid = _grids(size).get(counts.pop())
    if grid is None or grid.anchors != 1:
        return None
    positive = np.mean([np.mean(array > 0) for array in outputs[scores]])
    if positive >= _FEW_POSITIVE or _all_probabilities(outputs[scores]):
        return None
    return Distances(boxes[0], scores, grid.strides, size)


def _pico_det(outputs: Mapping[str, Images], size: Size) -> PicoDet | None:
    shapes = {name: images[0].shape for name, images in outputs.items()}
    if any(len(shape) != 3 or shape[0] != 1 for shape in shapes.values()):
        return None
    for strides in STRIDES:
        names = _by_stride(shapes, strides, size)
        if names is None:
            continue
        scores = [name for name in names if _all_probabilities(outputs[name])]
        distances = [name for name in names if name not in scores]
        score_shapes = [shapes[name] for name in scores]
        distance_shapes = [shapes[name] for name in distances]
        if _are_pairs(score_shapes, distance_shapes):
            return PicoDet(tuple(scores), tuple(distances), strides, size)
    return None


def _by_stride(shapes: Mapping[str, Shape], strides: Sequence[int], size: Size) -> list[str] | None:
    """The outputs [1, n, channels] in the order of the strides, where there are two for each."""
    if len(shapes) != 2 * len(strides):
        return None
    ordered = []
    for stride in strides:
        count = cell_count(size, (stride,))
        pair = [name for name, shape in shapes.items() if shape[1] == count]
        if len(pair) != 2:
            return None
        ordered += pair
    return ordered


def _are_pairs(scores: Sequence[Shape], distances: Sequence[Shape]) -> bool:
    """Whether these shapes are scores of the same classes and distances of the same bins, one pair
    for each stride."""
    score_counts = [shape[1] for shape in scores]
    distance_counts = [shape[1] for shape in distances]
    if score_counts != distance_counts:
        return False
    classes = {shape[2] for shape in scores}
    widths = {shape[2] for shape in distances}
    if len(classes) != 1 or len(widths) != 1:
        return False
    width = widths.pop()
    return width % 4 == 0 and width >= 4 * _LEAST_BINS


def _corners(outputs: Mapping[str, Images], result: Arrays) -> Corners | None:
    """`result` has the labels too, which are whole numbers."""
    corners = [name for name, images in outputs.items() if _are_corners(images)]
    if len(outputs) != 2 or len(corners) != 1:
        return None
    (boxes,) = corners
    (scores,) = (name for name in outputs if name != boxes)
    shape = outputs[scores][0].shape
    if not _is_score_shape(shape) or not _all_probabilities(outputs[scores]):
        return None
    # Suppression leaves another number of boxes in each image, but always a score for each.
    box_axis = 0 if len(shape) == 1 else 1
    for box_array, score_array in zip(outputs[boxes], outputs[scores], strict=True):
        if score_array.shape[box_axis] != box_array.size // 4:
            return None
    if len(shape) < 3:
        return Corners(boxes, scores, _labels(result, shape))
    # A softmax over the classes has one that says nothing is there.
    background = shape[2] > 1 and _are_softmax(outputs[scores])
    return Corners(boxes, scores, background=background)


def _are_corners(images: Images) -> bool:
    """Whether an output is [N, 4] or [1, N, 4], with right and bottom not before left and top."""
    shape = images[0].shape
    batch = shape[:-2]
    if len(shape) < 2 or shape[-1] != 4 or batch not in ((), (1,)):
        return False
    values = np.concatenate([array.reshape(-1, 4) for array in images])
    if len(values) < 2 or np.ptp(values) == 0:
        return False  # too little to tell
    ordered = values[:, 2:] >= values[:, :2]
    return bool(ordered.all(axis=1).mean() > _NEARLY_ALL)


def _is_score_shape(shape: Shape) -> bool:
    """[N], [1, N] or [1, N, C]."""
    if len(shape) == 1:
        return True
    return len(shape) in (2, 3) and shape[0] == 1


def _labels(result: Arrays, shape: Shape) -> str | None:
    """The one output of whole numbers that has a label for each score."""
    names = []
    for name, array in result.items():
        if array.dtype.kind in "iu" and array.shape == shape:
            names.append(name)
    return names[0] if len(names) == 1 else None


def _are_softmax(images: Images) -> bool:
    """Whether scores [1, N, C] add up to one over the classes."""
    sums = np.concatenate([array.sum(axis=2).reshape(-1) for array in images])
    if not len(sums):
        return False
    return bool(np.abs(sums - 1).max() < _SOFTMAX_ROUNDING)


def _all_probabilities(images: Images) -> bool:
    return all(_are_probabilities(array) for array in images)


def _are_probabilities(values: np.ndarray) -> bool:
    lowest = values.min(initial=0)
    highest = values.max(initial=0)
    return bool(lowest >= -ROUNDING and highest <= 1 + ROUNDING)
