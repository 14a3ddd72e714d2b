"""Attention and rotary embeddings, in small pieces and in what exporters write."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from compiler.driver import build as building
from tests.passes.golden import kinds, rewritten, weight

EXPORTS = Path(__file__).parents[2] / "fixtures" / "exports" / "encoders"


@pytest.mark.parametrize("scaling", ["Mul", "Div", None])
@pytest.mark.parametrize("masked", [True, False])
def test_attention(scaling: str | None, masked: bool) -> None:
    scale = f"b = {scaling} (a, factor)" if scaling else "b = Identity (a)"
    mask = "c = Add (b, mask)" if masked else "c = Identity (b)"
    text = f"""
    g (float[1,2,4,8] q, float[1,2,6,8] k, float[1,2,6,8] v, float[1,1,4,6] mask) => (float[1,2,4,8] y)
    <float factor = {{3.0}}> {{
        t = Transpose <perm = [0, 1, 3, 2]> (k)
        a = MatMul (q, t) {scale} {mask}
        s = Softmax <axis = -1> (c)
        y = MatMul (s, v)
    }}"""
    got = rewritten(text, "recognise_attention").splitlines()
    assert got == [f"y[1, 2, 4, 8] = Attention(q, k, v{', mask' if masked else ''})"]


def test_every_query_has_its_row_of_the_mask() -> None:
    text = """
    g (float[1,2,4,8] q, float[1,2,6,8] k, float[1,2,6,8] v, float[1,1,1,6] mask) => (float[1,2,4,8] y) {
        t = Transpose <perm = [0, 1, 3, 2]> (k)
        a = MatMul (q, t) b = Add (a, mask)
        s = Softmax <axis = -1> (b)
        y = MatMul (s, v)
    }"""
    got = rewritten(text, "recognise_attention").splitlines()
    assert kinds("\n".join(got)) == ["Expand", "Attention"]
    assert "[1, 1, 4, 6]" in got[0]


def guarded(mask: np.ndarray) -> str:
    """As torch writes scaled_dot_product_attention: both sides scaled, heads in one axis, zeros for
    NaN."""
    text = """
    g (float[1,2,4,8] q, float[1,2,4,8] k, float[1,2,4,8] v) => (float[1,2,4,8] y)
    <float root = {0.5946036}, float zero = {0.0}, int64[3] flat = {2, 4, 8}, int64[4] heads = {1, 2, 8, 4}> {
        l = Mul (q, root)
        r = Reshape (k, flat)
        t = Transpose <perm = [0, 2, 1]> (r)
        h = Reshape (t, heads)
        m = Mul (h, root)
        a = MatMul (l, m)
        b = Add (a, mask)
        s = Softmax <axis = -1> (b)
        n = IsNaN (s)
        w = Where (n, zero, s)
        y = MatMul (w, v)
    }"""
    return rewritten(text, "recognise_attention", mask=mask)


def test_scales_on_both_sides_and_a_guard_that_cannot_be_needed() -> None:
    causal = np.where(np.tri(4, dtype=bool), 0, -np.inf).astype(np.float32)[None, None]
    assert guarded(causal) == "y[1, 2, 4, 8] = Attention(q, k, v, const[1, 1, 4, 4])"


def test_rows_without_any_key_stay_zeros() -> None:
    """The checker of `rewritten` compares with what onnxruntime makes of the original: zeros in the
    first row."""
    nothing = np.where(np.tri(4, k=-1, dtype=bool), 0, -np.inf).astype(np.float32)[None, None]
    assert kinds(guarded(nothing)) == ["Attention", "Where"]


def test_repeated_keys_and_values_are_given_once() -> None:
    text = """
    g (float[1,4,3,8] q, float[1,2,3,8] k, float[1,2,3,8] v) => (float[1,4,3,8] y)
    <int64[1] two = {2}, int64[5] wide = {1, 2, 2, 3, 8}, int64[4] whole = {1, 4, 3, 8}> {
        k1 = Unsqueeze (k, two) k2 = Expand (k1, wide) k3 = Reshape (k2, whole)
        v1 = Unsqueeze (v, two) v2 = Expand (v1, wide) v3 = Reshape (v2, whole)
        t = Transpose <perm = [0, 1, 3, 2]> (k3)
        a = MatMul (q, t)
        s = Softmax <axis = -1> (a)
        y = MatMul (s, v3)
    }"""
    assert rewritten(text, "recognise_attention") == "y[1, 4, 3, 8] = Attention(q, k, v)"


ROTARY = """
    g (float[1,2,4,8] x, float[1,4,4] angles) => (float[1,2,4,8] y)
    <int64[1] zero = {0}, int64[1] four = {4}, int64[1] eight = {8}, int64[1] last = {3}, int64[1] step = {1},
     int64[1] one = {1}> {
        %s
        c = Mul (x, cos)
        a = Slice (x, zero, four, last, step)
        b = Slice (x, four, eight, last, step)
        n = Neg (b)
        r = Concat <axis = -1> (n, a)
        s = Mul (r, sin)
        y = Add (c, s)
    }"""
COMPUTED = (
    "f = Concat <axis = -1> (angles, angles) u = Unsqueeze (f, one) cos = Cos (u) sin = Sin (u)"
)


def test_rotary_embedding_of_constants() -> None:
    half = weight(1, 1, 4, 4)
    tables = {"cos": np.concatenate([half, half], -1), "sin": np.concatenate([-half, -half], -1)}
    assert rewritten(ROTARY % "", "recognise_rotary", **tables) == (
        "y[1, 2, 4, 8] = RotaryEmbedding(x, const[1, 4, 4], const[1, 4, 4])"
    )
    tables["cos"] = weight(1, 1, 4, 8)
    assert "RotaryEmbedding" not in rewritten(ROTARY % "", "recognise_rotary", **tables)


def test_rotary_embedding_of_computed_angles() -> None:
    assert kinds(rewritten(ROTARY % COMPUTED, "recognise_rotary"))[-1] == "RotaryEmbedding"
    other = COMPUTED.replace("(angles, angles)", "(angles, double)").replace(
        "f =", "double = Add (angles, angles) f ="
    )
    assert "RotaryEmbedding" not in rewritten(ROTARY % other, "recognise_rotary")


# The host operators that each export's layer is to be left with. Keras' attention comes as matrices
# of all heads in a row, between layout changes that are not undone yet.
WANTED = {
    "modernbert": {"Attention": 1, "RotaryEmbedding": 2, "LayerNormalization": 3, "Gelu": 1},
    "qwen3": {"Attention": 1, "RotaryEmbedding": 2, "RMSNormalization": 5},
    "gemma3": {"Attention": 1, "RotaryEmbedding": 2, "RMSNormalization": 7, "Gelu": 1},
    "t5": {"Attention": 1, "RMSNormalization": 3, "Gelu": 1},
    "siglip": {"Attention": 1, "LayerNormalization": 3, "Gelu": 1},
    "whisper": {"Attention": 1, "LayerNormalization": 3, "Gelu": 1},
    "keras": {"LayerNormalization": 3, "Gelu": 1, "Softmax": 1},
}
SPELT_OUT = {"Erf", "Tanh", "Pow", "Sqrt", "Reciprocal", "ReduceMean", "IsNaN"}


@pytest.mark.parametrize("name", WANTED)
def test_real_exports(name: str, tmp_path: Path) -> None:
    options = building.Options(check_passes=True, also=frozenset({"rotate_outputs", "second_row"}))
    program = building.lower(building.read(EXPORTS / f"{name}.onnx", options), options)
    host = Counter(n.op_type for s in program.plan.segments if s.device == "host" for n in s.nodes)
    assert {kind: host[kind] for kind in WANTED[name]} == WANTED[name]
    assert host["Softmax"] == WANTED[name].get("Softmax", 0)
    assert not SPELT_OUT & {n.op_type for n in program.model.graph}
    left = [
        n
        for n in program.model.graph
        if n.op_type in ("MatMul", "Gemm", "Conv")
        and n.inputs[1] is not None
        and n.inputs[1].const_value is not None
    ]
    assert all("rotates the rows" in program.plan.placements[n].reason for n in left)
