"""What onnxruntime's optimizer fuses is taken apart exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from compiler import importer
from compiler.checks.pass_checks import Checker
from compiler.driver import build as building
from compiler.driver.options import BuildOptions
from compiler.graph.reference import Reference
from compiler.partition import PartitionOptions
from passes import PassContext, fold_constants, unfuse
from tests.passes.golden import TARGET, leaves_alone, rewrites

CONTEXT = PassContext(TARGET)
EXPORT = Path(__file__).parents[2] / "fixtures" / "exports" / "fused" / "model.onnx"
X = ("x", (1, 6, 8))


def array(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def one(op_type: str, constants: dict[str, np.ndarray], **attributes: Any) -> Any:
    """A model of one fused operator, of inputs x and what `constants` has, in order; "skip" is a
    second input."""
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


GOLDENS = {
    "norm of a sum": (
        """
    g (float[1,2,4] x, float[1,2,4] skip) => (float[1,2,4] y)
    <float[4] gain = {1, 2, 3, 4}, float[4] bias = {0, 1, 0, 1}, float[4] add = {4, 3, 2, 1}>
    {
        y = com.microsoft.SkipLayerNormalization <epsilon = 0.01> (x, skip, gain, bias, add)
    }""",
        """
    g (float[1,2,4] x, float[1,2,4] skip) => (float[1,2,4] y)
    <float[4] gain = {1, 2, 3, 4}, float[4] bias = {0, 1, 0, 1}, float[4] add = {4, 3, 2, 1}>
    {
        sum = Add (x, skip)
        whole = Add (sum, add)
        y = LayerNormalization <epsilon = 0.01> (whole, gain, bias)
    }""",
    ),
    "norm that gives the sum too": (
        """
    g (float[1,2,4] x, float[1,2,4] skip) => (float[1,2,4] y, float[1,2,4] sum)
    <float[4] gain = {1, 2, 3, 4}>
    {
        y, "", "", sum = com.microsoft.SkipSimplifiedLayerNormalization <epsilon = 0.01> (x, skip,
             gain)
    }""",
        """
    g (float[1,2,4] x, float[1,2,4] skip) => (float[1,2,4] y, float[1,2,4] sum)
    <float[4] gain = {1, 2, 3, 4}>
    {
        sum = Add (x, skip)
        y = RMSNormalization <epsilon = 0.01> (sum, gain)
    }""",
    ),
    "activation with a bias": (
        """
    g (float[1,4] x) => (float[1,4] y)
    <float[4] b = {1, 2, 3, 4}>
    {
        y = com.microsoft.FastGelu (x, b)
    }""",
        """
    g (float[1,4] x) => (float[1,4] y)
    <float[4] b = {1, 2, 3, 4}>
    {
        sum = Add (x, b)
        y = Gelu <approximate = "tanh"> (sum)
    }""",
    ),
    "activation with a slope": (
        "g (float[1,4] x) => (float[1,4] y) { y = com.microsoft.QuickGelu <alpha = 1.5> (x) }",
        """
    g (float[1,4] x) => (float[1,4] y)
    <float slope = {1.5}>
    {
        scaled = Mul (x, slope)
        gate = Sigmoid (scaled)
        y = Mul (x, gate)
    }""",
    ),
    "product of turned matrices": (
        """
    g (float[2,4,3] x, float[2,5,4] z) => (float[2,3,5] y) {
        y = com.microsoft.FusedMatMul <alpha = 0.5, transA = 1, transB = 1> (x, z)
    }""",
        """
    g (float[2,4,3] x, float[2,5,4] z) => (float[2,3,5] y)
    <float alpha = {0.5}>
    {
        left = Transpose <perm = [0, 2, 1]> (x)
        right = Transpose <perm = [0, 2, 1]> (z)
        product = MatMul (left, right)
        y = Mul (product, alpha)
    }""",
    ),
    "layer with an activation": (
        """
    g (float[1,1,4,4] x) => (float[1,1,2,2] y)
    <float[1,1,3,3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9}, float[1] b = {1}>
    {
        y = com.microsoft.FusedConv <activation = "LeakyRelu", activation_params = [0.2],
            dilations = [1, 1], group = 1, kernel_shape = [3, 3], pads = [0, 0, 0, 0],
            strides = [1, 1]> (x, w, b)
    }""",
        """
    g (float[1,1,4,4] x) => (float[1,1,2,2] y)
    <float[1,1,3,3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9}, float[1] b = {1}>
    {
        c = Conv <dilations = [1, 1], kernel_shape = [3, 3], pads = [0, 0, 0, 0],
            strides = [1, 1]> (x, w, b)
        y = LeakyRelu <alpha = 0.2> (c)
    }""",
    ),
    "dense layer with an activation": (
        """
    g (float[2,2] x) => (float[2,2] y)
    <float[2,2] w = {1, 2, 3, 4}, float[2] b = {1, -1}>
    {
        y = com.microsoft.FusedGemm <activation = "Relu", alpha = 0.5, transB = 1> (x, w, b)
    }""",
        """
    g (float[2,2] x) => (float[2,2] y)
    <float[2,2] w = {1, 2, 3, 4}, float[2] b = {1, -1}>
    {
        d = Gemm <alpha = 0.5, transB = 1> (x, w, b)
        y = Relu (d)
    }""",
    ),
    "self-attention": (
        """
    g (float[1,3,4] x) => (float[1,3,4] y)
    <int32[1] lengths = {2}>
    {
        y = com.microsoft.Attention <num_heads = 2, unidirectional = 1> (x, w, b, lengths)
    }""",
        """
    g (float[1,3,4] x) => (float[1,3,4] y)
    <int64[3] sizes = {4, 4, 4}, int64[4] heads = {1, 3, 2, 2}, int64[3] rows = {1, 3, 4},
     float[1,1,3,3] mask = {0, 0, -10000, 0, 0, -10000, 0, 0, -10000}>
    {
        product = MatMul (x, w)
        joined = Add (product, b)
        q, k, v = Split <axis = -1> (joined, sizes)
        q_rows = Reshape (q, heads)
        q_heads = Transpose <perm = [0, 2, 1, 3]> (q_rows)
        k_rows = Reshape (k, heads)
        k_heads = Transpose <perm = [0, 2, 1, 3]> (k_rows)
        v_rows = Reshape (v, heads)
        v_heads = Transpose <perm = [0, 2, 1, 3]> (v_rows)
        attended = Attention <is_causal = 1, scale = 0.707107> (q_heads, k_heads, v_heads, mask)
        turned = Transpose <perm = [0, 2, 1, 3]> (attended)
        y = Reshape (turned, rows)
    }""",
    ),
    "attention of rows that are projected": (
        """
    g (float[1,3,4] q, float[1,5,4] k, float[1,5,4] v) => (float[1,3,4] y)
    <int32[1,5] mask = {1, 1, 0, 1, 1}, float[12] b = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}>
    {
        y = com.microsoft.MultiHeadAttention <mask_filter_value = -1000.0, num_heads = 2,
             scale = 0.3> (q, k, v, b, mask)
    }""",
        """
    g (float[1,3,4] q, float[1,5,4] k, float[1,5,4] v) => (float[1,3,4] y)
    <float[4] q_bias = {1, 2, 3, 4}, float[4] k_bias = {5, 6, 7, 8},
     float[4] v_bias = {9, 10, 11, 12},
     int64[4] q_shape = {1, 3, 2, 2}, int64[4] k_shape = {1, 5, 2, 2}, int64[3] rows = {1, 3, 4},
     float[1,1,3,5] mask = {0, 0, -1000, 0, 0, 0, 0, -1000, 0, 0, 0, 0, -1000, 0, 0}>
    {
        q_sum = Add (q, q_bias)
        k_sum = Add (k, k_bias)
        v_sum = Add (v, v_bias)
        q_rows = Reshape (q_sum, q_shape)
        q_heads = Transpose <perm = [0, 2, 1, 3]> (q_rows)
        k_rows = Reshape (k_sum, k_shape)
        k_heads = Transpose <perm = [0, 2, 1, 3]> (k_rows)
        v_rows = Reshape (v_sum, k_shape)
        v_heads = Transpose <perm = [0, 2, 1, 3]> (v_rows)
        attended = Attention <scale = 0.3> (q_heads, k_heads, v_heads, mask)
        turned = Transpose <perm = [0, 2, 1, 3]> (attended)
        y = Reshape (turned, rows)
    }""",
    ),
    "rotary embedding": (
        """
    g (float[1,3,8] x) => (float[1,3,8] y)
    <int64[1,3] places = {2, 0, 1}, float[3,2] cos = {1, 2, 3, 4, 5, 6},
     float[3,2] sin = {6, 5, 4, 3, 2, 1}>
    {
        y = com.microsoft.RotaryEmbedding <interleaved = 1> (x, places, cos, sin)
    }""",
        """
    g (float[1,3,8] x) => (float[1,3,8] y)
    <int64[1,3] places = {2, 0, 1}, float[3,2] cos = {1, 2, 3, 4, 5, 6},
     float[3,2] sin = {6, 5, 4, 3, 2, 1}>
    {
        y = RotaryEmbedding <interleaved = 1, num_heads = 2> (x, cos, sin, places)
    }""",
    ),
}


@pytest.mark.parametrize("name", GOLDENS)
def test_goldens(name: str) -> None:
    before, after = GOLDENS[name]
    weights = {"w": array(4, 12), "b": array(12)} if "(x, w, b, lengths)" in before else {}
    rewrites("unfuse", before, after, weights=weights, constants=weights)


@pytest.mark.parametrize(
    "body",
    [
        # Its batch is not the first axis.
        """g (float[3,2,4] x, float[2,4,5] z) => (float[2,3,5] y) {
            y = com.microsoft.FusedMatMul <transBatchA = 1> (x, z)
        }""",
        # The mask has a row for each query.
        """g (float[1,3,4] x, int32[1,3,3] mask) => (float[1,3,4] y) {
            y = com.microsoft.Attention <num_heads = 2> (x, w, b, mask)
        }""",
        # Rows turn by an offset that is read at run time.
        """g (float[1,3,8] x, int64[1] first) => (float[1,3,8] y)
        <float[6,2] cos = {1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6},
         float[6,2] sin = {6, 5, 4, 3, 2, 1, 6, 5, 4, 3, 2, 1}> {
            y = com.microsoft.RotaryEmbedding (x, first, cos, sin)
        }""",
    ],
)
def test_what_onnx_has_no_words_for_stays(body: str) -> None:
    weights = {"w": array(4, 12), "b": array(12)} if "(x, w, b" in body else {}
    leaves_alone("unfuse", body, weights=weights)


NORM = {"skip": array(1, 6, 8), "gain": array(8)}
QKV = {"w": array(8, 24), "b": array(24)}
HEADS = {"k": array(1, 6, 8) + 1, "v": array(1, 6, 8) - 1, "b": array(24)}
TURNS = {"places": np.array([[3, 0, 1, 2, 5, 4]]), "cos": array(6, 2), "sin": array(6, 2) + 1}
CASES = {
    "skip": one(
        "SkipLayerNormalization", {**NORM, "bias": array(8), "add": array(8)}, epsilon=1e-5
    ),
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
    "causal multi-head attention": one(
        "MultiHeadAttention", HEADS, num_heads=2, unidirectional=1, scale=0.3
    ),
    "multi-head attention with all masks": one(
        "MultiHeadAttention",
        {**HEADS, "m": np.array([[1, 1, 0, 1, 1, 0]], np.int32), "a": array(1, 2, 6, 6)},
        num_heads=2,
    ),
    "rotary embedding": one("RotaryEmbedding", TURNS),
    "interleaved rotary embedding": one("RotaryEmbedding", TURNS, interleaved=1),
    "attention with a mask": one(
        "Attention", {**QKV, "m": np.array([[1, 1, 0, 1, 1, 0]], np.int32)}, num_heads=2
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_single_operators(name: str, tmp_path: Path) -> None:
    onnx.save(CASES[name], tmp_path / "m.onnx")
    model = importer.load(tmp_path / "m.onnx")
    checker = Checker(model.clone(), 0)
    for run in (fold_constants.run, unfuse.run):
        run(model, CONTEXT)
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
    unfuse.run(model, CONTEXT)
    assert [n.op_type for n in model.graph] == ["Attention"]


@pytest.mark.slow
def test_a_real_export_has_its_products_on_the_edge_tpu(tmp_path: Path) -> None:
    """A BERT of two layers, exported by torch.onnx and fused by onnxruntime's optimizer."""
    rng = np.random.default_rng(0)
    mask = (np.arange(16) < rng.integers(4, 17, (16, 1))).astype(np.int64)
    np.savez(tmp_path / "c.npz", input_ids=rng.integers(0, 100, (16, 16)), attention_mask=mask)
    placed = PartitionOptions(place="tpu")
    options = BuildOptions(
        calibration=tmp_path / "c.npz", check_passes=True, partitioning=placed, quality=None
    )
    manifest = building.build(EXPORT, tmp_path / "b", options)
    operators = [o["operator"] for s in manifest["segments"] for o in s["operators"]]
    assert not any("microsoft" in name for name in operators)
    # Of each token in each layer: queries, keys, values and the output 32 x 32, the two inner ones
    # 32 x 64.
    on_tpu = sum(s["macs"] for s in manifest["segments"] if s["device"] == "tpu")
    assert on_tpu == 16 * 2 * (4 * 32 * 32 + 2 * 32 * 64)
    assert manifest["quality"]["outputs"]["last_hidden_state"]["sqnr_db"] > 40
    embedding = manifest["quality"]["embeddings"]["last_hidden_state"]
    assert "warnings" not in manifest["quality"]
    assert (
        0.999 < embedding["least_cosine"] <= embedding["cosine"] <= 1
        and embedding["spearman"] > 0.9
    )
