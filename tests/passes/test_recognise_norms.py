"""LayerNormalization, RMSNormalization and Softmax are recognised, as exporters write them."""

from __future__ import annotations

import numpy as np
import pytest

from tests.passes.golden import leaves_alone, rewrites, weight

NORM = {"gain": weight(8), "bias": weight(8) + 1}


@pytest.mark.parametrize("mean", ["GlobalAveragePool ({})", "ReduceMean ({}, axes)"])
@pytest.mark.parametrize("shift", ["h = Neg (s)", "h = Sub (bias, s)"])
def test_layer_normalization_of_keras(mean: str, shift: str) -> None:
    axes = "int64[1] axes = {-1}," if "axes" in mean else ""
    before = f"""
    g (float[1,4,8] x) => (float[1,4,8] y)
    <{axes} float epsilon = {{0.001}}>
    {{
        m = {mean.format("x")}
        d = Sub (x, m)
        q = Mul (d, d)
        v = {mean.format("q")}
        e = Add (v, epsilon)
        r = Sqrt (e)
        i = Reciprocal (r)
        f = Mul (i, gain)
        s = Mul (m, f)
        {shift}
        p = Mul (x, f)
        y = Add (p, h)
    }}"""
    used = NORM if "bias" in shift else {"gain": NORM["gain"]}
    after = f"""
    g (float[1,4,8] x) => (float[1,4,8] y) {{
        y = LayerNormalization <epsilon = 0.001> (x, {", ".join(used)})
    }}"""
    rewrites("recognise_norms", before, after, weights=used, constants=used)


LAYER_NORM = """
    g (float[2,8] x) => (float[2,8] y)
    <int64[1] axes = {-1}, float two = {2}, float epsilon = {0.0001}>
    {
        m = ReduceMean (x, axes)
        d = Sub (x, m)
        p = Pow (d, two)
        v = ReduceMean (p, axes)
        e = Add (v, epsilon)
        s = Sqrt (e)
        n = Div (d, s)
        w = Mul (n, gain)
        y = Add (w, bias)
    }"""


def test_layer_normalization() -> None:
    after = """
    g (float[2,8] x) => (float[2,8] y) {
        y = LayerNormalization <epsilon = 0.0001> (x, gain, bias)
    }"""
    rewrites("recognise_norms", LAYER_NORM, after, weights=NORM, constants=NORM)


RMS_NORM = """
    g (float[2,8] x) => (float[2,8] y)
    <int64[1] axes = {-1}, float two = {2}, float epsilon = {0.0001}, float one = {1}>
    {
        p = Pow (x, two)
        m = ReduceMean (p, axes)
        e = Add (m, epsilon)
        r = Sqrt (e)
        d = Div (one, r)
        n = Mul (x, d)
        y = Mul (gain, n)
    }"""


RECIPROCAL_RMS_NORM = RMS_NORM.replace("Div (one, r)", "Reciprocal (r)").replace(
    ", float one = {1}", ""
)


@pytest.mark.parametrize("before", [RMS_NORM, RECIPROCAL_RMS_NORM])
def test_rms_normalization_by_one_over_the_root(before: str) -> None:
    after = """
    g (float[2,8] x) => (float[2,8] y) {
        y = RMSNormalization <epsilon = 0.0001> (x, gain)
    }"""
    gain = {"gain": NORM["gain"]}
    rewrites("recognise_norms", before, after, weights=gain, constants=gain)


SOFTMAX = """
    g (float[2,8] x) => (float[2,8] y)
    <int64[1] axes = {-1}>
    {
        m = ReduceMax (x, axes)
        s = Sub (x, m)
        e = Exp (s)
        t = ReduceSum (e, axes)
        y = Div (e, t)
    }"""
PLAIN_SOFTMAX = """
    g (float[2,8] x) => (float[2,8] y)
    <int64[1] axes = {0}>
    {
        e = Exp (x)
        t = ReduceSum (e, axes)
        y = Div (e, t)
    }"""


@pytest.mark.parametrize(
    ("before", "axis"), [(SOFTMAX, "-1"), (SOFTMAX.replace("-1", "0"), "0"), (PLAIN_SOFTMAX, "0")]
)
def test_softmax(before: str, axis: str) -> None:
    attributes = "" if axis == "-1" else f"<axis = {axis}>"
    rewrites(
        "recognise_norms",
        before,
        f"g (float[2,8] x) => (float[2,8] y) {{ y = Softmax {attributes} (x) }}",
    )


KERAS_ROWS = """
    g (float[1,3,4,1] x) => (float[1,3,4,1] y)
    <float[3] gain = {1, 1, 1}, float[3] bias = {0, 0, 0}, int64[3] axes = {0, 2, 3},
         float count = {4}>
    {
        m = ReduceMean (x, axes)
        mean = Squeeze (m, axes)
        d = Sub (x, m)
        q = ReduceSumSquare <keepdims = 0> (d, axes)
        variance = Div (q, count)
        y = BatchNormalization <epsilon = 0.001> (x, gain, bias, mean, variance)
    }"""


def test_batch_normalization_of_rows_by_their_own_statistics() -> None:
    """tf2onnx's spelling of Keras' LayerNormalization(epsilon=0.001)."""
    after = """
    g (float[1,3,4,1] x) => (float[1,3,4,1] y)
    <float[4] ones = {1, 1, 1, 1}, int64[2] rows = {3, 4}, int64[4] image = {1, 3, 4, 1}>
    {
        flat = Reshape (x, rows)
        n = LayerNormalization <epsilon = 0.001> (flat, ones)
        y = Reshape (n, image)
    }"""
    rewrites("recognise_norms", KERAS_ROWS, after)


@pytest.mark.parametrize(
    ("graph", "old", "new"),
    [
        # A gain of its own, which would be one for each row instead of each column.
        (KERAS_ROWS, "gain = {1, 1, 1}", "gain = {1, 2, 1}"),
        # Not the variance: another count.
        (KERAS_ROWS, "count = {4}", "count = {3}"),
        # Not the variance of x.
        (KERAS_ROWS, "d = Sub (x, m)", "d = Mul (x, m)"),
        # Not the mean of squares.
        (RECIPROCAL_RMS_NORM, "two = {2}", "two = {4}"),
        # Not the reciprocal of the root.
        (RMS_NORM, "one = {1}", "one = {3}"),
        # Not divided by the sum.
        (SOFTMAX, "ReduceSum (e, axes)", "ReduceMean (e, axes)"),
        (PLAIN_SOFTMAX, "e = Exp (x)", "e = Abs (x)"),
        (LAYER_NORM, "two = {2}", "two = {4}"),
        # The mean of all rows.
        (LAYER_NORM, "m = ReduceMean (x, axes)", "m = ReduceMean (x)"),
    ],
)
def test_what_is_no_norm(graph: str, old: str, new: str) -> None:
    assert old in graph
    weights = {
        name: array for name, array in NORM.items() if f"{name})" in graph or f"({name}" in graph
    }
    if graph is KERAS_ROWS:
        weights = {}
    leaves_alone("recognise_norms", graph.replace(old, new), weights=weights)


@pytest.mark.parametrize(
    "mean", ["m = ReduceMean (x, axes)", "t = ReduceSum (x, axes)\n m = Mul (t, share)"]
)
@pytest.mark.parametrize("clamp", ["c = Max (zero, v)", "c = Relu (v)"])
@pytest.mark.parametrize("with_gain", [False, True])
def test_layer_normalization_by_moments(mean: str, clamp: str, with_gain: bool) -> None:
    """As Flax writes it."""
    factor = "f = Mul (i, gain)" if with_gain else ""
    before = f"""
    g (float[2,8] x) => (float[2,8] y)
    <int64[1] axes = {{-1}}, float share = {{0.125}}, float zero = {{0}}, float epsilon = {{0.001}}>
    {{
        {mean}
        q = Mul (x, x)
        n = ReduceMean (q, axes)
        p = Mul (m, m)
        v = Sub (n, p)
        {clamp}
        e = Add (c, epsilon)
        r = Sqrt (e)
        i = Reciprocal (r)
        {factor}
        d = Sub (x, m)
        y = Mul (d, {"f" if with_gain else "i"})
    }}"""
    used = {"gain": NORM["gain"] if with_gain else np.ones(8, np.float32)}
    after = """
    g (float[2,8] x) => (float[2,8] y) {
        y = LayerNormalization <epsilon = 0.001> (x, gain)
    }"""
    given = used if with_gain else {}
    rewrites("recognise_norms", before, after, weights=given, constants=used)


@pytest.mark.parametrize(
    ("old", "new"), [("p = Mul (m, m)", "p = Mul (m, n)"), ("d = Sub (x, m)", "d = Sub (x, n)")]
)
def test_moments_of_something_else(old: str, new: str) -> None:
    text = """
    g (float[2,8] x) => (float[2,8] y)
    <int64[1] axes = {-1}, float epsilon = {0.001}>
    {
        m = ReduceMean (x, axes)
        q = Mul (x, x)
        n = ReduceMean (q, axes)
        p = Mul (m, m)
        v = Sub (n, p)
        e = Add (v, epsilon)
        r = Sqrt (e)
        i = Reciprocal (r)
        d = Sub (x, m)
        y = Mul (d, i)
    }"""
    leaves_alone("recognise_norms", text.replace(old, new))
