"""Attention gets its name back, in small pieces and in what exporters write."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from compiler.driver import build as building
from compiler.driver.options import BuildOptions
from tests.passes.golden import leaves_alone, rewrites

EXPORTS = Path(__file__).parents[2] / "fixtures" / "exports" / "encoders"


@pytest.mark.parametrize(("scaling", "scale"), [("Mul", "3.0"), ("Div", "0.333333"), (None, "1.0")])
@pytest.mark.parametrize("masked", [True, False])
def test_attention(scaling: str | None, scale: str, masked: bool) -> None:
    scaled = f"b = {scaling} (a, factor)" if scaling else "b = Identity (a)"
    mask = "c = Add (b, mask)" if masked else "c = Identity (b)"
    signature = "(float[1,2,4,8] q, float[1,2,6,8] k, float[1,2,6,8] v, float[1,1,4,6] mask) => (float[1,2,4,8] y)"
    before = f"""
    g {signature}
    {"<float factor = {3}>" if scaling else ""}
    {{
        t = Transpose <perm = [0, 1, 3, 2]> (k)
        a = MatMul (q, t) {scaled} {mask}
        s = Softmax <axis = -1> (c)
        y = MatMul (s, v)
    }}"""
    after = (
        f"g {signature} {{ y = Attention <scale = {scale}> (q, k, v{', mask' if masked else ''}) }}"
    )
    rewrites("recognise_attention", before, after)


PLAIN = """
    g (float[1,2,4,8] q, float[1,2,6,8] k, float[1,2,6,8] v,
         float[1,1,4,6] mask) => (float[1,2,4,8] y)
    <float factor = {3}>
    {
        t = Transpose <perm = [0, 1, 3, 2]> (k)
        a = MatMul (q, t)
        b = Mul (a, factor)
        c = Add (b, mask)
        s = Softmax <axis = -1> (c)
        y = MatMul (s, v)
    }"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        # Each key's weights add up to one, not each query's.
        ("axis = -1", "axis = 2"),
        # The mask is scaled too.
        (
            "b = Mul (a, factor)\n        c = Add (b, mask)",
            "b = Add (a, mask)\n        c = Mul (b, factor)",
        ),
        # The product is of no probabilities.
        ("s = Softmax <axis = -1> (c)", "s = Sigmoid (c)"),
        # One head's values for two heads' scores.
        ("float[1,2,6,8] v", "float[1,1,6,8] v"),
        # The weights of values are theirs without a batch.
        ("float[1,2,6,8] v", "float[6,8] v"),
    ],
)
def test_what_is_no_attention(old: str, new: str) -> None:
    assert old in PLAIN
    leaves_alone("recognise_attention", PLAIN.replace(old, new))


def test_keys_in_another_layout_are_transposed_once() -> None:
    before = PLAIN.replace("float[1,2,6,8] k", "float[1,6,2,8] k").replace(
        "[0, 1, 3, 2]", "[0, 2, 3, 1]"
    )
    after = """
    g (float[1,2,4,8] q, float[1,6,2,8] k, float[1,2,6,8] v,
         float[1,1,4,6] mask) => (float[1,2,4,8] y) {
        heads = Transpose <perm = [0, 2, 1, 3]> (k)
        y = Attention <scale = 3.0> (q, heads, v, mask)
    }"""
    rewrites("recognise_attention", before, after)


def test_every_query_has_its_row_of_the_mask() -> None:
    signature = "(float[1,2,4,8] q, float[1,2,6,8] k, float[1,2,6,8] v, float[1,1,1,6] mask) => (float[1,2,4,8] y)"
    before = f"""
    g {signature} {{
        t = Transpose <perm = [0, 1, 3, 2]> (k)
        a = MatMul (q, t) b = Add (a, mask)
        s = Softmax <axis = -1> (b)
        y = MatMul (s, v)
    }}"""
    after = f"""
    g {signature}
    <int64[4] whole = {{1, 1, 4, 6}}>
    {{
        rows = Expand (mask, whole)
        y = Attention <scale = 1.0> (q, k, v, rows)
    }}"""
    rewrites("recognise_attention", before, after)


# As torch writes scaled_dot_product_attention: both sides scaled, heads in one axis, zeros for NaN.
GUARDED = """
    g (float[1,2,4,8] q, float[1,2,4,8] k, float[1,2,4,8] v) => (float[1,2,4,8] y)
    <float root = {0.5946036}, float zero = {0}, int64[3] flat = {2, 4, 8},
     int64[4] heads = {1, 2, 8, 4}>
    {
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


def test_scales_on_both_sides_and_a_guard_that_cannot_be_needed() -> None:
    causal = np.where(np.tri(4, dtype=bool), 0, -np.inf).astype(np.float32)[None, None]
    after = """
    g (float[1,2,4,8] q, float[1,2,4,8] k, float[1,2,4,8] v) => (float[1,2,4,8] y) {
        y = Attention <scale = 0.353553> (q, k, v, mask)
    }"""
    rewrites(
        "recognise_attention", GUARDED, after, weights={"mask": causal}, constants={"mask": causal}
    )


def test_rows_without_any_key_stay_zeros() -> None:
    nothing = np.where(np.tri(4, k=-1, dtype=bool), 0, -np.inf).astype(np.float32)[None, None]
    after = """
    g (float[1,2,4,8] q, float[1,2,4,8] k, float[1,2,4,8] v) => (float[1,2,4,8] y)
    <bool[1,1,4,1] nothing = {1, 0, 0, 0}, float zero = {0}>
    {
        attended = Attention <scale = 0.353553> (q, k, v, mask)
        y = Where (nothing, zero, attended)
    }"""
    rewrites(
        "recognise_attention",
        GUARDED,
        after,
        weights={"mask": nothing},
        constants={"mask": nothing},
    )


def test_rows_without_any_key_of_a_mask_that_is_computed() -> None:
    signature = "(float[1,2,4,8] q, float[1,2,4,8] k, float[1,2,4,8] v, float[1,1,4,4] mask)"
    before = GUARDED.replace("(float[1,2,4,8] q, float[1,2,4,8] k, float[1,2,4,8] v)", signature)
    after = f"""
    g {signature} => (float[1,2,4,8] y)
    <int64[1] last = {{-1}}, float never = {{-inf}}, float zero = {{0}}>
    {{
        attended = Attention <scale = 0.353553> (q, k, v, mask)
        most = ReduceMax (mask, last)
        nothing = Equal (most, never)
        y = Where (nothing, zero, attended)
    }}"""
    nothing = np.where(np.tri(4, k=-1, dtype=bool), 0, -np.inf).astype(np.float32)[None, None]
    rewrites("recognise_attention", before, after, inputs={"mask": nothing})


def test_repeated_keys_and_values_are_given_once() -> None:
    before = """
    g (float[1,4,3,8] q, float[1,2,3,8] k, float[1,2,3,8] v) => (float[1,4,3,8] y)
    <int64[1] two = {2}, int64[5] wide = {1, 2, 2, 3, 8}, int64[4] whole = {1, 4, 3, 8}>
    {
        k1 = Unsqueeze (k, two) k2 = Expand (k1, wide) k3 = Reshape (k2, whole)
        v1 = Unsqueeze (v, two) v2 = Expand (v1, wide) v3 = Reshape (v2, whole)
        t = Transpose <perm = [0, 1, 3, 2]> (k3)
        a = MatMul (q, t)
        s = Softmax <axis = -1> (a)
        y = MatMul (s, v3)
    }"""
    after = """
    g (float[1,4,3,8] q, float[1,2,3,8] k, float[1,2,3,8] v) => (float[1,4,3,8] y) {
        y = Attention <scale = 1.0> (q, k, v)
    }"""
    rewrites("recognise_attention", before, after)


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


@pytest.mark.slow
@pytest.mark.parametrize("name", WANTED)
def test_real_exports(name: str, tmp_path: Path) -> None:
    options = BuildOptions(check_passes=True, also=frozenset({"rotate_outputs", "second_row"}))
    program = building.plan_program(building.read(EXPORTS / f"{name}.onnx", options), options)
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
