"""Recognise decomposed LayerNormalization, RMSNormalization and Softmax.

    Div(Sub(x, mean), Sqrt(Add(variance, epsilon))) * gain + bias  ->  LayerNormalization(x, ...)
    x * Reciprocal(Sqrt(Add(mean of squares, epsilon))) * gain     ->  RMSNormalization(x, gain)
    Exp(Sub(x, ReduceMax(x))) / ReduceSum(Exp(...))                ->  Softmax(x)

The first two are found by onnxscript's own rule sets. Keras' LayerNormalization, as tf2onnx writes
it, has rules here: in some versions a BatchNormalization of rows by their own mean and variance,
in others x * factor + (bias - mean * factor).
"""

from __future__ import annotations

from typing import Any

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

NORMS = ("LayerNormalization", "RMSNormalization", "Softmax")


def run(model: ir.Model, context: PassContext) -> None:
    # onnxscript's rules compare attributes, so that defaults must be written out.
    common.AddDefaultAttributesPass()(model)
    names = Names(model.graph)
    for node in float32_nodes(model.graph):
        if key_of(node) == ("", "BatchNormalization"):
            _recognise_batch_norm(node, Builder(model, names, node), context)
    before = set(model.graph)
    rewrite(model, pattern_rewrite_rules=RULES)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    _layer_norm.fuse_layer_normalization(model)
    _rms_normalization.fuse_rms_normalization(model)
    tidy(model)
    for node in model.graph:
        if node not in before and node.op_type in NORMS:
            context.matched(node)
        if any(value.shape is None for value in node.outputs):
            infer_node(model, node)


def _recognise_batch_norm(node: ir.Node, b: Builder, context: PassContext) -> None:
    """Keras' LayerNormalization(epsilon=0.001) of rows [1, R, K, 1], written with their statistics.

    The gain and bias of the layer are a Mul and an Add behind, and stay there.
    """
    x = node.inputs[0]
    if x is None or not is_static(x) or len(shape_of(x)) != 4 or len(node.outputs) > 1:
        return
    if not _normalises_by_own_statistics(node, x):
        return
    shape = shape_of(x)
    if shape[0] != 1 or shape[3] != 1:
        context.missed(node, f"it normalises {list(shape)} instead of rows [1, R, K, 1]", fitted=5)
        return
    _, gain, bias, _, _ = node.inputs
    if not _holds(gain, np.ones(shape[1])) or not _holds(bias, np.zeros(shape[1])):
        context.missed(node, "its gain is not 1 or its bias not 0", fitted=5)
        return
    one = b.const(np.ones(shape[2], np.float32), "gain")
    epsilon = attribute_of(node, "epsilon", 1e-5)
    rows = b.reshape(x, shape[1:3])
    norm = b.op("LayerNormalization", [rows, one], {"epsilon": epsilon})
    b.replace(b.reshape(norm, shape))
    context.matched(node)


def _normalises_by_own_statistics(node: ir.Node, x: ir.Value) -> bool:
    """Whether mean and variance are those of x over all axes but its channels."""
    *_, mean, variance = node.inputs
    squeeze = produced_by(mean, "Squeeze")
    ratio = produced_by(variance, "Div")
    if squeeze is None or ratio is None:
        return False
    average = produced_by(squeeze.inputs[0], "ReduceMean")
    squares = produced_by(ratio.inputs[0], "ReduceSumSquare")
    if average is None or squares is None or average.inputs[0] is not x:
        return False
    difference = produced_by(squares.inputs[0], "Sub")
    if difference is None or list(difference.inputs) != [x, average.outputs[0]]:
        return False
    if any(ints_of(input_at(reduction, 1)) != [0, 2, 3] for reduction in (average, squares)):
        return False
    batch, _, height, width = shape_of(x)
    return scalar_of(ratio.inputs[1]) == batch * height * width


def _holds(value: ir.Value | None, array: np.ndarray) -> bool:
    constant = constant_of(value)
    return constant is not None and np.array_equal(constant, array)


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


def _keras_norm(
    op: Any, x: Any, gain: Any, epsilon: Any, axes: Any = None, bias: Any = None
) -> Any:
    """Keras' LayerNormalization as tf2onnx writes it.

    y = x * factor + (bias - mean * factor) with factor = gain / sqrt(variance + epsilon). Without
    axes the means are GlobalAveragePools of three dimensions, which average over the last.
    """

    def mean(value: Any) -> Any:
        if axes is None:
            return op.GlobalAveragePool(value)
        return op.ReduceMean(value, axes, keepdims=1)

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
    if axes is None and len(shape) != 3:
        return False
    if axes is not None and ints_of(axes) not in ([-1], [len(shape) - 1]):
        return False
    parameters = [value for value in (gain, bias) if value is not None]
    return all(is_constant(value) and shape_of(value) == shape[-1:] for value in parameters)


# onnxscript reads the variables of a pattern off its parameters.
_KERAS_NORMS = (
    lambda op, x, gain, epsilon: _keras_norm(op, x, gain, epsilon),  # noqa: PLW0108
    lambda op, x, gain, epsilon, bias: _keras_norm(op, x, gain, epsilon, None, bias),
    lambda op, x, gain, epsilon, axes: _keras_norm(op, x, gain, epsilon, axes),  # noqa: PLW0108
    lambda op, x, gain, epsilon, axes, bias: _keras_norm(op, x, gain, epsilon, axes, bias),  # noqa: PLW0108
)


# The fusion rules of onnxscript know 1 / sqrt(x) as a Reciprocal only.
def _one_over_root(op, x, one):  # type: ignore[no-untyped-def]
    return op.Div(one, op.Sqrt(x))


def _reciprocal_root(op, x, **_):  # type: ignore[no-untyped-def]
    return op.Reciprocal(op.Sqrt(x))


def _check_one(context, one, **_):  # type: ignore[no-untyped-def]
    return scalar_of(one) == 1


RULES = pattern.RewriteRuleSet(
    [
        pattern.RewriteRule(_softmax, _softmax_named, _check_softmax),
        pattern.RewriteRule(_softmax_plain, _softmax_named, _check_softmax),
        *(
            pattern.RewriteRule(source, _keras_norm_named, _check_keras_norm)
            for source in _KERAS_NORMS
        ),
        pattern.RewriteRule(_one_over_root, _reciprocal_root, _check_one),
    ]
)
