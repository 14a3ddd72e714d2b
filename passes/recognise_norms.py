"""Give decomposed normalisations their names back: LayerNormalization, RMSNormalization, Softmax.

The first two by onnxscript's own rule sets, and by rules for what tf2onnx makes of Keras'.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript.rewriter import pattern, rewrite
from onnxscript.rewriter.rules.fusion import _layer_norm, _rms_normalization

from compiler.graph import (
    Builder,
    Names,
    attribute_of,
    constant_of,
    float32_nodes,
    infer_node,
    input_at,
    ints_of,
    is_constant,
    is_static,
    key_of,
    produced_by,
    scalar_of,
    shape_of,
)
from passes.context import PassContext
from passes.fold_constants import tidy


def run(model: ir.Model, context: PassContext) -> None:
    common.AddDefaultAttributesPass()(model)
    names = Names(model.graph)
    for node in float32_nodes(model.graph):
        if key_of(node) == ("", "BatchNormalization"):
            _norm_of_batches(node, Builder(model, names, node))
    rewrite(model, pattern_rewrite_rules=RULES)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    _layer_norm.fuse_layer_normalization(model)
    _rms_normalization.fuse_rms_normalization(model)
    tidy(model)
    for node in model.graph:
        for value in node.outputs:
            if value.shape is None:
                infer_node(model, node)


def _norm_of_batches(node: ir.Node, b: Builder) -> None:
    """BatchNormalization of rows [1, R, K, 1] by their own mean and variance: Keras'
    LayerNormalization(epsilon=0.001).

    The gain and bias of the layer follow by themselves.
    """
    x, gain, bias, mean, variance = node.inputs
    squeeze, ratio = produced_by(mean, "Squeeze"), produced_by(variance, "Div")
    if x is None or squeeze is None or ratio is None or not is_static(x) or len(shape_of(x)) != 4:
        return
    average, squares = (
        produced_by(squeeze.inputs[0], "ReduceMean"),
        produced_by(ratio.inputs[0], "ReduceSumSquare"),
    )
    difference = produced_by(squares.inputs[0], "Sub") if squares is not None else None
    if average is None or squares is None or difference is None or len(node.outputs) > 1:
        return
    shape, plain = shape_of(x), (np.ones, np.zeros)
    if (
        (shape[0], shape[3]) != (1, 1)
        or list(difference.inputs) != [x, average.outputs[0]]
        or average.inputs[0] is not x
        or any(ints_of(input_at(n, 1)) != [0, 2, 3] for n in (average, squares))
        or scalar_of(ratio.inputs[1]) != shape[2]
        or not all(
            np.array_equal(constant_of(v), make(shape[1]))  # type: ignore[arg-type]
            for v, make in zip((gain, bias), plain, strict=True)
        )
    ):
        return
    one = b.const(np.ones(shape[2], np.float32), "gain")
    norm = b.op(
        "LayerNormalization",
        [b.reshape(x, shape[1:3]), one],
        {"epsilon": attribute_of(node, "epsilon", 1e-5)},
    )
    b.replace(b.reshape(norm, shape))


def _softmax(op, x, axes):  # type: ignore[no-untyped-def]
    power = op.Exp(op.Sub(x, op.ReduceMax(x, axes, keepdims=1)))
    return op.Div(power, op.ReduceSum(power, axes, keepdims=1))


def _softmax_plain(op, x, axes):  # type: ignore[no-untyped-def]
    power = op.Exp(x)
    return op.Div(power, op.ReduceSum(power, axes, keepdims=1))


def _softmax_named(op, x, axes):  # type: ignore[no-untyped-def]
    return op.Softmax(x, axis=(ints_of(axes) or [-1])[0])


def _check_softmax(context, x, axes):  # type: ignore[no-untyped-def]
    return len(ints_of(axes) or ()) == 1


def _keras_norm(op, x, gain, epsilon, axes=None, bias=None):  # type: ignore[no-untyped-def]
    """x g + (bias - mean g) with g = gain / sqrt(variance + epsilon), as tf2onnx writes Keras'
    LayerNormalization.

    Without axes the means are GlobalAveragePools of three dimensions, which average over the last.
    """

    def mean(value):  # type: ignore[no-untyped-def]
        return (
            op.GlobalAveragePool(value) if axes is None else op.ReduceMean(value, axes, keepdims=1)
        )

    middle = mean(x)
    difference = op.Sub(x, middle)
    variance = mean(op.Mul(difference, difference))
    factor = op.Mul(op.Reciprocal(op.Sqrt(op.Add(variance, epsilon))), gain)
    shift = op.Mul(middle, factor)
    return op.Add(op.Mul(x, factor), op.Neg(shift) if bias is None else op.Sub(bias, shift))


def _keras_norm_named(op, x, gain, epsilon, bias=None, **_):  # type: ignore[no-untyped-def]
    inputs = [x, gain] if bias is None else [x, gain, bias]
    return op.LayerNormalization(*inputs, axis=-1, epsilon=scalar_of(epsilon))


def _check_keras_norm(context, x, gain, epsilon, axes=None, bias=None, **_):  # type: ignore[no-untyped-def]
    if not is_static(x) or scalar_of(epsilon) is None:
        return False
    shape = shape_of(x)
    last = len(shape) == 3 if axes is None else ints_of(axes) in ([-1], [len(shape) - 1])
    return last and all(
        v is None or (is_constant(v) and shape_of(v) == shape[-1:]) for v in (gain, bias)
    )


# onnxscript reads the variables of a pattern off its parameters.
_KERAS_NORMS = (
    lambda op, x, gain, epsilon: _keras_norm(op, x, gain, epsilon),  # noqa: PLW0108
    lambda op, x, gain, epsilon, bias: _keras_norm(op, x, gain, epsilon, None, bias),
    lambda op, x, gain, epsilon, axes: _keras_norm(op, x, gain, epsilon, axes),  # noqa: PLW0108
    lambda op, x, gain, epsilon, axes, bias: _keras_norm(op, x, gain, epsilon, axes, bias),  # noqa: PLW0108
)


def _one_over_root(op, x, one):  # type: ignore[no-untyped-def]
    return op.Div(one, op.Sqrt(x))


def _reciprocal_root(op, x, **_):  # type: ignore[no-untyped-def]
    return op.Reciprocal(op.Sqrt(x))


def _check_one(context, one, **_):  # type: ignore[no-untyped-def]
    return scalar_of(one) == 1


RULES = pattern.RewriteRuleSet(
    [
        *(
            pattern.RewriteRule(source, _softmax_named, _check_softmax)
            for source in (_softmax, _softmax_plain)
        ),
        *(
            pattern.RewriteRule(source, _keras_norm_named, _check_keras_norm)
            for source in _KERAS_NORMS
        ),
        pattern.RewriteRule(_one_over_root, _reciprocal_root, _check_one),
    ]
)
