"""Give decomposed functions their names back: LayerNormalization, RMSNormalization, Gelu, Softmax.

The rules are patterns of onnxscript's rewriter; LayerNormalization and RMSNormalization use its own rule sets.
"""

from __future__ import annotations

import math
from itertools import product

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


def _cube(op, x, cube):  # type: ignore[no-untyped-def]
    return op.Pow(x, cube)


def _cube_squared(op, x, cube):  # type: ignore[no-untyped-def]
    return op.Mul(x, op.Mul(x, x))


def _tanh_half_first(op, x, tanh, half):  # type: ignore[no-untyped-def]
    return op.Mul(op.Mul(x, half), tanh)


def _tanh_half_last(op, x, tanh, half):  # type: ignore[no-untyped-def]
    return op.Mul(op.Mul(x, tanh), half)


def _tanh_half_inside(op, x, tanh, half):  # type: ignore[no-untyped-def]
    return op.Mul(x, op.Mul(tanh, half))


def _gelu_tanh(power, product):  # type: ignore[no-untyped-def]
    def source(op, x, cube, scale, root, one, half):  # type: ignore[no-untyped-def]
        inner = op.Mul(op.Add(x, op.Mul(power(op, x, cube), scale)), root)
        return product(op, x, op.Add(op.Tanh(inner), one), half)

    return source if power is _cube else lambda op, x, scale, root, one, half: source(op, x, 3, scale, root, one, half)


def _gelu_approximate(op, x, **_):  # type: ignore[no-untyped-def]
    return op.Gelu(x, approximate="tanh")


def _check_gelu_tanh(context, scale, root, one, half, cube=None, **_):  # type: ignore[no-untyped-def]
    if cube is not None and not _is(cube, 3):
        return False
    constants = ((scale, 0.044715), (root, math.sqrt(2 / math.pi)), (one, 1), (half, 0.5))
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


def _one_over_root(op, x, one):  # type: ignore[no-untyped-def]
    return op.Div(one, op.Sqrt(x))


def _reciprocal_root(op, x, **_):  # type: ignore[no-untyped-def]
    return op.Reciprocal(op.Sqrt(x))


def _check_one(context, one, **_):  # type: ignore[no-untyped-def]
    return _is(one, 1)


def _rule(source, target, check):  # type: ignore[no-untyped-def]
    return pattern.RewriteRule(source, target, check)


_CUBES = (_cube, _cube_squared)
_PRODUCTS = (_tanh_half_first, _tanh_half_last, _tanh_half_inside)
_GELU = (_gelu_erf, _gelu_erf_mul, _gelu_erf_half_first, _gelu_erf_half_first_mul, _gelu_erf_half_inside)
RULES = pattern.RewriteRuleSet(
    [
        *(_rule(source, _gelu, _check_gelu) for source in _GELU),
        *(_rule(_gelu_tanh(*spelt), _gelu_approximate, _check_gelu_tanh) for spelt in product(_CUBES, _PRODUCTS)),
        _rule(_one_over_root, _reciprocal_root, _check_one),
        *(_rule(source, _softmax_named, _check_softmax) for source in (_softmax, _softmax_plain)),
    ],
    commute=True,
)
