"""Give decomposed functions their names back: LayerNormalization, RMSNormalization, Gelu, Softmax, Attention.

The rules are patterns of onnxscript's rewriter; LayerNormalization and RMSNormalization use its own rule sets.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript.rewriter import pattern, rewrite
from onnxscript.rewriter.rules.fusion import _layer_norm, _rms_normalization

from compiler import ir as cir
from compiler.targets import Target
from passes.fold_constants import tidy


def run(model: ir.Model, target: Target) -> None:
    common.AddDefaultAttributesPass()(model)
    rewrite(model, pattern_rewrite_rules=RULES)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    _layer_norm.fuse_layer_normalization(model)
    _rms_normalization.fuse_rms_normalization(model)
    tidy(model)
    for node in model.graph:
        for value in node.outputs:
            if value.shape is None:
                cir.infer_node(model, node)


def _is(value: ir.Value, number: float) -> bool:
    found = cir.scalar(value)
    return found is not None and math.isclose(found, number, rel_tol=1e-3)


def _gelu_erf(op, x, root, one, half):  # type: ignore[no-untyped-def]
    return op.Mul(op.Mul(x, op.Add(op.Erf(op.Div(x, root)), one)), half)


def _gelu_erf_mul(op, x, root, one, half):  # type: ignore[no-untyped-def]
    return op.Mul(op.Mul(x, op.Add(op.Erf(op.Mul(x, root)), one)), half)


def _gelu_erf_half_first(op, x, root, one, half):  # type: ignore[no-untyped-def]
    return op.Mul(op.Mul(x, half), op.Add(op.Erf(op.Div(x, root)), one))


def _gelu_erf_half_first_mul(op, x, root, one, half):  # type: ignore[no-untyped-def]
    return op.Mul(op.Mul(x, half), op.Add(op.Erf(op.Mul(x, root)), one))


def _gelu_erf_half_inside(op, x, root, one, half):  # type: ignore[no-untyped-def]
    return op.Mul(x, op.Mul(op.Add(op.Erf(op.Div(x, root)), one), half))


def _gelu(op, x, root, **_):  # type: ignore[no-untyped-def]
    return op.Gelu(x, approximate="none")


def _check_gelu(context, root, one, half, **_):  # type: ignore[no-untyped-def]
    exact = any(_is(root, r) for r in (math.sqrt(2), math.sqrt(0.5)))
    return exact and _is(one, 1) and _is(half, 0.5)


def _gelu_tanh(op, x, cube, scale, root, one, half):  # type: ignore[no-untyped-def]
    inner = op.Mul(op.Add(x, op.Mul(op.Pow(x, cube), scale)), root)
    return op.Mul(op.Mul(x, half), op.Add(op.Tanh(inner), one))


def _gelu_tanh_half_last(op, x, cube, scale, root, one, half):  # type: ignore[no-untyped-def]
    inner = op.Mul(op.Add(x, op.Mul(op.Pow(x, cube), scale)), root)
    return op.Mul(op.Mul(x, op.Add(op.Tanh(inner), one)), half)


def _gelu_approximate(op, x, **_):  # type: ignore[no-untyped-def]
    return op.Gelu(x, approximate="tanh")


def _check_gelu_tanh(context, cube, scale, root, one, half, **_):  # type: ignore[no-untyped-def]
    constants = ((cube, 3), (scale, 0.044715), (root, math.sqrt(2 / math.pi)), (one, 1), (half, 0.5))
    return all(_is(value, number) for value, number in constants)


def _softmax(op, x, axes):  # type: ignore[no-untyped-def]
    power = op.Exp(op.Sub(x, op.ReduceMax(x, axes, keepdims=1)))
    return op.Div(power, op.ReduceSum(power, axes, keepdims=1))


def _softmax_plain(op, x, axes):  # type: ignore[no-untyped-def]
    power = op.Exp(x)
    return op.Div(power, op.ReduceSum(power, axes, keepdims=1))


def _softmax_named(op, x, axes):  # type: ignore[no-untyped-def]
    return op.Softmax(x, axis=(cir.ints(axes) or [-1])[0])


def _check_softmax(context, x, axes):  # type: ignore[no-untyped-def]
    return len(cir.ints(axes) or ()) == 1


def _attention(scaling: str, masked: bool):  # type: ignore[no-untyped-def]
    """softmax(q k^T scale + mask) v, with the scale multiplied, divided by, or absent."""

    def source(op, q, keys, v, scale, mask):  # type: ignore[no-untyped-def]
        scores = op.MatMul(q, keys)
        if scaling:
            scores = getattr(op, scaling)(scores, scale)
        if masked:
            scores = op.Add(scores, mask)
        return op.MatMul(op.Softmax(scores, axis=-1), v)

    def target(op, q, keys, v, scale=None, mask=None):  # type: ignore[no-untyped-def]
        factor = cir.scalar(scale) if scaling else 1.0
        factor = 1 / factor if scaling == "Div" else factor
        inputs = [q, op.Transpose(keys, perm=[0, 1, 3, 2]), v]
        if masked:
            inputs.append(_whole(op, mask, cir.shape(q)[2], cir.shape(keys)[3]))
        return op.Attention(*inputs, scale=float(factor))

    def check(context, q, keys, v, scale=None, mask=None):  # type: ignore[no-untyped-def]
        values = [q, keys, v, *([mask] if masked else [])]
        if not all(cir.is_static(value) and value.dtype == ir.DataType.FLOAT for value in values):
            return False
        return all(len(cir.shape(value)) == 4 for value in values) and (not scaling or bool(cir.scalar(scale)))

    return _rule(_named(source, scaling, masked), target, check)


def _whole(op, mask, queries: int, keys: int):  # type: ignore[no-untyped-def]
    """A mask with a row for each query and a column for each key, which onnxruntime asks for."""
    batch = cir.shape(mask)[:2]
    if cir.shape(mask) == (*batch, queries, keys):
        return mask
    return op.Expand(mask, op.Constant(value=ir.tensor(np.array([*batch, queries, keys], np.int64))))


def _named(source, scaling: str, masked: bool):  # type: ignore[no-untyped-def]
    """The pattern with only the variables that it has."""
    if scaling and masked:
        return source
    if scaling:
        return lambda op, q, keys, v, scale: source(op, q, keys, v, scale, None)
    if masked:
        return lambda op, q, keys, v, mask: source(op, q, keys, v, None, mask)
    return lambda op, q, keys, v: source(op, q, keys, v, None, None)


def _rule(source, target, check):  # type: ignore[no-untyped-def]
    return pattern.RewriteRule(source, target, check)


_GELU = (_gelu_erf, _gelu_erf_mul, _gelu_erf_half_first, _gelu_erf_half_first_mul, _gelu_erf_half_inside)
RULES = pattern.RewriteRuleSet(
    [
        *(_rule(source, _gelu, _check_gelu) for source in _GELU),
        *(_rule(source, _gelu_approximate, _check_gelu_tanh) for source in (_gelu_tanh, _gelu_tanh_half_last)),
        *(_rule(source, _softmax_named, _check_softmax) for source in (_softmax, _softmax_plain)),
        *(_attention(scaling, masked) for scaling in ("Mul", "Div", "") for masked in (True, False)),
    ],
    commute=True,
)
