"""Recognise decomposed LayerNormalization, RMSNormalization and Softmax.

    Div(Sub(x, mean), Sqrt(Add(variance, epsilon))) * gain + bias  ->  LayerNormalization(x, ...)
    x * Reciprocal(Sqrt(Add(mean of squares, epsilon))) * gain     ->  RMSNormalization(x, gain)
    (x - m) * Reciprocal(Sqrt(Add(mean of squares - m * m, epsilon)))  ->  LayerNormalization(x)
    Exp(Sub(x, ReduceMax(x))) / ReduceSum(Exp(...))                ->  Softmax(x)

The first two are found by onnxscript's own rule sets. The third is Flax's, whose variance loses
digits where the mean is large; the operator has it from differences. Keras' LayerNormalization, as
tf2onnx writes it, has rules here: in some versions a BatchNormalization of rows by their own mean
and variance, in others x * factor + (bias - mean * factor).
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
    element_count,
    float32_nodes,
    infer_node,
    input_at,
    ints_of,
    is_constant,
    is_near,
    is_static,
    key_of,
    produced_by,
    scalar_of,
    shape_of,
    unscaled,
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
    names = Names(model.graph)
    for node in float32_nodes(model.graph):
        if key_of(node) == ("", "Mul"):
            _recognise_moments(node, Builder(model, names, node))
    _layer_norm.fuse_layer_normalization(model)
    _rms_normalization.fuse_rms_normalization(model)
    tidy(model)
    for node in model.graph:
        if node not in before and node.op_type in NORMS:
            context.matched(node)
        if any(value.shape is None for value in node.outputs):
            infer_node(model, node)


def _recognise_moments(node: ir.Node, b: Builder) -> None:
    """(x - m) / sqrt(mean of squares - m^2 + epsilon), with a gain perhaps, over the last axis."""
    for centred, factor in (node.inputs, node.inputs[::-1]):
        difference = produced_by(centred, "Sub")
        inverse, gain = _without_gain(factor)
        if difference is None or inverse is None:
            continue
        x, mean = difference.inputs
        epsilon = _epsilon_of(inverse, x, mean)
        if x is None or epsilon is None or _row_mean_of(mean) is not x:
            continue
        width = shape_of(x)[-1]
        if gain is None:
            gain = b.const(np.ones(width, np.float32), "gain")
        elif shape_of(gain)[-1:] != (width,) or element_count(gain) != width:
            continue
        gain = b.reshape(gain, (width,)) if shape_of(gain) != (width,) else gain
        b.replace(b.op("LayerNormalization", [x, gain], {"axis": -1, "epsilon": epsilon}))
        return


def _without_gain(value: ir.Value | None) -> tuple[ir.Node | None, ir.Value | None]:
    """The Reciprocal that makes a factor, and the constant that it is multiplied by."""
    product = produced_by(value, "Mul")
    if product is None:
        return produced_by(value, "Reciprocal"), None
    for other, gain in (product.inputs, product.inputs[::-1]):
        if gain is not None and is_constant(gain):
            return produced_by(other, "Reciprocal"), gain
    return None, None


def _epsilon_of(inverse: ir.Node, x: ir.Value | None, mean: ir.Value | None) -> float | None:
    """Epsilon of 1 / sqrt(mean of squares of x - mean^2 + epsilon); None where it is not that."""
    root = produced_by(inverse.inputs[0], "Sqrt")
    total = None if root is None else produced_by(root.inputs[0], "Add")
    if total is None:
        return None
    for variance, epsilon in (total.inputs, total.inputs[::-1]):
        number = scalar_of(epsilon)
        if number is not None and _is_variance(_unclamped(variance), x, mean):
            return number
    return None


def _unclamped(value: ir.Value | None) -> ir.Value | None:
    """What a value is where it is not negative."""
    clamp = produced_by(value, "Max") or produced_by(value, "Relu")
    if clamp is None:
        return value
    inner = [v for v in clamp.inputs if v is not None and not is_constant(v)]
    limits = [scalar_of(v) for v in clamp.inputs if v not in inner]
    return inner[0] if len(inner) == 1 and all(limit == 0 for limit in limits) else None


def _is_variance(value: ir.Value | None, x: ir.Value | None, mean: ir.Value | None) -> bool:
    difference = produced_by(value, "Sub")
    if difference is None:
        return False
    squares, squared_mean = difference.inputs
    return _squared(_row_mean_of(squares)) is x and _squared(squared_mean) is mean


def _squared(value: ir.Value | None) -> ir.Value | None:
    """x of x * x."""
    product = produced_by(value, "Mul")
    if product is not None and product.inputs[0] is product.inputs[1]:
        return product.inputs[0]
    power = produced_by(value, "Pow")
    return power.inputs[0] if power is not None and scalar_of(power.inputs[1]) == 2 else None


def _row_mean_of(value: ir.Value | None) -> ir.Value | None:
    """x, where a value is its mean over the last axis, which stays as 1."""
    node = produced_by(value, "ReduceMean")
    factor = 1.0
    if node is None and value is not None:
        rest, factor = unscaled(value)
        node = produced_by(rest, "ReduceSum")
    x = None if node is None else node.inputs[0]
    if node is None or x is None or not is_static(x) or attribute_of(node, "keepdims", 1) != 1:
        return None
    shape = shape_of(x)
    if ints_of(input_at(node, 1)) not in ([-1], [len(shape) - 1]):
        return None
    wanted = 1.0 if node.op_type == "ReduceMean" else 1 / shape[-1]
    return x if is_near(factor, wanted) else None


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
