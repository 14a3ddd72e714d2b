"""The dialect: operators that the Edge TPU has and ONNX lacks, as ONNX functions.

Images are NHWC, weights keep ONNX's order (output channels first). The gates of GELU, Gelu(t) / t
of t = x / 1.702, are written as LOGISTIC, which comes close (compiler/ops/activation.py).
"""

from __future__ import annotations

import onnx.parser
import onnx_ir as ir

from compiler.graph import DIALECT, OPSET

_HEAD = f'<domain: "{DIALECT}", opset_import: ["" : {OPSET}]>'

FUNCTIONS = {
    "Conv2D": """
    Conv2D <strides, pads, dilations> (x, w, b) => (y) {
        nchw = Transpose <perm = [0, 3, 1, 2]> (x)
        conv = Conv <strides: ints = @strides, pads: ints = @pads, dilations: ints = @dilations> (nchw, w, b)
        y = Transpose <perm = [0, 2, 3, 1]> (conv)
    }""",
    "DepthwiseConv2D": """
    DepthwiseConv2D <group, strides, pads, dilations> (x, w, b) => (y) {
        nchw = Transpose <perm = [0, 3, 1, 2]> (x)
        conv = Conv <group: int = @group, strides: ints = @strides, pads: ints = @pads,
                     dilations: ints = @dilations> (nchw, w, b)
        y = Transpose <perm = [0, 2, 3, 1]> (conv)
    }""",
    "TransposeConv2D": """
    TransposeConv2D <strides, pads> (x, w, b) => (y) {
        nchw = Transpose <perm = [0, 3, 1, 2]> (x)
        iohw = Transpose <perm = [1, 0, 2, 3]> (w)
        conv = ConvTranspose <strides: ints = @strides, pads: ints = @pads> (nchw, iohw, b)
        y = Transpose <perm = [0, 2, 3, 1]> (conv)
    }""",
    "FullyConnected": """
    FullyConnected (x, w, b) => (y) {
        y = Gemm <transB = 1> (x, w, b)
    }""",
    "AveragePool2D": """
    AveragePool2D <kernel_shape, strides, pads> (x) => (y) {
        nchw = Transpose <perm = [0, 3, 1, 2]> (x)
        pool = AveragePool <kernel_shape: ints = @kernel_shape, strides: ints = @strides,
                            pads: ints = @pads> (nchw)
        y = Transpose <perm = [0, 2, 3, 1]> (pool)
    }""",
    "MaxPool2D": """
    MaxPool2D <kernel_shape, strides, pads> (x) => (y) {
        nchw = Transpose <perm = [0, 3, 1, 2]> (x)
        pool = MaxPool <kernel_shape: ints = @kernel_shape, strides: ints = @strides, pads: ints = @pads> (nchw)
        y = Transpose <perm = [0, 2, 3, 1]> (pool)
    }""",
    "Resize2D": """
    Resize2D <mode, coordinate_transformation_mode, nearest_mode> (x, sizes) => (y) {
        nchw = Transpose <perm = [0, 3, 1, 2]> (x)
        resized = Resize <mode: string = @mode, nearest_mode: string = @nearest_mode,
            coordinate_transformation_mode: string = @coordinate_transformation_mode> (nchw, , , sizes)
        y = Transpose <perm = [0, 2, 3, 1]> (resized)
    }""",
    "SpaceToDepth2D": """
    SpaceToDepth2D <blocksize> (x) => (y) {
        nchw = Transpose <perm = [0, 3, 1, 2]> (x)
        deep = SpaceToDepth <blocksize: int = @blocksize> (nchw)
        y = Transpose <perm = [0, 2, 3, 1]> (deep)
    }""",
    "FakeQuantize": """
    FakeQuantize (x, scale, zero_point) => (y) {
        q = QuantizeLinear (x, scale, zero_point)
        y = DequantizeLinear (q, scale, zero_point)
    }""",
    "GeluGate": """
    GeluGate (x) => (y) {
        width = Constant <value_float = 2.4069913> ()
        half = Constant <value_float = 0.5> ()
        scaled = Div (x, width)
        erf = Erf (scaled)
        part = Mul (erf, half)
        y = Add (part, half)
    }""",
    "TanhGeluGate": """
    TanhGeluGate (x) => (y) {
        width = Constant <value_float = 1.702> ()
        linear = Constant <value_float = 0.7978846> ()
        cubic = Constant <value_float = 0.0356774> ()
        half = Constant <value_float = 0.5> ()
        t = Div (x, width)
        square = Mul (t, t)
        bend = Mul (square, cubic)
        slope = Add (bend, linear)
        inner = Mul (t, slope)
        tanh = Tanh (inner)
        part = Mul (tanh, half)
        y = Add (part, half)
    }""",
    "Requantize": """
    Requantize (x) => (y) {
        y = Identity (x)
    }""",
}


def functions() -> list[ir.Function]:
    """Fresh copies of every function of the dialect."""
    parsed = [onnx.parser.parse_function(_HEAD + text) for text in FUNCTIONS.values()]
    return [ir.serde.deserialize_function(proto) for proto in parsed]


def declare(model: ir.Model) -> None:
    """Make the dialect known to a model, so that its nodes can be added, inferred and run."""
    model.graph.opset_imports[DIALECT] = 1
    for function in functions():
        model.functions.setdefault(function.identifier(), function)
