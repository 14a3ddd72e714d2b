"""Boxes from the outputs of detectors: overlaps, suppression and each head, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from compiler.runtime.detections import (
    Corners,
    Detections,
    Distances,
    Head,
    PicoDet,
    Yolo,
    detect,
    entry_of,
    head_of,
    overlaps,
    suppressed,
)
from compiler.runtime.recognition import recognise

SIZE = (64, 64)
CELLS = 64 + 16 + 4  # of strides 8, 16 and 32


def test_overlaps() -> None:
    """A box of 10 by 10 with itself, half of it, one beside it and one without area."""
    box = np.array([0.0, 0, 10, 10])
    others = np.array([[0.0, 0, 10, 10], [5, 0, 15, 10], [10, 0, 20, 10], [3, 3, 3, 3]])
    assert overlaps(box, others) == pytest.approx([1, 50 / 150, 0, 0])


def test_suppression_keeps_the_best_of_its_class() -> None:
    boxes = np.array([[0.0, 0, 10, 10], [1, 0, 11, 10], [1, 0, 11, 10], [30, 30, 40, 40]])
    found = suppressed(Detections(boxes, np.array([0.9, 0.8, 0.7, 0.6]), np.array([0, 0, 1, 0])))
    assert found.scores.tolist() == [0.9, 0.7, 0.6]


def head_output(rows: bool, objectness: bool) -> np.ndarray:
    """One box of class 1, 20 by 10 around (32, 16), in cell 5, and many that say nothing."""
    values = np.zeros((CELLS, 7 if objectness else 6), np.float32)
    values[:, :4] = np.random.default_rng(0).uniform(20, 60, (CELLS, 4))
    values[5, :4] = 32, 16, 20, 10
    values[5, -1] = 0.8
    if objectness:
        values[5, 4] = 0.5
    return (values if rows else values.T)[None]


@pytest.mark.parametrize(("rows", "objectness", "score"), [(False, False, 0.8), (True, True, 0.4)])
def test_yolo(rows: bool, objectness: bool, score: float) -> None:
    results = [{"out": head_output(rows, objectness)}]
    head = recognise(results, SIZE)
    assert head == Yolo("out", rows, objectness)
    found = detect(head, results[0])
    assert found.boxes.tolist() == [[22, 11, 42, 21]]
    assert found.scores == pytest.approx([score]) and found.classes.tolist() == [1]


def test_yolox_without_decoding() -> None:
    """The cell of stride 16 in row 1, column 2: offsets 0.5 and 0.25, sizes e^0 = 1 and 2 cells."""
    values = np.zeros((1, CELLS, 7), np.float32)
    values[..., 2:4] = -1
    values[0, 64 + 4 + 2] = 0.5, 0.25, 0, np.log(2), 1, 0, 1
    head = recognise([{"out": values}], SIZE)
    assert head == Yolo("out", True, True, (8, 16, 32), SIZE)
    (box,) = detect(head, {"out": values}).boxes
    assert box == pytest.approx([40 - 8, 20 - 16, 40 + 8, 20 + 16], abs=1e-4)


def raw_heads() -> dict[str, np.ndarray]:
    """All weight of a distribution on bins 1, 2, 3 and 4 of the cell of stride 16 in row 1, column
    2, whose logit of class 1 is 1; all other logits are -6."""
    arrays = {
        "boxes": np.zeros((1, CELLS, 64), np.float32),
        "scores": np.full((1, CELLS, 3), -6, np.float32),
    }
    cell = 64 + 4 + 2
    arrays["scores"][0, cell, 1] = 1
    for side, bin_ in enumerate((1, 2, 3, 4)):
        arrays["boxes"][0, cell, 16 * side + bin_] = 50
    return arrays


def test_distances() -> None:
    arrays = raw_heads()
    head = recognise([arrays], SIZE)
    assert head == Distances("boxes", "scores", (8, 16, 32), SIZE)
    found = detect(head, arrays)
    assert found.boxes[0] == pytest.approx([40 - 16, 24 - 32, 40 + 48, 24 + 64])
    assert found.scores == pytest.approx([1 / (1 + np.exp(-1))])
    assert found.classes.tolist() == [1]


def test_raw_heads_of_unsure_meaning_are_not_recognised() -> None:
    arrays = raw_heads()
    as_many_classes = np.full((1, CELLS, 64), -6, np.float32)
    assert recognise([arrays | {"scores": as_many_classes}], SIZE) is None
    features = -arrays["scores"]
    assert recognise([arrays | {"scores": features}], SIZE) is None
    assert recognise([{name: array[:, 1:] for name, array in arrays.items()}], SIZE) is None


@pytest.mark.parametrize(
    "head",
    [
        Yolo("y", rows=True, objectness=True, cells=(8, 16, 32), size=SIZE),
        Yolo("y", rows=False, objectness=False, size=SIZE),
        Distances("b", "s", (8, 16, 32), SIZE),
        PicoDet(("s8", "s16"), ("d8", "d16"), (8, 16), SIZE),
        Corners("b", "s", "l"),
        Corners("b", "s", background=True),
    ],
)
def test_a_manifest_holds_all_of_a_head(head: Head) -> None:
    assert head_of(entry_of(head), SIZE) == head


def test_pico_det() -> None:
    """All weight of a distribution on bins 1, 2, 3 and 4: so many strides from the middle of the
    cell."""
    strides, arrays = (8, 16, 32), {}
    for stride, count in zip(strides, (64, 16, 4), strict=True):
        arrays[f"s{stride}"] = np.zeros((1, count, 3), np.float32)
        arrays[f"d{stride}"] = np.full((1, count, 32), -9, np.float32)
    arrays["s16"][0, 4 * 2 + 1, 2] = 0.9
    for side, bin_ in enumerate((1, 2, 3, 4)):
        arrays["d16"][0, 4 * 2 + 1, side * 8 + bin_] = 50
    head = recognise([arrays], SIZE)
    assert head == PicoDet(("s8", "s16", "s32"), ("d8", "d16", "d32"), strides, SIZE)
    found = detect(head, arrays)
    assert found.boxes[0] == pytest.approx(
        [24 - 16, 40 - 32, 24 + 48, 40 + 64]
    ) and found.classes.tolist() == [2]


def test_corners_with_scores() -> None:
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 0.5, (1, 30, 2))
    boxes = np.concatenate([low, low + 0.2], axis=2).astype(np.float32)
    softmax = np.tile(np.float32([0.9, 0.1]), (1, 30, 1))
    softmax[0, 3] = 0.2, 0.8
    head = recognise([{"boxes": boxes, "scores": softmax}], SIZE)
    assert head == Corners("boxes", "scores", background=True)
    found = detect(head, {"boxes": boxes, "scores": softmax})
    assert found.boxes[0] == pytest.approx(boxes[0, 3]) and found.classes.tolist() == [0]
    labelled = {
        "boxes": boxes[0],
        "labels": np.full(30, 5),
        "scores": np.linspace(0.3, 0.9, 30).astype(np.float32),
    }
    head = recognise([labelled], SIZE)
    assert head == Corners("boxes", "scores", "labels")
    assert set(detect(head, labelled).classes) == {5}


@pytest.mark.parametrize("head", [Corners("boxes", "scores"), Corners("boxes", "scores", "labels")])
def test_nothing_is_found_where_there_is_nothing(head: Corners) -> None:
    """As suppression inside a model gives it: no rows at all."""
    arrays = {"boxes": np.zeros((0, 4)), "scores": np.zeros(0), "labels": np.zeros(0, np.int64)}
    assert len(detect(head, arrays)) == 0


@pytest.mark.parametrize(
    "outputs",
    [
        {"features": (1, 6, CELLS)},  # negative: no scores
        {"classes": (1, 1000)},
        {"picture": (1, 3, 64, 64)},
        {"boxes": (1, 30, 4), "scores": (1, 30)},  # corners in no order
        {"states": (1, 128, 384), "pooled": (1, 384)},
    ],
)
def test_what_is_no_detector_is_not_recognised(outputs: dict[str, tuple[int, ...]]) -> None:
    rng = np.random.default_rng(0)
    results = [
        {n: rng.standard_normal(shape).astype(np.float32) for n, shape in outputs.items()}
        for _ in range(2)
    ]
    assert recognise(results, SIZE) is None


def test_another_number_of_boxes_is_not_recognised() -> None:
    output = head_output(False, False)[:, :, :-1]
    assert recognise([{"out": output}], SIZE) is None


def test_normalised_boxes_are_not_pixels() -> None:
    output = head_output(False, False)
    output[:, :4] /= 64
    assert recognise([{"out": output}], SIZE) is None
