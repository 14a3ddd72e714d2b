"""What a user reads off outputs, and where nothing may be said; figures worked out by hand."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from compiler.checks import agreement
from compiler.checks import readings as reading_kinds
from compiler.checks.agreement import readings
from compiler.checks.readings import Boxes, Classes, Mask, Text
from compiler.runtime.detections import Detections, Yolo, head_of
from tests.runtime.test_detections import CELLS, head_output

PICTURE = {"x": np.zeros((1, 3, 64, 64), np.float32)}
RNG = np.random.default_rng(0)


def softmax(scores: np.ndarray) -> np.ndarray:
    grown = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return grown / grown.sum(axis=-1, keepdims=True)


def kinds(
    outputs: list[dict[str, np.ndarray]], layers: dict[str, int] | None = None
) -> list[reading_kinds.Reading]:
    return readings(layers or {}, outputs, [PICTURE] * len(outputs))


def test_probabilities_that_sum_up_to_one_are_classes() -> None:
    wants = [{"y": softmax(RNG.standard_normal((1, 10)))} for _ in range(4)]
    (reading,) = kinds(wants)
    assert reading == Classes("y", 1)
    for number, want in enumerate(wants):
        got = {"y": np.roll(want["y"], 1, axis=1) if number == 0 else want["y"]}
        reading.add(got, want, PICTURE)
    assert reading.report()["top1_agreement"] == 0.75


def test_a_probability_for_each_frame_is_no_class() -> None:
    wants = [{"probabilities": RNG.uniform(0, 1, (1, 32))} for _ in range(4)]
    assert kinds(wants) == []


@pytest.mark.parametrize(
    ("name", "layers", "found"),
    [
        ("logits", {"logits": 10}, [Classes("logits", 1)]),
        ("embedding", {"embedding": 10}, []),
        ("logits", {}, []),
        ("logits", {"logits": 3}, []),
    ],
)
def test_scores_need_a_layer_and_a_name(
    name: str, layers: dict[str, int], found: list[Classes]
) -> None:
    assert kinds([{name: RNG.standard_normal((1, 10))}], layers) == found


def test_a_thousand_scores_are_imagenets() -> None:
    assert kinds([{"495": RNG.standard_normal((1, 1000))}], {"495": 1000}) == [Classes("495", 1)]


def test_the_layer_that_gives_the_scores() -> None:
    text = """<ir_version: 10, opset_import: ["" : 18]>
    g (float[1,4,1,1] x) => (float[1,6] y, float[1,4] z)
    <float[6,4] w = {0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0}, float[6] b = {0,0,0,0,0,0}> {
        flat = Flatten (x)
        made = Gemm <transB = 1> (flat, w)
        y = Add (made, b)
        z = Relu (flat)
    }"""
    assert agreement.scored(ir.from_onnx_text(text).graph) == {"y": 6}


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (softmax(RNG.standard_normal((1, 10))), {"softmax": False}),
        (np.log(softmax(RNG.standard_normal((1, 10)))), {"softmax": True}),
        (softmax(RNG.standard_normal((1, 10, 1, 1)).reshape(1, 10))[..., None, None], None),
        (softmax(RNG.standard_normal((2, 10))), None),
    ],
)
def test_the_task_of_a_classifier(array: np.ndarray, told: dict[str, bool] | None) -> None:
    """One row of scores is a classifier's, as probabilities or not."""
    outputs = [{"y": array}] * 2
    found = agreement.task(kinds(outputs), outputs)
    if told is None:
        assert found == {"task": None}
    else:
        assert found == {"task": "classify", "scores": "y", **told}


def test_the_task_of_a_detector() -> None:
    outputs = [{"out": head_output(False, False)}]
    found = agreement.task(kinds(outputs), outputs)
    assert found["task"] == "detect"
    assert head_of(found["head"], (64, 64)) == Yolo("out", False, False, size=(64, 64))


def test_classes_that_are_nearly_the_best() -> None:
    """Of twelve classes the wanted one is third, sixth, and first."""
    want = {"y": softmax(np.eye(12)[[11, 11, 11]] * 9)}
    (reading,) = kinds([want])
    scores = np.zeros((3, 12))
    scores[0, [1, 2, 11]] = 3, 2, 1
    scores[1, [1, 2, 3, 4, 5, 11]] = 6, 5, 4, 3, 2, 1
    scores[2, 11] = 1
    reading.add({"y": scores}, want, PICTURE)
    found = reading.report()
    assert (found["top1_agreement"], found["top5_agreement"]) == (0.3333, 0.6667)


def test_the_mean_over_classes() -> None:
    """Two of two boxes of one class are found, and none of the only one of another."""
    truth = [detections((0, 0.9, 0), (50, 0.8, 0), (90, 0.7, 1))]
    found = [detections((0, 0.9, 0), (50, 0.8, 0))]
    assert reading_kinds.mean_average_precision(found, truth) == 0.5
    assert reading_kinds.average_precision(found, truth) == pytest.approx(2 / 3)


def test_a_path_collapses() -> None:
    assert reading_kinds.collapsed(np.array([0, 3, 3, 0, 3, 1, 1, 0]), 0) == [3, 3, 1]
    assert reading_kinds.collapsed(np.array([0, 0]), 0) == []


@pytest.mark.parametrize(
    ("got", "want", "count"),
    [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "abc", 0), ("flaw", "lawn", 2)],
)
def test_edits(got: str, want: str, count: int) -> None:
    assert reading_kinds.edits([*map(ord, got)], [*map(ord, want)]) == count


def reader(path: list[int]) -> dict[str, np.ndarray]:
    """Probabilities [1, T, 12] that follow a path."""
    return {"y": softmax(np.eye(12)[path] * 8)[None]}


def test_texts() -> None:
    """Of three lines one is equal; 2 of 9 symbols are wrong: one replaced, one left out."""
    lines = [[0, 1, 0, 2, 0, 3, 0, 0], [0, 4, 0, 0, 5, 0, 6, 0], [7, 0, 8, 0, 9, 0, 0, 0]]
    wants = [reader(path) for path in lines]
    (reading,) = kinds(wants)
    assert reading == Text("y", 0)
    for path, want in zip(
        [lines[0], [0, 4, 0, 0, 5, 0, 10, 0], [7, 0, 0, 0, 9, 0, 0, 0]], wants, strict=True
    ):
        reading.add(reader(path), want, PICTURE)
    assert reading.report() == {"text": {"lines": 3, "equal": 1, "character_error": 0.2222}}


def test_classes_of_tokens_are_no_text() -> None:
    """A model that takes numbers of tokens names each; those that the mask hides do not count."""
    ids = {
        "ids": np.zeros((1, 8), np.int64),
        "attention_mask": np.array([[1, 1, 1, 1, 0, 0, 0, 0]]),
    }
    want = reader([0, 1, 0, 2, 0, 0, 0, 0])
    (reading,) = readings({}, [want], [ids])
    assert reading == Classes("y", 2)
    reading.add(reader([0, 1, 0, 3, 5, 5, 5, 5]), want, ids)
    found = reading.report()
    assert (found["top1_agreement"], found["top5_agreement"]) == (0.75, 1.0)


def test_masks() -> None:
    """100 pixels wanted, 100 found, 50 of them in common."""
    want, got = np.zeros((1, 1, 64, 64)), np.zeros((1, 1, 64, 64))
    want[..., :10, :10] = 0.9
    got[..., :10, 5:15] = 0.9
    (reading,) = kinds([{"y": want}])
    assert reading == Mask("y")
    reading.add({"y": got}, {"y": want}, PICTURE)
    assert reading.report() == {"mask_iou": round(50 / 150, 4)}


def test_features_of_a_picture_are_no_mask() -> None:
    assert kinds([{"y": RNG.standard_normal((1, 1, 64, 64))}]) == []
    assert kinds([{"y": RNG.uniform(0, 1, (1, 1, 32, 32))}]) == []


def detections(*found: tuple[float, float, int]) -> Detections:
    """Boxes of 10 by 10 from (left, score, class)."""
    boxes = np.array([[left, 0, left + 10, 10] for left, _, _ in found], np.float64).reshape(-1, 4)
    return Detections(boxes, np.array([s for _, s, _ in found]), np.array([c for _, _, c in found]))


def test_a_true_box_is_met_once_and_by_its_class() -> None:
    truth = detections((0, 0.9, 0), (50, 0.9, 1))
    found = detections((1, 0.9, 0), (2, 0.8, 0), (50, 0.7, 0), (51, 0.6, 1), (90, 0.5, 1))
    assert reading_kinds.matches(found, truth).tolist() == [True, False, False, True, False]


def test_average_precision() -> None:
    """Right, wrong, right: precision 1 up to a recall of 1/2, 2/3 from there on."""
    truth = [detections((0, 0.9, 0)), detections((50, 0.9, 0))]
    found = [detections((0, 0.9, 0), (30, 0.8, 0)), detections((50, 0.7, 0))]
    assert reading_kinds.average_precision(found, truth) == pytest.approx(1 / 2 + 1 / 2 * 2 / 3)
    assert reading_kinds.average_precision(truth, truth) == 1
    assert reading_kinds.average_precision([detections(), detections()], truth) == 0


def test_detections_of_a_bundle_whose_scores_were_rounded_away() -> None:
    """Six pictures with a box each, and of the bundle only the first half still has it."""
    wants = [{"y": head_output(False, False)} for _ in range(6)]
    (reading,) = kinds(wants)
    assert isinstance(reading, Boxes) and reading.head == Yolo("y", False, False)
    for number, want in enumerate(wants):
        got = want["y"].copy()
        if number >= 3:
            got[:, 4:] = 0
        reading.add({"y": got}, want, PICTURE)
    assert reading.report() == {
        "outputs": ["y"],
        "float": 6,
        "bundle": 3,
        "recall": 0.5,
        "ap50": 0.5,
        "map50": 0.5,
    }


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_pixels_are_pictures_too(dtype: type) -> None:
    pixels = {"x": np.zeros((1, 64, 64, 3), dtype)}
    (boxes,) = readings({}, [{"y": head_output(False, False)}], [pixels])
    assert isinstance(boxes, Boxes)
    (text,) = readings({}, [reader([0, 1, 0, 2, 0, 3, 0, 0])], [pixels])
    assert text == Text("y", 0)
    mask = np.zeros((1, 1, 64, 64))
    assert readings({}, [{"y": mask}], [pixels]) == [Mask("y")]


def test_a_detector_that_finds_nothing_is_not_judged() -> None:
    want = head_output(False, False)
    want[:, 4:] = 0.01
    assert want.shape[2] == CELLS
    (reading,) = kinds([{"y": want}])
    reading.add({"y": want}, {"y": want}, PICTURE)
    assert reading.report() == {
        "outputs": ["y"],
        "float": 0,
        "bundle": 0,
        "recall": None,
        "ap50": None,
        "map50": None,
    }


@pytest.mark.parametrize(
    ("nodes", "is_rounded"),
    [
        ("r = Round (x) y = Cast <to = 2> (r)", True),
        ("y = QuantizeLinear (x, s)", True),
        ("q = QuantizeLinear (x, s) y = Transpose (q)", True),
        ("i = ArgMax <axis = 1> (x) y = Cast <to = 2> (i)", False),
        ("y = Cast <to = 9> (x)", False),
        ("y = Relu (x)", False),
    ],
)
def test_integers_that_floats_are_rounded_to(nodes: str, is_rounded: bool) -> None:
    """Indices and truth values are none."""
    head = '<ir_version: 10, opset_import: ["" : 18]> g (float[2,4] x) => (y) <float s = {0.5}> '
    proto = onnx.shape_inference.infer_shapes(onnx.parser.parse_model(head + f"{{ {nodes} }}"))
    graph = ir.from_proto(proto).graph
    assert agreement.rounded(graph) == ({"y"} if is_rounded else set())
