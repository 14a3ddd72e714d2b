"""Writes what a host segment does to the rows of normalised products, where they pass to an Edge
TPU and back, in as few operators as onnxruntime has for it.

Rows are divided by their peaks while they are quantized, and their results get factors and offsets
while they are dequantized. That takes blocks of quantization: of one scale for a row, and of one
scale for a channel.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from compiler.emit.host_model import HostModel, int8_name
from compiler.graph import (
    array_of,
    consumers_of,
    is_constant,
    is_raised,
    produced_by,
    shape_of,
)
from compiler.partition import Program
from compiler.quant import Quant
from compiler.quantize.products import Product, products

# How far from a whole number of steps an offset may be, to be a zero point.
NEAR = 1e-3


@dataclass(frozen=True)
class Results:
    """The results of a product that come as int8 and become float with factors and offsets.

    Each channel has a scale and a zero point of its own. They stand for `nodes`, of which the last
    gives `made`.
    """

    made: ir.Value
    scales: np.ndarray
    zero_points: np.ndarray
    nodes: tuple[ir.Node, ...]


@dataclass(frozen=True)
class Rows:
    """Rows that are divided by their peaks by the node `divide`, and leave as int8."""

    source: ir.Value
    peak: ir.Value
    divide: ir.Node


def results(program: Program, nodes: Sequence[ir.Node]) -> dict[ir.Value, Results]:
    """The results of products on an Edge TPU that a host segment of `nodes` can dequantize at once,
    by the tensor that comes as int8."""
    inside = set(nodes)
    found = {}
    for product in products(nodes).values():
        quant = program.quants.get(str(product.z.name))
        comes = product.z in program.dequantized_inside
        if comes and quant is not None and consumers_of(product.z) == [product.scale]:
            found[product.z] = _results(product, quant, inside)
    return found


def _results(product: Product, quant: Quant, inside: set[ir.Node]) -> Results:
    scales = array_of(product.factors) * np.float32(quant.scale)
    steps = quant.zero_point - array_of(product.offsets).astype(np.float64) / scales
    zero_points = np.round(steps)
    is_whole = np.abs(steps - zero_points).max() < NEAR
    limits = np.iinfo(np.int8)
    fits = limits.min <= zero_points.min() and zero_points.max() <= limits.max
    nodes: tuple[ir.Node, ...] = (product.scale, product.shift)
    if not (is_whole and fits and product.shift in inside):
        zero_points = np.full(scales.shape, quant.zero_point)
        nodes = (product.scale,)
    made = nodes[-1].outputs[0]
    return Results(made, scales, zero_points.astype(np.int8), nodes)


def rows(program: Program, nodes: Iterable[ir.Node]) -> dict[ir.Value, Rows]:
    """The rows that a host segment of `nodes` can divide by their peaks while it quantizes them, by
    the tensor that leaves as int8."""
    found: dict[ir.Value, Rows] = {}
    if not is_raised(program.model):
        return found  # blocks are of newer opsets
    for divide in nodes:
        value = divide.outputs[0]
        if divide.op_type != "Div" or value not in program.quantized_inside:
            continue
        source, peak = divide.inputs
        assert source is not None and peak is not None
        is_of_rows = shape_of(peak) == (*shape_of(source)[:-1], 1)
        if is_of_rows and is_positive(peak) and program.quants[str(value.name)].zero_point == 0:
            found[value] = Rows(source, peak, divide)
    return found


def is_positive(peak: ir.Value | None) -> bool:
    """Whether a value is a Max with a positive constant, so that it may be a scale."""
    largest = produced_by(peak, "Max")
    if largest is None:
        return False
    constants = [value for value in largest.inputs if value is not None and is_constant(value)]
    return any(array_of(value).min(initial=1.0) > 0 for value in constants)


def write_results(value: ir.Value, found: Results, model: HostModel) -> None:
    """Dequantize `value`, each channel by its scale and zero point."""
    shape = shape_of(value)
    # Blocks of all rows: onnxruntime then goes through the channels of a row at once, which it does
    # not where scales have the last axis.
    whole = (*shape[:-2], 1, shape[-1])
    constants = [
        model.array(f"{value.name}/scales", np.broadcast_to(found.scales, whole).copy()),
        model.array(f"{value.name}/zero_points", np.broadcast_to(found.zero_points, whole).copy()),
    ]
    model.append(
        onnx.helper.make_node(
            "DequantizeLinear",
            [int8_name(value), *constants],
            [str(found.made.name)],
            name=str(found.made.name),
            axis=len(shape) - 2,
            block_size=shape[-2],
        )
    )


def write_rows(value: ir.Value, found: Rows, quant: Quant, model: HostModel) -> None:
    """Quantize the rows that `value` would hold, each by its peak."""
    name = str(value.name)
    scale = model.array(f"{name}/scale", np.float32(quant.scale))
    model.op("Mul", [str(found.peak.name), scale], [f"{name}/scales"])
    model.append(
        onnx.helper.make_node(
            "QuantizeLinear",
            [str(found.source.name), f"{name}/scales"],
            [int8_name(value)],
            name=int8_name(value),
            axis=len(shape_of(value)) - 1,
            block_size=shape_of(value)[-1],
            output_dtype=onnx.TensorProto.INT8,
        )
    )


def write_nan_sum(found: Rows, total: str, model: HostModel) -> None:
    """A number that is NaN where a row holds NaN or infinity, of which no row can be made."""
    model.op("ReduceL1", [str(found.source.name)], [f"{total}/sum"], keepdims=0)
    # Infinity times zero is NaN.
    model.op("Mul", [f"{total}/sum", model.array(f"{total}/zero", np.float32(0))], [total])
