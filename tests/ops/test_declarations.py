"""What operators declare about themselves, held against onnxruntime and numbers counted by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from ai_edge_litert import schema_py_generated as schema

from compiler.device import cost
from compiler.emit import tflite
from compiler.graph import DIALECT, activations_around
from compiler.ops import BUILTINS, OPERATORS, Moves, dialect, lookup, operator_of
from compiler.ops.activation import CUBIC_SLOPE
from compiler.quant import Quant
from compiler.quantize.calibrate import observe
from compiler.quantize.saturate import saturated
from compiler.quantize.scales import assign
from compiler.runtime.tflite_segment import TFLiteSegment

HEAD = """<ir_version: 10,
 opset_import: ["" : 23, "edgetpu" : 1, "com.microsoft" : 1, "ai.onnx.ml" : 3]>"""


def model_of(text: str) -> ir.Model:
    """A model from ONNX text with the dialect's functions; shapes are the text's."""
    model = ir.serde.deserialize_model(onnx.parser.parse_model(f"{HEAD}\n{text}"))
    dialect.declare(model)
    for value in model.graph.initializers.values():
        assert value.const_value is not None
    return model


def node_of(text: str) -> ir.Node:
    """The last node of a graph."""
    return list(model_of(text).graph)[-1]


def run(model: ir.Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    proto = ir.serde.serialize_model(model)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def test_unknown_operators_have_defaults() -> None:
    node = node_of("g (float[2,3] x) => (float[2,3] y) { y = Sin (x) }")
    operator = operator_of(node)
    assert lookup(node) is None
    assert operator.macs(node) == 0 and operator.host_bytes(node) == 2 * 6 * 4
    assert operator.moves == Moves.NOTHING and not operator.absorbed(node)
    assert operator.elementwise(node) is None and operator.ties(node) is None
    assert operator.scales(node).same == () and operator.output_channels(node) is None


def test_the_dialect_is_what_has_a_body() -> None:
    declared = {operator.op_type for operator in OPERATORS.values() if operator.domain == DIALECT}
    assert {function.name for function in dialect.functions()} == declared


def test_named_option_tables_exist() -> None:
    tables = {builtin.table for builtin in BUILTINS.values() if builtin.table}
    assert len(tables) > 3
    for table in tables:
        assert hasattr(schema.BuiltinOptions, table) and hasattr(schema, f"{table}T")


@pytest.mark.parametrize(
    ("text", "macs"),
    [
        (
            "g (float[1,3,8,8] x, float[4,3,3,3] w) => (float[1,4,6,6] y) { y = Conv (x, w) }",
            36 * 4 * 27,
        ),
        (
            "g (float[1,8,8,6] x, float[6,1,3,3] w, float[6] b) => (float[1,6,6,6] y)"
            " { y = edgetpu.DepthwiseConv2D <group = 6, strides = [1, 1], pads = [0, 0, 0, 0],"
            " dilations = [1, 1]> (x, w, b) }",
            36 * 6 * 9,
        ),
        (
            "g (float[1,5,4,4] x, float[5,2,3,3] w) => (float[1,2,6,6] y)"
            " { y = ConvTranspose (x, w) }",
            16 * 5 * 2 * 9,
        ),
        ("g (float[2,7] x, float[7,3] w) => (float[2,3] y) { y = MatMul (x, w) }", 2 * 7 * 3),
        (
            "g (float[7,2] x, float[7,3] w) => (float[2,3] y) { y = Gemm <transA = 1> (x, w) }",
            2 * 7 * 3,
        ),
        (
            "g (float[1,2,4,8] q, float[1,2,6,8] k, float[1,2,6,8] v) => (float[1,2,4,8] y)"
            " { y = Attention (q, k, v) }",
            2 * (2 * 4 * 6 * 8),
        ),
        (
            "g (float[9,2,5] x, float[1,16,5] w, float[1,16,4] r) => (float[9,1,2,4] y)"
            " { y = LSTM <hidden_size = 4> (x, w, r) }",
            9 * 2 * 16 * (5 + 4),
        ),
        (
            "g (float[9,2,5] x, float[2,12,5] w, float[2,12,4] r) => (float[2,2,4] h)"
            ' { "", h = GRU <hidden_size = 4, direction = "bidirectional"> (x, w, r) }',
            9 * 2 * 2 * 12 * (5 + 4),
        ),
        ("g (float[N,7] x, float[7,3] w) => (float[N,3] y) { y = MatMul (x, w) }", 0),
        ("g (float[2,7] x, float[2,7] w) => (float[2,7] y) { y = Add (x, w) }", 0),
    ],
)
def test_multiply_accumulates(text: str, macs: int) -> None:
    assert cost.float_macs(node_of(text)) == macs


@pytest.mark.parametrize(
    "text",
    [
        "g (float[2,6] x) => (float[2,6] y) { y = Identity (x) }",
        "g (float[2,6] x) => (float[3,4] y) <int64[2] s = {3, 4}> { y = Reshape (x, s) }",
        "g (float[2,3,2] x) => (float[2,6] y) { y = Flatten (x) }",
        "g (float[2,1,6] x) => (float[2,6] y) <int64[1] a = {1}> { y = Squeeze (x, a) }",
        "g (float[2,6] x) => (float[2,1,6] y) <int64[1] a = {1}> { y = Unsqueeze (x, a) }",
        "g (float[2,6] x) => (float[6,2] y) { y = Transpose <perm = [1, 0]> (x) }",
        "g (float[2,6] x) => (double[2,6] y) { y = Cast <to = 11> (x) }",
        "g (float[2,6] x) => (float[4,6] y) { y = Concat <axis = 0> (x, x) }",
        "g (float[2,6] x) => (float[2,4] y, float[2,2] z) <int64[2] s = {4, 2}>"
        " { y, z = Split <axis = 1> (x, s) }",
        "g (float[2,6] x) => (float[2,2] y) <int64[1] a = {1}, int64[1] e = {3}>"
        " { y = Slice (x, a, e, a) }",
        "g (float[2,6] x) => (float[2,2] y) <int64[2] i = {5, 0}> { y = Gather <axis = 1> (x, i) }",
        "g (float[1,4,4,2] x) => (float[1,2,2,2] y) { y = edgetpu.MaxPool2D"
        " <kernel_shape = [2, 2], strides = [2, 2], pads = [0, 0, 0, 0]> (x) }",
        "g (float[2,6] x) => (float[2,6] y) { y = edgetpu.Requantize (x) }",
    ],
)
def test_what_only_moves(text: str) -> None:
    """Values, their number, and their order and type, as far as each is declared."""
    model = model_of(text)
    node = list(model.graph)[-1]
    moves = operator_of(node).moves
    shape = tuple(int(d) for d in model.graph.inputs[0].shape or () if isinstance(d, int))
    x = np.random.default_rng(0).permutation(int(np.prod(shape))).reshape(shape).astype(np.float32)
    results = run(model, {"x": x})
    given = np.concatenate([result.reshape(-1) for result in results])
    assert moves >= Moves.VALUES and np.isin(given, x).all()
    if moves >= Moves.ELEMENTS:
        assert np.array_equal(np.sort(given), np.sort(x.reshape(-1)))
    if moves == Moves.VIEW:
        assert given.dtype == x.dtype and np.array_equal(given, x.reshape(-1))


@pytest.mark.parametrize(
    ("text", "within"),
    [
        ("g (float[1,1,1,99] x) => (float[1,1,1,99] y) { y = Relu (x) }", 0),
        (
            "g (float[1,1,1,99] x) => (float[1,1,1,99] y) <float a = {-2}, float b = {3}>"
            " { y = Clip (x, a, b) }",
            0,
        ),
        ("g (float[1,1,1,99] x) => (float[1,1,1,99] y) { y = Sigmoid (x) }", 1e-6),
        (
            "g (float[1,1,1,99] x) => (float[1,1,1,99] y) <float a = {-2}> { y = Add (a, x) }",
            1e-6,
        ),
        (
            "g (float[1,1,1,99] x) => (float[1,1,1,99] y) <float a = {-2}> { y = Mul (x, a) }",
            1e-6,
        ),
        (
            "g (float[1,99,1,1] x) => (float[1,99,1,1] y)"
            " <float[1,1,1,1] w = {0.25}, float[1] b = {0.5}>"
            " { y = edgetpu.DepthwiseConv2D <group = 1, strides = [1, 1], pads = [0, 0, 0, 0],"
            " dilations = [1, 1]> (x, w, b) }",
            1e-6,
        ),
        # GELU's gates are not logistic: x * gate is 0.0203 off at most, so the gate by little more.
        ("g (float[1,1,1,99] x) => (float[1,1,1,99] y) { y = edgetpu.GeluGate (x) }", 0.03),
        ("g (float[1,1,1,99] x) => (float[1,1,1,99] y) { y = edgetpu.TanhGeluGate (x) }", 0.03),
        # The cubic ones are: of the tanh formula exactly.
        ("g (float[1,1,1,99] x) => (float[1,1,1,99] y) { y = edgetpu.CubicGeluGate (x) }", 6e-4),
        (
            "g (float[1,1,1,99] x) => (float[1,1,1,99] y) { y = edgetpu.CubicTanhGeluGate (x) }",
            1e-6,
        ),
    ],
)
def test_functions_of_numbers(text: str, within: float) -> None:
    model = model_of(text)
    node = list(model.graph)[-1]
    function = operator_of(node).elementwise(node)
    assert function is not None
    shape = tuple(int(d) for d in model.graph.inputs[0].shape or () if isinstance(d, int))
    x = np.linspace(-5, 5, 99, dtype=np.float32).reshape(shape)
    (wanted,) = run(model, {"x": x})
    assert np.abs(function(x) - wanted).max() <= within


@pytest.mark.parametrize(
    ("op_type", "function"),
    [
        ("Sigmoid", lambda t: 1 / (1 + np.exp(-t))),
        ("Tanh", np.tanh),
        ("edgetpu.CubicTanhGeluGate", lambda t: 1 / (1 + np.exp(-t * (t**2 + 3.8473553)))),
    ],
)
def test_ends_of_saturating_operators(op_type: str, function: np.ufunc) -> None:
    """Beyond the declared end int8 results are the first or the last, halfway to it not."""
    node = node_of(f"g (float[4] x) => (float[4] y) {{ y = {op_type} (x) }}")
    operator = operator_of(node)
    quant = Quant(*operator.scales(node).fixed[node.outputs[0]])
    end = operator.saturates_at
    assert end is not None
    inputs = np.array([-end - 1e-3, -end / 2, end / 2, end + 1e-3])
    lowest, low, high, highest = quant.quantize(function(inputs))
    assert lowest == -128 and -128 < low < high < 127 and highest == 127


def test_clamps_are_absorbed_by_what_only_they_read() -> None:
    text = "g (float[4] x) => (float[4] y) { a = Neg (x) y = Relu (a) }"
    assert operator_of(node_of(text)).absorbed(node_of(text))
    shared = "g (float[4] x) => (float[4] a, float[4] y) { a = Neg (x) y = Relu (a) }"
    assert not operator_of(node_of(shared)).absorbed(node_of(shared))
    first = "g (float[4] x) => (float[4] y) { y = Relu (x) }"
    assert not operator_of(node_of(first)).absorbed(node_of(first))


@pytest.mark.parametrize("reach", [1.0, 4.0, 12.0])
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_the_cubic_gelu_in_int8(reach: float, approximate: str, tmp_path: Path) -> None:
    """Of what GELU gives in float for the values that int8 can hold, it is at most 0.01 off and
    half a step of its result; for large values, of which it has 255/256, that share."""
    text = f"""
    g (float[1,1,1024,1] x) => (float[1,1,1024,1] y)
    <float[1,1,1,1] slope = {{{CUBIC_SLOPE}}}, float[1] shift = {{0}}>
    {{
        t = edgetpu.DepthwiseConv2D <group = 1, strides = [1, 1], pads = [0, 0, 0, 0],
            dilations = [1, 1]> (x, slope, shift)
        gate = edgetpu.{"CubicGeluGate" if approximate == "none" else "CubicTanhGeluGate"} (t)
        y = Mul (x, gate)
    }}"""
    x = np.linspace(-reach, reach, 1024, dtype=np.float32).reshape(1, 1, -1, 1)
    model = model_of(text)
    nodes = list(model.graph)
    values = activations_around(nodes)
    for value in values:
        value.shape = model.graph.inputs[0].shape
        value.type = model.graph.inputs[0].type
    stats = saturated(nodes, observe(model, values, [{"x": x}]))
    quants = assign(nodes, values, {name: shown.range for name, shown in stats.items()})
    x = quants["x"].dequantize(quants["x"].quantize(x))
    (want,) = run(model_of(GELU.replace("none", approximate)), {"x": x})
    path = tmp_path / "gelu.tflite"
    path.write_bytes(tflite.write(nodes, model.graph.inputs, model.graph.outputs, quants))
    (made,) = TFLiteSegment(path, 1).run([quants["x"].quantize(x)])
    error = np.abs(quants["y"].dequantize(made) - want)
    assert np.all(error <= 0.01 + quants["y"].scale / 2 + np.maximum(x, 0) / 256)


GELU = """
    g (float[1,1,1024,1] x) => (float[1,1,1024,1] y) { y = Gelu <approximate = "none"> (x) }"""
