"""Detectors end on the Edge TPU in rows for all levels, boxes and logits apart, for the host."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from compiler.driver import build as building
from compiler.driver.options import BuildOptions
from compiler.runtime import Bundle, Pipeline
from compiler.runtime.detections import Distances, Yolo, cells
from tests.conftest import save

SIZE = (64, 64)
STRIDES = (8, 16, 32)
CELLS = 64 + 16 + 4
BINS, CLASSES = 16, 5


# Five convolutions of stride 2; the heads read the last three.
FEATURES = """
    c0 = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, first)  f0 = Relu (c0)
    c1 = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (f0, w)  f1 = Relu (c1)
    c2 = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (f1, w)  f2 = Relu (c2)
    c3 = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (f2, w)  f3 = Relu (c3)
    c4 = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (f3, w)  f4 = Relu (c4)
    d2 = Conv (f2, to_bins)  d3 = Conv (f3, to_bins)  d4 = Conv (f4, to_bins)
    l2 = Conv (f2, to_classes)  l3 = Conv (f3, to_classes)  l4 = Conv (f4, to_classes)"""
# Levels are joined for each kind of output, as newer exports do ...
APART = """
    dr2 = Reshape (d2, flat_d)  dr3 = Reshape (d3, flat_d)  dr4 = Reshape (d4, flat_d)
    lr2 = Reshape (l2, flat_l)  lr3 = Reshape (l3, flat_l)  lr4 = Reshape (l4, flat_l)
    distances = Concat <axis = 2> (dr2, dr3, dr4)
    logits = Concat <axis = 2> (lr2, lr3, lr4)"""
# ... or both kinds for each level, to be divided again behind the levels.
JOINED = """
    j2 = Concat <axis = 1> (d2, l2)
    j3 = Concat <axis = 1> (d3, l3)
    j4 = Concat <axis = 1> (d4, l4)
    r2 = Reshape (j2, flat)  r3 = Reshape (j3, flat)  r4 = Reshape (j4, flat)
    all = Concat <axis = 2> (r2, r3, r4)
    distances, logits = Split <axis = 1> (all, both)"""
DECODING = """
    binned = Reshape (distances, bins)
    turned = Transpose <perm = [0, 2, 1, 3]> (binned)
    weights = Softmax <axis = 1> (turned)
    means = Conv (weights, places)
    four = Reshape (means, sides)
    near, far = Split <axis = 1> (four, two)
    low = Sub (anchors, near)
    high = Add (anchors, far)
    sum = Add (low, high)
    middle = Div (sum, half)
    extent = Sub (high, low)
    box = Concat <axis = 1> (middle, extent)
    pixels = Mul (box, strides)
    scores = Sigmoid (logits)
    y = Concat <axis = 1> (pixels, scores)"""


def detector(joined: bool) -> onnx.ModelProto:
    """A detector with the head of YOLOv8, v9 and v11: distributions of four distances and logits of
    classes for each of three levels, decoded to centres, sizes and scores."""
    rng = np.random.default_rng(0)

    def weight(*shape: int, gain: float) -> np.ndarray:
        drawn = rng.standard_normal(shape) * gain / np.sqrt(np.prod(shape[1:]))
        return drawn.astype(np.float32)

    middles, strides = cells(SIZE, STRIDES, 0.5)
    constants = {
        "first": weight(8, 3, 3, 3, gain=2),
        "w": weight(8, 8, 3, 3, gain=2),
        "to_bins": weight(4 * BINS, 8, 1, 1, gain=3),
        "to_classes": weight(CLASSES, 8, 1, 1, gain=8),
        "places": np.arange(BINS, dtype=np.float32).reshape(1, BINS, 1, 1),
        "anchors": (middles / strides).T[None].astype(np.float32),
        "strides": strides.T.astype(np.float32),
        "half": np.float32(2),
        "flat_d": np.array([1, 4 * BINS, -1]),
        "flat_l": np.array([1, CLASSES, -1]),
        "flat": np.array([1, 4 * BINS + CLASSES, -1]),
        "both": np.array([4 * BINS, CLASSES]),
        "bins": np.array([1, 4, BINS, CELLS]),
        "sides": np.array([1, 4, CELLS]),
        "two": np.array([2, 2]),
    }
    head = JOINED if joined else APART
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        detector (float[1,3,64,64] x) => (float[1,{4 + CLASSES},{CELLS}] y)
        {{ {FEATURES} {head} {DECODING} }}"""
    )
    for name, array in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return model


@pytest.mark.parametrize("joined", [False, True])
def test_raw_boxes_and_logits_leave_the_edge_tpu(joined: bool, tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", detector(joined))
    samples = np.random.default_rng(1).uniform(0, 1, (8, 3, *SIZE)).astype(np.float32)
    np.savez(tmp_path / "c.npz", x=samples)
    options = BuildOptions(calibration=tmp_path / "c.npz", check_passes=True)
    building.build(path, tmp_path / "b", options)
    pipeline = Pipeline(Bundle.open(tmp_path / "b"))
    assert [segment["device"] for segment in pipeline.segments] == ["host", "tpu", "host"]
    tpu = pipeline.segments[1]
    assert "Transpose" not in {operator["operator"] for operator in tpu["operators"]}
    boxes, logits = tpu["outputs"]
    assert boxes["shape"] == [1, CELLS, 4 * BINS]
    assert logits["shape"] == [1, CELLS, CLASSES]
    assert boxes["scale"] != logits["scale"]

    # What the segment gives, decoded by numpy, is what the host segment makes of it.
    reached = dict(pipeline.check_inputs({"x": samples[:1]}))
    pipeline.advance(0, reached)
    pipeline.advance(1, reached)
    left = dict(reached)
    pipeline.advance(2, reached)
    raw = {}
    for tensor in (boxes, logits):
        steps = left[tensor["name"]].astype(np.float64) - tensor["zero_point"]
        raw[tensor["name"]] = steps * tensor["scale"]
    head = Distances(boxes["name"], logits["name"], STRIDES, SIZE)
    got_boxes, got_scores = head.candidates(raw)
    result = {"y": pipeline.results(reached)["y"]}
    want_boxes, want_scores = Yolo("y", rows=False, objectness=False).candidates(result)
    np.testing.assert_allclose(got_boxes, want_boxes, atol=1e-3)
    np.testing.assert_allclose(got_scores, want_scores, atol=1e-5)

    # And about what the float model says.
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    (wanted,) = session.run(None, {"x": samples[:1]})
    off = np.abs(result["y"] - wanted)
    assert off[:, 4:].max() < 0.1
    assert off[:, :4].mean() < 1
