"""Writes the ONNX model of a host segment.

Tensors that come from the Edge TPU arrive as int8 and become float inside. Those that only the Edge
TPU reads leave as int8, each with the sum of its absolute values as float: the runtime sees NaN by
that, as int8 has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from compiler.emit import qgemm, rows
from compiler.emit.host_model import HostModel, int8_name
from compiler.emit.store import Store
from compiler.partition import Program, Segment
from compiler.runtime.onnx_segment import NAN_SUM, NAN_SUMS


def write(program: Program, segment: Segment, path: Path, store: Store) -> list[Path]:
    """Write the segment as a model of its own. Returns the files that it is read from, its own
    first."""
    model = HostModel(path.stem, program.model.opset_imports, store)
    results = rows.results(program, segment.nodes)
    divided = rows.rows(program, segment.nodes)
    written = {found.divide for found in divided.values()}
    for found in results.values():
        written.update(found.nodes)
    _write_inputs(program, segment, results, model)
    _write_nodes(program, [node for node in segment.nodes if node not in written], model)
    nan_sums = _write_outputs(program, segment, divided, model)
    used = {node.op_identifier() for node in segment.nodes}
    functions = [function for key, function in program.model.functions.items() if key in used]
    proto = model.finished(functions, {NAN_SUMS: str(nan_sums)})
    path.write_bytes(proto.SerializeToString(deterministic=True))
    return [path, *(path.parent / name for name in model.files)]


def _write_inputs(
    program: Program,
    segment: Segment,
    results: Mapping[ir.Value, rows.Results],
    model: HostModel,
) -> None:
    for value in segment.inputs:
        model.input(value, value in program.dequantized_inside)
    for value in segment.inputs:
        if value in results:
            rows.write_results(value, results[value], model)
        elif value in program.dequantized_inside:
            _dequantize(program, value, model)


def _write_outputs(
    program: Program, segment: Segment, divided: Mapping[ir.Value, rows.Rows], model: HostModel
) -> int:
    """Writes what leaves the segment; returns how many outputs behind the last tell of NaN."""
    quantized = []
    for value in segment.outputs:
        is_int8 = value in program.quantized_inside
        if value in divided:
            rows.write_rows(value, divided[value], program.quants[str(value.name)], model)
        elif is_int8:
            _quantize(program, value, model)
        if is_int8:
            quantized.append(value)
        model.output(value, is_int8)
    for value in quantized:
        total = f"{value.name}{NAN_SUM}"
        if value in divided:
            rows.write_nan_sum(divided[value], total, model)
        else:
            _nan_sum(model, value, total)
        model.scalar_output(total)
    return len(quantized)


def _write_nodes(program: Program, nodes: Sequence[ir.Node], model: HostModel) -> None:
    """The nodes, and normalised products in int8 where the user wants that on the host too."""
    products = {}
    if program.plan.options.host_int8:
        products = qgemm.host_products(nodes)
    replaced: set[ir.Node] = set()
    for product in products.values():
        replaced |= product.replaced
    for node in nodes:
        if node in products:
            qgemm.write(products[node], model)
        elif node not in replaced:
            model.node(node)


def _dequantize(program: Program, value: ir.Value, model: HostModel) -> None:
    """Make the float form of a value from its int8 form."""
    inputs = [int8_name(value), *_scale(program, value, model)]
    model.op("DequantizeLinear", inputs, [str(value.name)])


def _quantize(program: Program, value: ir.Value, model: HostModel) -> None:
    """Make the int8 form of a value from its float form."""
    inputs = [str(value.name), *_scale(program, value, model)]
    model.op("QuantizeLinear", inputs, [int8_name(value)])


def _scale(program: Program, value: ir.Value, model: HostModel) -> list[str]:
    """Names of the constants with the scale and the zero point of a value."""
    quant = program.quants[str(value.name)]
    return [
        model.array(f"{value.name}/scale", np.float32(quant.scale)),
        model.array(f"{value.name}/zero_point", np.int8(quant.zero_point)),
    ]


def _nan_sum(model: HostModel, value: ir.Value, total: str) -> None:
    """A number that is NaN where the value holds NaN: ReduceMax passes over some, and a plain sum
    adds infinities of both signs."""
    model.op("ReduceL1", [str(value.name)], [total], keepdims=0)
