"""What onnxruntime's optimizer fuses is taken apart exactly, in single operators and in a real export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from compiler import build as building
from compiler import importer
from compiler.check import Checker
from compiler.reference import Reference
from compiler.targets import Target
from passes import fold_constants, unfuse

EXPORT = Path(__file__).parents[2] / "fixtures" / "exports" / "fused" / "model.onnx"
X = ("x", (1, 6, 8))


def array(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def one(op_type: str, constants: dict[str, np.ndarray], **attributes: Any) -> Any:
    """A model of one fused operator, of inputs x and what `constants` has, in order; "skip" is a second input."""
    names = ["x", *constants]
    inputs = {"x": X[1]} | {n: a.shape for n, a in constants.items() if n == "skip"}
    graph = helper.make_graph(
        [helper.make_node(op_type, names, ["y"], "node", domain="com.microsoft", **attributes)],
        "g",
        [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(a, n) for n, a in constants.items() if n != "skip"],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


NORM = {"skip": array(1, 6, 8), "gain": array(8)}
QKV = {"w": array(8, 24), "b": array(24)}
HEADS = {"k": array(1, 6, 8) + 1, "v": array(1, 6, 8) - 1, "b": array(24)}
TURNS = {"places": np.array([[3, 0, 1, 2, 5, 4]]), "cos": array(6, 2), "sin": array(6, 2) + 1}
CASES = {
    "skip": one("SkipLayerNormalization", {**NORM, "bias": array(8), "add": array(8)}, epsilon=1e-5),
    "skip simplified": one("SkipSimplifiedLayerNormalization", NORM, epsilon=1e-5),
    "bias gelu": one("BiasGelu", {"b": array(8)}),
    "fast gelu": one("FastGelu", {"b": array(8)}),
    "fast gelu alone": one("FastGelu", {}),
    "gelu": one("Gelu", {}),
    "quick gelu": one("QuickGelu", {}, alpha=1.5),
    "fused matmul": one("FusedMatMul", {"w": array(5, 8)}, transB=1, alpha=0.5),
    "attention": one("Attention", QKV, num_heads=2),
    "causal attention": one("Attention", QKV, num_heads=2, unidirectional=1, scale=0.3),
    "attention with lengths": one("Attention", {**QKV, "m": np.array([4], np.int32)}, num_heads=2),
    "multi-head attention": one("MultiHeadAttention", HEADS, num_heads=2),
    "causal multi-head attention": one("MultiHeadAttention", HEADS, num_heads=2, unidirectional=1, scale=0.3),
    "multi-head attention with all masks": one(
        "MultiHeadAttention",
        {**HEADS, "m": np.array([[1, 1, 0, 1, 1, 0]], np.int32), "a": array(1, 2, 6, 6)},
        num_heads=2,
    ),
    "rotary embedding": one("RotaryEmbedding", TURNS),
    "interleaved rotary embedding": one("RotaryEmbedding", TURNS, interleaved=1),
    "attention with a mask": one("Attention", {**QKV, "m": np.array([[1, 1, 0, 1, 1, 0]], np.int32)}, num_heads=2),
}


@pytest.mark.parametrize("name", CASES)
def test_single_operators(name: str, tmp_path: Path) -> None:
    onnx.save(CASES[name], tmp_path / "m.onnx")
    model = importer.load(tmp_path / "m.onnx")
    checker = Checker(model.clone(), 0)
    for run in (fold_constants.run, unfuse.run):
        run(model, Target.load())
    assert not [n for n in model.graph if n.domain == "com.microsoft"]
    assert model.graph.outputs[0].shape is not None
    checker.check("unfuse", model)


def test_simplified_layer_normalization_under_the_name_of_onnx(tmp_path: Path) -> None:
    proto = one("SimplifiedLayerNormalization", {"gain": array(8)}, epsilon=1e-5)
    proto.graph.node[0].domain = ""
    onnx.save(proto, tmp_path / "m.onnx")
    model = importer.load(tmp_path / "m.onnx")
    assert [n.op_type for n in model.graph] == ["RMSNormalization"]
    x = array(1, 6, 8)
    with Reference(model) as reference:
        (got,) = reference.run({"x": x}).values()
    (want,) = ort.InferenceSession(tmp_path / "m.onnx").run(None, {"x": x})
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_attention_with_a_cache_is_left_alone(tmp_path: Path) -> None:
    proto = CASES["attention"]
    kept = onnx.ModelProto()
    kept.CopyFrom(proto)
    kept.graph.node[0].input.extend(["", "past"])
    kept.graph.node[0].output.append("present")
    past = helper.make_tensor_value_info("past", onnx.TensorProto.FLOAT, (2, 1, 2, 3, 4))
    kept.graph.input.append(past)
    onnx.save(kept, tmp_path / "m.onnx")
    model = importer.load(tmp_path / "m.onnx")
    unfuse.run(model, Target.load())
    assert [n.op_type for n in model.graph] == ["Attention"]


def test_a_real_export_has_its_products_on_the_edge_tpu(tmp_path: Path) -> None:
    """A BERT of two layers, exported by torch.onnx and fused by onnxruntime's optimizer."""
    rng = np.random.default_rng(0)
    mask = (np.arange(16) < rng.integers(4, 17, (16, 1))).astype(np.int64)
    np.savez(tmp_path / "c.npz", input_ids=rng.integers(0, 100, (16, 16)), attention_mask=mask)
    options = building.Options(calibration=tmp_path / "c.npz", check_passes=True)
    manifest = building.build(EXPORT, tmp_path / "b", options)
    operators = [o["operator"] for s in manifest["segments"] for o in s["operators"]]
    assert not any("microsoft" in name for name in operators)
    # Of each token in each layer: queries, keys, values and the output 32 x 32, the two inner ones 32 x 64.
    on_tpu = sum(s["macs"] for s in manifest["segments"] if s["device"] == "tpu")
    assert on_tpu == 16 * 2 * (4 * 32 * 32 + 2 * 32 * 64)
    assert manifest["quality"]["outputs"]["last_hidden_state"]["sqnr_db"] > 40
    embedding = manifest["quality"]["embeddings"]["last_hidden_state"]
    assert "warnings" not in manifest["quality"]
    assert 0.999 < embedding["least_cosine"] <= embedding["cosine"] <= 1 and embedding["spearman"] > 0.9
