"""Which detector's head gave some outputs, told by their shapes and values.

What fits no family exactly is not recognised: a wrong reading is worse than none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from compiler.runtime.detections import Arrays, Corners, Head, PicoDet, Size, Yolo, cell_count

STRIDES = ((8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32))
# How far off 0 and 1 a probability may be, and the sum of a softmax.
ROUNDING = 1e-3
_SOFTMAX_ROUNDING = 0.01
# The share of boxes that must be as a family's are; a network gives a few that make no sense.
_NEARLY_ALL = 0.99
# Offsets and logarithms of sizes are a few cells.
_FEW_CELLS = 20
_LEAST_BINS = 4  # of a distribution of distances


def recognise(results: Sequence[Arrays], size: Size) -> Head | None:
    """The head that gave `results`, which are all outputs of a float model for some images of
    `size`; None where it is unsure."""
    floats = [name for name, array in results[0].items() if array.dtype.kind == "f"]
    for result in results:
        if not all(np.isfinite(result[name]).all() for name in floats):
            return None
    if len(floats) == 1:
        return _yolo(floats[0], results, size)
    return _pico_det(floats, results, size) or _corners(floats, results)


def _yolo(name: str, results: Sequence[Arrays], size: Size) -> Yolo | None:
    shape = results[0][name].shape
    if len(shape) != 3 or shape[0] != 1:
        return None
    grids = _grids(size)
    rows = shape[1] in grids
    columns = shape[2] in grids
    if rows == columns:
        return None  # no axis has a box for each cell, or both have
    boxes = [result[name][0] for result in results]
    if columns:
        boxes = [image.T for image in boxes]
    values = np.concatenate(boxes)
    count, channels = boxes[0].shape
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


def _pico_det(floats: Sequence[str], results: Sequence[Arrays], size: Size) -> PicoDet | None:
    shapes = {name: results[0][name].shape for name in floats}
    if any(len(shape) != 3 or shape[0] != 1 for shape in shapes.values()):
        return None
    for strides in STRIDES:
        outputs = _by_stride(shapes, strides, size)
        if outputs is None:
            continue
        scores = [name for name in outputs if _all_probabilities(name, results)]
        distances = [name for name in outputs if name not in scores]
        if _are_pairs([shapes[name] for name in scores], [shapes[name] for name in distances]):
            return PicoDet(tuple(scores), tuple(distances), strides, size)
    return None


def _by_stride(
    shapes: dict[str, tuple[int, ...]], strides: Sequence[int], size: Size
) -> list[str] | None:
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


def _are_pairs(scores: Sequence[tuple[int, ...]], distances: Sequence[tuple[int, ...]]) -> bool:
    """Whether these shapes are scores of the same classes and distances of the same bins, one pair
    for each stride."""
    score_counts = [shape[1] for shape in scores]
    distance_counts = [shape[1] for shape in distances]
    classes = {shape[2] for shape in scores}
    widths = {shape[2] for shape in distances}
    if score_counts != distance_counts or len(classes) != 1 or len(widths) != 1:
        return False
    width = widths.pop()
    return width % 4 == 0 and width >= 4 * _LEAST_BINS


def _corners(floats: Sequence[str], results: Sequence[Arrays]) -> Corners | None:
    boxes = [name for name in floats if _are_corners(name, results)]
    if len(floats) != 2 or len(boxes) != 1:
        return None
    (scores,) = (name for name in floats if name != boxes[0])
    shape = results[0][scores].shape
    if not _is_score_shape(shape) or not _all_probabilities(scores, results):
        return None
    # Suppression gives other numbers of boxes for other images, but a score for each.
    box_axis = 0 if len(shape) == 1 else 1
    for result in results:
        if result[scores].shape[box_axis] != result[boxes[0]].size // 4:
            return None
    if len(shape) < 3:
        return Corners(boxes[0], scores, _labels(results[0], shape))
    # A softmax over the classes has one that says nothing is there.
    background = shape[2] > 1 and _are_softmax(scores, results)
    return Corners(boxes[0], scores, background=background)


def _are_corners(name: str, results: Sequence[Arrays]) -> bool:
    """Whether an output is [N, 4] or [1, N, 4], with right and bottom not before left and top."""
    shape = results[0][name].shape
    batch = shape[:-2]
    if len(shape) < 2 or shape[-1] != 4 or batch not in ((), (1,)):
        return False
    values = np.concatenate([result[name].reshape(-1, 4) for result in results])
    if len(values) < 2 or np.ptp(values) == 0:
        return False  # too little to tell
    ordered = values[:, 2:] >= values[:, :2]
    return bool(ordered.all(axis=1).mean() > _NEARLY_ALL)


def _is_score_shape(shape: Sequence[int]) -> bool:
    """[N], [1, N] or [1, N, C]."""
    if len(shape) == 1:
        return True
    return len(shape) in (2, 3) and shape[0] == 1


def _labels(result: Arrays, shape: tuple[int, ...]) -> str | None:
    """The one output of whole numbers that has a label for each score."""
    names = []
    for name, array in result.items():
        if array.dtype.kind in "iu" and array.shape == shape:
            names.append(name)
    return names[0] if len(names) == 1 else None


def _are_softmax(name: str, results: Sequence[Arrays]) -> bool:
    """Whether scores [1, N, C] add up to one over the classes."""
    sums = np.concatenate([result[name].sum(axis=2).reshape(-1) for result in results])
    return bool(len(sums)) and bool(np.abs(sums - 1).max() < _SOFTMAX_ROUNDING)


def _all_probabilities(name: str, results: Sequence[Arrays]) -> bool:
    return all(_are_probabilities(result[name]) for result in results)


def _are_probabilities(values: np.ndarray) -> bool:
    lowest = values.min(initial=0)
    highest = values.max(initial=0)
    return bool(lowest >= -ROUNDING and highest <= 1 + ROUNDING)
