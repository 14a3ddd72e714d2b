"""Writes the ONNX model of a host segment.

Tensors that come from the Edge TPU arrive as int8 and become float inside; those that only the Edge
TPU reads leave as int8, each with the sum of its absolute values as float: by that the runtime sees
NaN, which int8 has not.

Normalised products (passes/normalise_linears.py) that the user wants in int8 on the host too become
onnxruntime's QGemm, on the very weights that a segment for the Edge TPU would have; its float
result needs no scale of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from compiler.emit.store import LEAST_BYTES, Store
from compiler.graph import (
    BALANCED,
    IR_VERSION,
    OPSET,
    array_of,
    consumers_of,
    element_count,
    is_constant,
    only_consumer,
    shape_of,
    values_read,
)
from compiler.ops import operator_of
from compiler.partition import Program, Segment
from compiler.quantize import weights
from compiler.runtime.onnx_segment import NAN_SUM, NAN_SUMS

CONTRIB = "com.microsoft"
# Normalised rows as uint8: 1 is 127 steps from zero, as in a segment for the Edge TPU.
ROW_SCALE, ROW_ZERO = np.float32(1 / 127), np.uint8(128)


def write(program: Program, segment: Segment, path: Path, store: Store) -> list[Path]:
    """Write the segment as a model of its own. Returns the files that it is read from, its own
    first."""
    return _Writer(program, segment, store).write(path)


class _Writer:
    def __init__(self, program: Program, segment: Segment, store: Store) -> None:
        self.program, self.segment, self.store = program, segment, store
        self.graph = onnx.GraphProto()
        self.files: dict[str, None] = {}
        self.constants: set[str] = set()
        self.domains = {"": OPSET}

    def write(self, path: Path) -> list[Path]:
        program, segment, model = self.program, self.segment, self.program.model
        self.graph.name = path.stem
        self.graph.input.extend(
            self.boundary(v, v in program.dequantized_inside) for v in segment.inputs
        )
        for value in segment.inputs:
            if value in program.dequantized_inside:
                self.change("DequantizeLinear", value, f"{value.name}/int8", str(value.name))
        products = _products(segment.nodes) if program.plan.options.host_int8 else {}
        skipped = {node for product in products.values() for node in product.replaced}
        for node in segment.nodes:
            if node in products:
                self.product(products[node])
            elif node not in skipped:
                self.node(node)
        for value in segment.outputs:
            inside = value in program.quantized_inside
            if inside:
                self.change("QuantizeLinear", value, str(value.name), f"{value.name}/int8")
            self.graph.output.append(self.boundary(value, inside))
        quantized = [value for value in segment.outputs if value in program.quantized_inside]
        self.graph.output.extend(map(self.nan_sum, quantized))
        proto = onnx.ModelProto(
            ir_version=IR_VERSION, producer_name="coral-bundle", graph=self.graph
        )
        used = {node.op_identifier() for node in segment.nodes}
        proto.functions.extend(
            ir.serde.serialize_function(f) for i, f in model.functions.items() if i in used
        )
        for domain, version in sorted((self.domains | model.opset_imports).items()):
            if domain in {*self.domains, ""}:
                proto.opset_import.append(onnx.helper.make_opsetid(domain, version))
        onnx.helper.set_model_props(proto, {NAN_SUMS: str(len(quantized))})
        path.write_bytes(proto.SerializeToString(deterministic=True))
        return [path, *(path.parent / name for name in self.files)]

    def node(self, node: ir.Node) -> None:
        for value in values_read(node):
            if is_constant(value):
                self.constant(value)
        self.domains.setdefault(node.domain, self.program.model.opset_imports.get(node.domain, 1))
        self.graph.node.append(ir.serde.serialize_node(node))

    def product(self, product: _Product) -> None:
        """A normalised product in int8: its tiles, each scaled as the whole is."""
        rows = self.rows(product)
        factors, start = array_of(product.factors), 0
        for node in product.tiles:
            count = shape_of(node.inputs[1])[0]
            self.tile(node, rows, factors[start : start + count])
            start += count
        for node in product.joins:
            self.node(node)
        self.op("Identity", [str(product.z.name)], str(product.result.name))

    def rows(self, product: _Product) -> list[str]:
        """[rows as uint8 [S, K], scale, zero point]. onnxruntime quantizes a single row from what
        it was before it was normalised; several have the scale that they were normalised to."""
        name = f"{product.result.name}/rows"
        found = [f"{name}/uint8", f"{name}/scale", f"{name}/zero_point"]
        if product.single is not None:
            source = [str(product.single.name)]
            self.graph.node.append(
                onnx.helper.make_node("DynamicQuantizeLinear", source, found, name=name)
            )
            return found
        x = product.tiles[0].inputs[0]
        assert x is not None
        self.op(
            "Reshape",
            [str(x.name), self.array(f"{name}/shape", np.array([-1, shape_of(x)[-1]]))],
            name,
        )
        self.op(
            "QuantizeLinear",
            [name, self.array(found[1], ROW_SCALE), self.array(found[2], ROW_ZERO)],
            found[0],
        )
        return found

    def tile(self, node: ir.Node, rows: Sequence[str], factors: np.ndarray) -> None:
        """A FullyConnected or 1x1 Conv2D as QGemm, its outputs multiplied by `factors`."""
        weight, name, shape = node.inputs[1], str(node.outputs[0].name), shape_of(node.outputs[0])
        assert weight is not None
        count, inputs = shape_of(weight)[:2]
        around = weights.Surroundings(str(weight.name), float(ROW_SCALE), float(ROW_SCALE))
        matrix, scales, _ = weights.quantize(array_of(weight), np.zeros(count, np.float32), around)
        constants = [
            self.array(f"{name}/weights", matrix.reshape(count, inputs)),
            self.array(f"{name}/scales", scales * factors),
            self.array(f"{name}/zeros", np.zeros(count, np.int8)),
        ]
        flat = name if len(shape) == 2 else f"{name}/flat"
        self.op("QGemm", [*rows, *constants], flat, CONTRIB, transB=1)
        if flat != name:
            self.op("Reshape", [flat, self.array(f"{name}/shape", np.array(shape))], name)

    def op(
        self, op_type: str, inputs: Sequence[str], output: str, domain: str = "", **attributes: Any
    ) -> None:
        self.domains.setdefault(domain, 1)
        self.graph.node.append(
            onnx.helper.make_node(
                op_type, inputs, [output], name=output, domain=domain, **attributes
            )
        )

    def change(self, op_type: str, value: ir.Value, source: str, result: str) -> None:
        """Between float and the int8 scale of a value."""
        quant = self.program.quants[str(value.name)]
        name = str(value.name)
        scale = self.array(f"{name}/scale", np.float32(quant.scale))
        self.op(
            op_type,
            [source, scale, self.array(f"{name}/zero_point", np.int8(quant.zero_point))],
            result,
        )

    def nan_sum(self, value: ir.Value) -> onnx.ValueInfoProto:
        """A number that is NaN where the value holds NaN: ReduceMax passes over some, a plain sum
        adds infinities."""
        name = f"{value.name}{NAN_SUM}"
        self.op("ReduceL1", [str(value.name)], name, keepdims=0)
        return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ())

    def boundary(self, value: ir.Value, quantized: bool) -> onnx.ValueInfoProto:
        if not quantized:
            return ir.serde.serialize_value(value)
        return onnx.helper.make_tensor_value_info(
            f"{value.name}/int8", onnx.TensorProto.INT8, shape_of(value)
        )

    def array(self, name: str, array: np.ndarray | np.generic) -> str:
        self.add(name, np.asarray(array))
        return name

    def constant(self, value: ir.Value) -> None:
        tensor, name = value.const_value, str(value.name)
        assert tensor is not None
        if tensor.dtype != ir.DataType.STRING and tensor.dtype.itemsize >= 1:
            self.add(name, tensor.numpy())
        elif name not in self.constants:
            self.constants.add(name)
            proto = ir.serde.serialize_tensor(tensor)
            proto.name = name
            self.graph.initializer.append(proto)

    def add(self, name: str, array: np.ndarray) -> None:
        if name in self.constants:
            return
        self.constants.add(name)
        if array.nbytes < LEAST_BYTES:
            self.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
            return
        place = self.store.place(array)
        self.files[place.file] = None
        kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        proto = onnx.TensorProto(
            name=name, data_type=kind, dims=array.shape, data_location=onnx.TensorProto.EXTERNAL
        )
        for key, entry in (
            ("location", place.file),
            ("offset", place.offset),
            ("length", place.length),
        ):
            proto.external_data.add(key=key, value=str(entry))
        self.graph.initializer.append(proto)


@dataclass(frozen=True)
class _Product:
    """A normalised product: its tiles, what joins them to z, and `result`, which is z times
    `factors` plus offsets.

    Of a product of a single row, `single` is that row as it was before it was normalised, and
    `result` what the normalisation is undone in too.
    """

    z: ir.Value
    factors: ir.Value
    result: ir.Value
    tiles: list[ir.Node]
    joins: list[ir.Node]
    replaced: frozenset[ir.Node]
    single: ir.Value | None = None


def _products(nodes: Sequence[ir.Node]) -> dict[ir.Node, _Product]:
    """The normalised products that lie wholly within `nodes`, by the node in whose place they are
    written."""
    inside, found = set(nodes), {}
    for scale in nodes:
        shift = only_consumer(scale.outputs[0]) if BALANCED in scale.metadata_props else None
        if shift is None or shift not in inside:
            continue
        z, factors = scale.inputs
        assert z is not None and factors is not None
        tiles: list[ir.Node] = []
        joins: list[ir.Node] = []
        if not _collect(z, inside, tiles, joins):
            continue
        replaced = frozenset({*tiles, *joins, scale, shift})
        product = _Product(z, factors, shift.outputs[0], tiles, joins, replaced)
        whole = _single(product, shift, inside)
        found[whole[0]] = whole[1]
    return found


def _single(product: _Product, shift: ir.Node, inside: set[ir.Node]) -> tuple[ir.Node, _Product]:
    """(the last node replaced, the product), with its normalisation where that is of one row and
    all inside."""
    plain = shift, product
    rows, undo = product.tiles[0].inputs[0], only_consumer(shift.outputs[0])
    divide = rows.producer() if rows is not None else None
    if (
        rows is None
        or divide is None
        or undo is None
        or divide.op_type != "Div"
        or undo not in inside
    ):
        return plain
    row, peak = divide.inputs
    chain = [divide]
    while row not in chain[-1].inputs or len(chain) == 1:
        source = (peak if len(chain) == 1 else chain[-1].inputs[0]).producer()  # type: ignore[union-attr]
        if source is None or source not in inside:
            return plain
        chain.append(source)
    users = {*consumers_of(rows), *consumers_of(peak)}  # type: ignore[arg-type]
    if (
        element_count(rows) != shape_of(rows)[-1]
        or len(shape_of(rows)) != 2
        or users != {*product.tiles, divide, undo}
    ):
        return plain
    replaced = product.replaced | {*chain, undo}
    return undo, replace(product, result=undo.outputs[0], replaced=replaced, single=row)


def _collect(z: ir.Value, inside: set[ir.Node], tiles: list[ir.Node], joins: list[ir.Node]) -> bool:
    """Whether z is a product, or joined from products, that nobody else reads."""
    node = z.producer()
    if node is None or node not in inside or only_consumer(z) is None:
        return False
    if operator_of(node).linear == "dense":
        tiles.append(node)
        return True
    if node.op_type != "Concat":
        return False
    joins.append(node)
    return all(v is not None and _collect(v, inside, tiles, joins) for v in node.inputs)
