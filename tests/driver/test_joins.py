"""Values of different ranges that are joined only to leave: a detector's tail with ranges as
trained networks have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from compiler.driver import build as building
from compiler.driver.options import BuildOptions
from compiler.runtime import Bundle, Pipeline
from tests.conftest import save

CELLS = 16
DISTANCES, CLASSES = 4, 3


def detector(one_layer: bool) -> onnx.ModelProto:
    """Distances (up to 3 cells) and logits (down to -20) for each cell, from two layers or one;
    boxes in pixels and scores in [0, 1] leave through one Concat."""
    rng = np.random.default_rng(0)
    places = (
        np.stack(np.meshgrid(np.arange(CELLS), np.arange(CELLS)))
        .reshape(1, 2, -1)
        .astype(np.float32)
        + 0.5
    )
    distances = rng.uniform(0, 0.4, (DISTANCES, 8, 1, 1)).astype(np.float32)
    logits = rng.standard_normal((CLASSES, 8, 1, 1)).astype(np.float32) * 3
    constants = {
        "w": rng.standard_normal((8, 3, 3, 3)).astype(np.float32) / 5,
        "distances": distances,
        "logits": logits,
        "both": np.concatenate([distances, logits]),
        "flat": np.array([1, DISTANCES + CLASSES, -1], np.int64),
        "sizes": np.array([DISTANCES, CLASSES], np.int64),
        "cells": np.concatenate([places, places], axis=1),
        "stride": np.full((1, 1, CELLS * CELLS), 32, np.float32),
    }
    constants["stride"][..., : CELLS * CELLS // 2] = 8
    apart = [
        helper.make_node("Conv", ["features", "distances"], ["d"]),
        helper.make_node("Conv", ["features", "logits"], ["l"]),
        helper.make_node("Concat", ["d", "l"], ["head"], axis=1),
    ]
    for name in ("distances", "logits") if one_layer else ("both",):
        del constants[name]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["features"]),
        *([helper.make_node("Conv", ["features", "both"], ["head"])] if one_layer else apart),
        helper.make_node("Reshape", ["head", "flat"], ["row"]),
        helper.make_node("Split", ["row", "sizes"], ["dist", "logit"], axis=1),
        helper.make_node("Add", ["dist", "cells"], ["ends"]),
        helper.make_node("Mul", ["ends", "stride"], ["boxes"]),
        helper.make_node("Sigmoid", ["logit"], ["scores"]),
        helper.make_node("Concat", ["boxes", "scores"], ["y"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, (1, 3, CELLS, CELLS))],
        [
            helper.make_tensor_value_info(
                "y", onnx.TensorProto.FLOAT, (1, DISTANCES + CLASSES, CELLS * CELLS)
            )
        ],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("one_layer", [False, True])
def test_boxes_and_scores_each_have_steps_of_their_own(one_layer: bool, tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", detector(one_layer))
    samples = np.random.default_rng(1).standard_normal((8, 3, CELLS, CELLS)).astype(np.float32)
    np.savez(tmp_path / "c.npz", x=samples)
    building.build(
        path, tmp_path / "b", BuildOptions(calibration=tmp_path / "c.npz", check_passes=True)
    )
    pipeline = Pipeline(Bundle.open(tmp_path / "b"))
    assert [s["device"] for s in pipeline.segments] == ["host", "tpu", "host"]
    scales = sorted(t["scale"] for t in pipeline.segments[1]["outputs"])
    # Distances are fine, logits are not.
    assert len(scales) == 2 and scales[1] > 10 * scales[0]
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    wants = [session.run(None, {"x": sample[None]})[0] for sample in samples]
    gots = [pipeline.run({"x": sample[None]})["y"] for sample in samples]
    want, got = np.concatenate(wants), np.concatenate(gots)
    off = np.sqrt(np.square(got - want).mean(axis=(0, 2)))
    assert off[:DISTANCES].max() < 1  # pixels of 512
    assert (
        off[DISTANCES:].max() < 0.03
    )  # of a score; joined, they are off by 0.3 and have two values
    assert len(np.unique(got[:, DISTANCES:])) > 100


def test_without_these_steps_scores_have_at_most_two_values(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", detector(one_layer=False))
    samples = np.random.default_rng(1).standard_normal((8, 3, CELLS, CELLS)).astype(np.float32)
    np.savez(tmp_path / "c.npz", x=samples)
    without = frozenset({"keep_tails", "split_joins"})
    # The search would see what is wrong.
    options = BuildOptions(calibration=tmp_path / "c.npz", without=without, quality=None)
    building.build(path, tmp_path / "b", options)
    got = Pipeline(Bundle.open(tmp_path / "b")).run({"x": samples[:1]})["y"]
    assert len(np.unique(got[:, DISTANCES:])) <= 2
