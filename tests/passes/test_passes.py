"""Input and expected graph of each pass as text, the refusals included."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from compiler.graph import HOST_REASON, shape_of
from compiler.targets import Layer, Target, fits
from passes import fold_constants, keep_spectra
from passes.tile_matmul import plan
from tests.passes.golden import kinds, lines, rewritten, weight

ALL = (
    "fold_affine",
    "shuffle_channels",
    "lower",
    "cancel_transposes",
    "fold_flatten",
    "cancel_reshapes",
)


def test_fold_constants() -> None:
    text = """
    g (float[1,4] x) => (float[1,4] y) {
        two = Constant <value_float = 2.0> ()
        four = Mul (two, two)
        dead = Mul (x, two)
        y = Mul (x, four)
    }"""
    assert (
        rewritten(text) == "y[1, 4] = Mul(x, [4.0])" or rewritten(text) == "y[1, 4] = Mul(x, 4.0)"
    )


def test_shapes_follow_from_constants_that_were_folded_under_symbols() -> None:
    """A constant too large for ONNX's inference to look into, still marked with the shape it had
    before folding."""
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 18]> g (float[1,1] x) => (float[a,b] y) { z = Mul (x, c) y = Relu (z) }'
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight(1, 512), "c"))
    model = ir.serde.deserialize_model(proto)
    model.graph.initializers["c"].shape = ir.Shape(["n", "m"])
    fold_constants.infer_shapes(model)
    assert [shape_of(v) for node in model.graph for v in node.outputs] == [(1, 512), (1, 512)]


def test_fold_affine_into_convolution() -> None:
    text = """
    g (float[1,3,8,8] x) => (float[1,4,6,6] y) {
        c = Conv (x, w)
        n = BatchNormalization (c, gain, bias, mean, variance)
        m = Mul (n, a)
        y = Add (m, a)
    }"""
    statistics = {name: np.abs(weight(4)) + 0.5 for name in ("gain", "bias", "mean", "variance")}
    got = rewritten(text, "fold_affine", w=weight(4, 3, 3, 3), a=weight(4, 1, 1), **statistics)
    assert len(got.splitlines()) == 1 and "= Conv(x, const[4, 3, 3, 3]," in got


def test_fold_affine_without_layer() -> None:
    text = """
    g (float[1,4,8,8] x) => (float[1,4,8,8] y) {
        r = Relu (x)
        n = BatchNormalization (r, gain, bias, mean, variance)
        m = Mul (n, a)
        y = Sub (m, a)
    }"""
    statistics = {name: np.abs(weight(4)) + 0.5 for name in ("gain", "bias", "mean", "variance")}
    got = rewritten(text, "fold_affine", a=weight(4, 1, 1), **statistics)
    assert kinds(got) == ["Relu", "Mul", "Add"]


def test_fold_affine_keeps_a_value_that_others_read() -> None:
    text = """
    g (float[1,3,8,8] x) => (float[1,4,6,6] y) {
        c = Conv (x, w)
        m = Mul (c, a)
        y = Add (m, c)
    }"""
    got = rewritten(text, "fold_affine", w=weight(4, 3, 3, 3), a=weight(4, 1, 1))
    assert got.count("\n") == 2


def test_keep_scales() -> None:
    text = """
    g (float[1,4] x) => (float[1,4] y)
    <float s = {0.5}, uint8 z = {128}> {
        r = Relu (x)
        q = QuantizeLinear (r, s, z)
        y = DequantizeLinear (q, s, z)
    }"""
    assert rewritten(text, "keep_scales") == lines("""
        r[1, 4] = Relu(x)
        y[1, 4] = edgetpu.FakeQuantize(r, 0.5, 128)""")


@pytest.mark.parametrize("first", [True, False])
def test_recognise_gelu(first: bool) -> None:
    inner = "d = Div (x, root) e = Erf (d) f = Add (e, one)"
    body = "h = Mul (x, half) y = Mul (h, f)" if first else "h = Mul (x, f) y = Mul (h, half)"
    text = f"""
    g (float[2,8] x) => (float[2,8] y)
    <float root = {{1.4142135}}, float one = {{1.0}}, float half = {{0.5}}> {{ {inner} {body} }}"""
    assert rewritten(text, "recognise_gelu") == "y[2, 8] = Gelu(x)"


@pytest.mark.parametrize("mean", ["GlobalAveragePool ({})", "ReduceMean ({}, axes)"])
@pytest.mark.parametrize("shift", ["h = Neg (s)", "h = Sub (bias, s)"])
def test_recognise_layer_normalization_of_keras(mean: str, shift: str) -> None:
    text = f"""
    g (float[1,4,8] x) => (float[1,4,8] y)
    <int64[1] axes = {{-1}}, float epsilon = {{0.001}}> {{
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
    got = rewritten(text, "recognise_norms", gain=weight(8), bias=weight(8))
    assert got.startswith("y[1, 4, 8] = LayerNormalization(x, const[8]")


@pytest.mark.parametrize("cube", ["p = Pow (x, three)", "q = Mul (x, x) p = Mul (x, q)"])
@pytest.mark.parametrize(
    "product",
    [
        "h = Mul (half, x) y = Mul (h, o)",
        "h = Mul (x, o) y = Mul (h, half)",
        "h = Mul (half, o) y = Mul (x, h)",
    ],
)
def test_recognise_gelu_of_tanh(cube: str, product: str) -> None:
    text = f"""
    g (float[2,8] x) => (float[2,8] y)
    <float three = {{3.0}}, float c = {{0.044715}}, float root = {{0.7978845}},
     float one = {{1.0}}, float half = {{0.5}}> {{
        {cube}
        s = Mul (c, p)
        a = Add (x, s)
        i = Mul (root, a)
        t = Tanh (i)
        o = Add (one, t)
        {product}
    }}"""
    assert rewritten(text, "recognise_gelu") == "y[2, 8] = Gelu(x)"


def test_recognise_rms_normalization_by_one_over_the_root() -> None:
    text = """
    g (float[2,8] x) => (float[2,8] y)
    <int64[1] axes = {-1}, float two = {2.0}, float epsilon = {0.00001}, float one = {1.0}> {
        p = Pow (x, two)
        m = ReduceMean (p, axes)
        e = Add (m, epsilon)
        r = Sqrt (e)
        d = Div (one, r)
        n = Mul (x, d)
        y = Mul (gain, n)
    }"""
    assert (
        rewritten(text, "recognise_norms", gain=weight(8))
        == "y[2, 8] = RMSNormalization(x, const[8])"
    )


def test_recognise_softmax() -> None:
    text = """
    g (float[2,8] x) => (float[2,8] y)
    <int64[1] axes = {-1}> {
        m = ReduceMax (x, axes)
        s = Sub (x, m)
        e = Exp (s)
        t = ReduceSum (e, axes)
        y = Div (e, t)
    }"""
    assert rewritten(text, "recognise_norms") == "y[2, 8] = Softmax(x)"


def test_recognise_layer_normalization() -> None:
    text = """
    g (float[2,8] x) => (float[2,8] y)
    <int64[1] axes = {-1}, float two = {2.0}, float epsilon = {0.00001}> {
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
    got = rewritten(text, "recognise_norms", gain=weight(8), bias=weight(8))
    assert got == "y[2, 8] = LayerNormalization(x, const[8], const[8])"


def test_not_recognised_with_another_constant() -> None:
    text = """
    g (float[2,8] x) => (float[2,8] y)
    <float root = {1.5}, float one = {1.0}, float half = {0.5}> {
        d = Div (x, root) e = Erf (d) f = Add (e, one) h = Mul (x, f) y = Mul (h, half)
    }"""
    assert "Gelu" not in rewritten(text, "recognise_gelu")


def test_shuffle_channels() -> None:
    text = """
    g (float[1,6,4,4] x) => (float[1,6,4,4] y)
    <int64[5] five = {1, 2, 3, 4, 4}, int64[4] four = {1, 6, 4, 4}> {
        a = Reshape (x, five)
        b = Transpose <perm = [0, 2, 1, 3, 4]> (a)
        y = Reshape (b, four)
    }"""
    assert rewritten(text, "shuffle_channels") == lines("""
        Reshape_2/Transpose[1, 4, 4, 6] = Transpose(x) perm=[0, 2, 3, 1]
        Reshape_2/Reshape[1, 16, 2, 3] = Reshape(Reshape_2/Transpose, [1, 16, 2, 3])
        Reshape_2/Transpose_1[1, 16, 3, 2] = Transpose(Reshape_2/Reshape) perm=[0, 1, 3, 2]
        Reshape_2/Reshape_1[1, 4, 4, 6] = Reshape(Reshape_2/Transpose_1, [1, 4, 4, 6])
        y[1, 6, 4, 4] = Transpose(Reshape_2/Reshape_1) perm=[0, 3, 1, 2]""")


def test_lower_refuses_with_a_reason_and_leaves_the_node() -> None:
    text = """
    g (float[1,3,8,8] x, float[4,3,3,3] w) => (float[1,4,6,6] y) { y = Conv (x, w) }"""
    assert rewritten(text, "lower") == "y[1, 4, 6, 6] = Conv(x, w)"


def test_transposes_cancel_between_convolutions() -> None:
    text = """
    g (float[1,3,8,8] x) => (float[1,4,4,4] y) {
        a = Conv (x, w)
        r = Relu (a)
        m = Mul (r, s)
        b = Conv (m, v)
        y = Relu (b)
    }"""
    weights = {"w": weight(4, 3, 3, 3), "v": weight(4, 4, 3, 3), "s": weight(1, 1, 6)}
    assert rewritten(text, *ALL, **weights) == lines("""
        Conv_0/Transpose[1, 8, 8, 3] = Transpose(x) perm=[0, 2, 3, 1]
        Conv_0/Conv2D[1, 6, 6, 4] = edgetpu.Conv2D(Conv_0/Transpose, const[4, 3, 3, 3], [0.0, 0.0, 0.0, 0.0])
        r/0x2x3x1[1, 6, 6, 4] = Relu(Conv_0/Conv2D)
        m/0x2x3x1[1, 6, 6, 4] = Mul(r/0x2x3x1, const[1, 1, 6, 1])
        Conv_3/Conv2D[1, 4, 4, 4] = edgetpu.Conv2D(m/0x2x3x1, const[4, 4, 3, 3], [0.0, 0.0, 0.0, 0.0])
        y/0x2x3x1[1, 4, 4, 4] = Relu(Conv_3/Conv2D)
        y[1, 4, 4, 4] = Transpose(y/0x2x3x1) perm=[0, 3, 1, 2]""")


def test_transpose_rises_to_the_input_through_its_normalisation() -> None:
    text = """
    g (float[1,3,8,8] x) => (float[1,4,6,6] y) {
        n = Mul (x, s)
        m = Add (n, s)
        y = Conv (m, w)
    }"""
    got = rewritten(text, *ALL[1:], w=weight(4, 3, 3, 3), s=weight(3, 1, 1)).splitlines()
    assert got[0].endswith("= Transpose(x) perm=[0, 2, 3, 1]")
    assert "Mul(Mul_0/Transpose" in got[1] and got[3].split(" = ")[1].startswith("edgetpu.Conv2D")


def test_flatten_is_folded_into_the_layer() -> None:
    text = """
    g (float[1,3,4,4] x) => (float[1,5] y) {
        c = Conv (x, w)
        f = Flatten (c)
        y = Gemm <transB = 1> (f, v, b)
    }"""
    got = rewritten(text, *ALL, w=weight(2, 3, 3, 3), v=weight(5, 8), b=weight(5))
    assert (
        got.count("= Transpose(") == 1 and "[1, 8] = Reshape(Conv_0/Conv2D" in got.splitlines()[2]
    )


def test_tile_joins_outputs() -> None:
    text = "g (float[1,4096] x) => (float[1,2048] y) { y = Gemm <transB = 1> (x, w, b) }"
    got = rewritten(text, "lower", "tile_matmul", w=weight(2048, 4096), b=weight(2048))
    assert got == lines("""
        Gemm_0/FullyConnected_1[1, 1024] = edgetpu.FullyConnected(x, const[1024, 4096], const[1024])
        Gemm_0/FullyConnected_2[1, 1024] = edgetpu.FullyConnected(x, const[1024, 4096], const[1024])
        y[1, 2048] = Concat(Gemm_0/FullyConnected_1, Gemm_0/FullyConnected_2)""")


def test_tile_adds_partial_sums_where_one_block_does_not_fit() -> None:
    text = "g (float[1,9000] x) => (float[1,64] y) { y = Gemm <transB = 1> (x, w, b) }"
    got = rewritten(text, "lower", "tile_matmul", w=weight(64, 9000), b=weight(64))
    assert kinds(got) == [
        "Slice",
        "Slice",
        "edgetpu.FullyConnected",
        "edgetpu.FullyConnected",
        "Add",
    ]


TILES = [
    # outputs, inputs -> tile outputs, tile inputs
    (4096, 25088, 1024, 6272),
    (4096, 4096, 1024, 4096),
    (8192, 2016, 4096, 2016),
    (6144, 2688, 3072, 2688),
    (4096, 4032, 2048, 4032),
    (2048, 8064, 1024, 8064),
    (32000, 576, 11264, 576),
    (2752, 2752, 2048, 2752),
]


@pytest.mark.parametrize(("outputs", "inputs", "tile_outputs", "tile_inputs"), TILES)
def test_tiles(outputs: int, inputs: int, tile_outputs: int, tile_inputs: int) -> None:
    target = Target.load()
    tiling = plan(Layer("dense", inputs, outputs), target)
    assert (tiling.outputs, tiling.inputs) == (tile_outputs, tile_inputs)
    assert fits([Layer("dense", tiling.inputs, tiling.outputs)], target)


def test_normalise_linears_between_host_operators() -> None:
    text = """
    g (float[1,6,8] x) => (float[1,6,4] y) {
        n = LayerNormalization (x, gain, shift)
        m = MatMul (n, w)
        s = Add (m, b)
        y = Gelu (s)
    }"""
    weights = {"gain": weight(8), "shift": weight(8), "w": weight(8, 4), "b": weight(4)}
    got = rewritten(text, "keep_gates", *ALL, "rotate_rows", "normalise_linears", **weights)
    assert kinds(got) == [
        "LayerNormalization",
        "Reshape",
        "MatMul",
        "Reshape",
        "Abs",
        "ReduceMax",
        "Max",
        "Div",
        "edgetpu.Conv2D",
        "Mul",
        "Add",
        "Mul",
        "Add",
        "Reshape",
        "Gelu",
    ]


BETWEEN_HOST_OPERATORS = """
    g (float[1,6,8] x) => (float[1,6,16] y) {
        n = Softmax (x)
        m = MatMul (n, w)
        y = Gelu (m)
    }"""


def test_rotated_outputs_are_turned_back_on_the_host() -> None:
    got = kinds(
        rewritten(BETWEEN_HOST_OPERATORS, "keep_gates", *ALL, "rotate_outputs", w=weight(8, 16))
    )
    assert got == [
        "Softmax",
        "Reshape",
        "edgetpu.Conv2D",
        "Reshape",
        "MatMul",
        "Reshape",
        "Reshape",
        "Gelu",
    ]


def test_second_row_is_half_the_first() -> None:
    steps = ("keep_gates", *ALL, "normalise_linears", "second_row")
    got = kinds(rewritten(BETWEEN_HOST_OPERATORS, *steps, w=weight(8, 16)))
    start = got.index("Div") + 2  # the image's rows are made a matrix's
    middle = [
        "Mul",
        "Concat",
        "Reshape",
        "edgetpu.Conv2D",
        "Split",
        "Abs",
        "Less",
        "Mul",
        "Sub",
        "Where",
    ]
    assert got[start : start + len(middle)] == middle


def test_normalise_linears_leaves_layers_between_tpu_operators() -> None:
    text = """
    g (float[1,6,8] x) => (float[1,6,4] y) {
        m = MatMul (x, w)
        r = Relu (m)
        s = MatMul (r, v)
        y = Gelu (s)
    }"""
    assert "Div" not in rewritten(
        text, *ALL, "rotate_rows", "normalise_linears", w=weight(8, 4), v=weight(4, 4)
    )


def test_transposes_that_move_nothing_do_not_sink_for_ever() -> None:
    """Either side of the Add can be permuted for nothing, so that a Transpose could go back and
    forth."""
    text = """
    g (float[1,4,8] x, float[4,1,8] z) => (float[1,4,8] y) {
        r = Relu (x)
        p = Relu (z)
        t = Transpose <perm = [1, 0, 2]> (p)
        y = Add (r, t)
    }"""
    got = rewritten(text, "cancel_transposes")
    assert kinds(got) == [
        "Relu",
        "Relu",
        "Reshape",
        "Add",
        "Reshape",
    ]


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("t = Add (x, three) c = Clip (t, zero, six) y = Div (c, six)", "HardSigmoid(x)"),
        ("t = Add (x, three) c = Clip (t, zero, six) y = Mul (c, sixth)", "HardSigmoid(x)"),
        (
            "t = Add (x, three) c = Clip (t, zero, six) m = Mul (x, c) y = Div (m, six)",
            "HardSwish(x)",
        ),
        (
            "t = Add (three, x) c = Clip (t, zero, six) d = Div (c, six) y = Mul (d, x)",
            "HardSwish(x)",
        ),
        ("g = HardSigmoid <alpha = 0.16666667, beta = 0.5> (x) y = Mul (x, g)", "HardSwish(x)"),
    ],
)
def test_hard_swish_gets_its_name_back(body: str, wanted: str) -> None:
    numbers = {"three": 3, "zero": 0, "six": 6, "sixth": 1 / 6}
    used = {
        k: np.float32(v)
        for k, v in numbers.items()
        if f"{k})" in body or f"{k}," in body or f"({k}" in body
    }
    got = rewritten(
        f"g (float[1,4,2,2] x) => (float[1,4,2,2] y) {{ {body} }}", "recognise_hard_swish", **used
    )
    assert got == f"y[1, 4, 2, 2] = {wanted}"


@pytest.mark.parametrize(
    "body",
    [
        "t = Add (x, three) c = Clip (t, zero, six) y = Div (c, three)",  # not a sixth
        "t = Add (x, six) c = Clip (t, zero, six) y = Div (c, six)",  # not shifted by three
        "t = Add (x, three) c = Clip (t, zero, six) d = Div (c, six) y = Div (x, d)",
        "t = Add (x, three) c = Clip (t, zero, six) d = Div (c, six) y = Mul (d, d)",
        "g = HardSigmoid <alpha = 0.2, beta = 0.5> (x) y = Mul (x, g)",
    ],
)
def test_what_is_no_hard_swish(body: str) -> None:
    numbers = {"three": 3, "zero": 0, "six": 6}
    used = {k: np.float32(v) for k, v in numbers.items() if k in body}
    text = f"g (float[1,4,2,2] x) => (float[1,4,2,2] y) {{ {body} }}"
    assert "HardSwish" not in rewritten(text, "recognise_hard_swish", **used)


def test_split_gates_of_convolutions() -> None:
    text = """
    g (float[1,3,4,4] x) => (float[1,4,4,4] y) {
        c = Conv (x, w)
        s = Sigmoid (c)
        y = Mul (c, s)
    }"""
    got = rewritten(text, "split_gates", w=weight(4, 3, 1, 1))
    assert (
        kinds(got) == ["Conv", "Conv", "Sigmoid", "Mul"]
        and "Sigmoid_1/Conv[1, 4, 4, 4] = Conv(c, " in got
    )


@pytest.mark.parametrize(
    "body",
    [
        "c = Conv (x, w) y = Sigmoid (c)",
        "c = Conv (x, w) s = Sigmoid (c) y = Mul (s, s)",
        "c = Relu (x) s = Sigmoid (c) y = Mul (c, s)",
    ],
)
def test_split_gates_leaves_what_is_no_gate_of_a_layer(body: str) -> None:
    weights = {"w": weight(3, 3, 1, 1)} if "w)" in body else {}
    text = f"g (float[1,3,4,4] x) => (float[1,3,4,4] y) {{ {body} }}"
    before = rewritten(text, **weights)
    assert rewritten(text, "split_gates", **weights) == before


def on_host(text: str, **weights: np.ndarray) -> list[str]:
    """Operators that `keep_spectra` leaves to the host."""
    proto = onnx.parser.parse_model('<ir_version: 11, opset_import: ["" : 23]>\n' + text)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in weights.items())
    model = ir.serde.deserialize_model(proto)
    keep_spectra.run(model, Target.load())
    return [node.op_type for node in model.graph if HOST_REASON in node.metadata_props]


def test_spectra_stay_on_the_host() -> None:
    text = """
    g (float[1,1,64] x) => (float[1,4,9] y) {
        d = Conv <strides = [4]> (x, w)
        p = Mul (d, d)
        m = MatMul (f, p)
        e = Add (m, tiny)
        l = Log (e)
        y = Relu (l)
    }"""
    weights = {"w": weight(8, 1, 32), "f": weight(4, 8), "tiny": np.float32(1e-6)}
    assert on_host(text, **weights) == ["Conv", "Mul", "MatMul", "Add"]


@pytest.mark.parametrize("kind", ["Relu", "Sigmoid", "Softmax"])
def test_networks_in_front_of_a_logarithm_do_not(kind: str) -> None:
    text = f"g (float[1,8,4,4] x) => (float[1,8,4,4] y) {{ c = Conv (x, w) r = {kind} (c) y = Log (r) }}"
    assert on_host(text, w=weight(8, 8, 1, 1)) == []


@pytest.mark.parametrize(
    "body",
    [
        "s = ReduceSumSquare (x) y = Sqrt (s)",
        "c = Conv (x, w) p = Mul (c, c) m = ReduceMean (p) y = Sqrt (m)",
    ],
)
def test_norms_in_front_of_a_root_do_not(body: str) -> None:
    weights = {"w": weight(8, 8, 1)} if "w)" in body else {}
    assert on_host(f"g (float[1,8,4] x) => (float[1,1,1] y) {{ {body} }}", **weights) == []
