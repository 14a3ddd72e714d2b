"""Writes the ONNX model of a host segment.

Tensors that come from the Edge TPU arrive as int8 and become float inside; those that only the Edge TPU reads leave as
int8. Normalised products (passes/normalise_linears.py) that the user wants in int8 on the host too become onnxruntime's
QGemm, on the very weights that a segment for the Edge TPU would have; its float result needs no scale of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from compiler import ir as cir
from compiler.emit.store import LEAST_BYTES, Store
from compiler.partition import Segment
from compiler.program import Program
from compiler.quantize import weights

CONTRIB = "com.microsoft"
# Normalised rows as uint8: 1 is 127 steps from zero, as in a segment for the Edge TPU.
ROW_SCALE, ROW_ZERO = np.float32(1 / 127), np.uint8(128)


def write(program: Program, segment: Segment, path: Path, store: Store) -> list[Path]:
    """Write the segment as a model of its own. Returns the files that it is read from, its own first."""
    return _Writer(program, segment, store).write(path)


class _Writer:
    def __init__(self, program: Program, segment: Segment, store: Store) -> None:
        self.program, self.segment, self.store = program, segment, store
        self.graph = onnx.GraphProto()
        self.files: dict[str, None] = {}
        self.constants: set[str] = set()
        self.domains = {"": cir.OPSET}

    def write(self, path: Path) -> list[Path]:
        program, segment, model = self.program, self.segment, self.program.model
        self.graph.name = path.stem
        self.graph.input.extend(self.border(v, v in program.dequantized_inside) for v in segment.inputs)
        for value in segment.inputs:
            if value in program.dequantized_inside:
                self.change("DequantizeLinear", value, f"{value.name}/int8", str(value.name))
        products = _products(segment.nodes) if program.plan.wishes.host_int8 else {}
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
            self.graph.output.append(self.border(value, inside))
        proto = onnx.ModelProto(ir_version=cir.IR_VERSION, producer_name="coral-bundle", graph=self.graph)
        used = {node.op_identifier() for node in segment.nodes}
        proto.functions.extend(ir.serde.serialize_function(f) for i, f in model.functions.items() if i in used)
        for domain, version in sorted((self.domains | model.opset_imports).items()):
            if domain in {*self.domains, ""}:
                proto.opset_import.append(onnx.helper.make_opsetid(domain, version))
        path.write_bytes(proto.SerializeToString(deterministic=True))
        return [path, *(path.parent / name for name in self.files)]

    def node(self, node: ir.Node) -> None:
        for value in cir.reads(node):
            if cir.is_const(value):
                self.constant(value)
        self.domains.setdefault(node.domain, self.program.model.opset_imports.get(node.domain, 1))
        self.graph.node.append(ir.serde.serialize_node(node))

    def product(self, product: _Product) -> None:
        """The tiles of a normalised product in int8, each scaled as the whole is."""
        factors, start = cir.array_of(product.factors), 0
        for node in product.tiles:
            x, weight, bias = node.inputs
            assert x is not None and weight is not None and bias is not None
            outputs, inputs = cir.shape(weight)[:2]
            around = weights.Surroundings(str(weight.name), float(ROW_SCALE), float(ROW_SCALE))
            zeros = np.zeros(outputs, np.float32)
            quantized, scales, _ = weights.quantize(cir.array_of(weight), zeros, around)
            scales = scales * factors[start : start + outputs]
            start += outputs
            name = str(node.outputs[0].name)
            parts = [f"{name}/rows", f"{name}/uint8", f"{name}/product"]
            steps = [self.array("step", ROW_SCALE), self.array("zero", ROW_ZERO)]
            matrix = [
                self.array(f"{name}/weights", quantized.reshape(outputs, inputs)),
                self.array(f"{name}/scales", scales.astype(np.float32)),
                self.array(f"{name}/zeros", np.zeros(outputs, np.int8)),
            ]
            self.op("Reshape", [str(x.name), self.array(f"{name}/shape", np.array([-1, inputs]))], parts[0])
            self.op("QuantizeLinear", [parts[0], *steps], parts[1])
            self.op("QGemm", [parts[1], *steps, *matrix], parts[2], CONTRIB, transB=1)
            shape = self.array(f"{name}/shape_out", np.array(cir.shape(node.outputs[0])))
            self.op("Reshape", [parts[2], shape], name)
        for node in product.joins:
            self.node(node)
        self.op("Identity", [str(product.z.name)], str(product.result.name))

    def op(self, op_type: str, inputs: Sequence[str], output: str, domain: str = "", **attributes: Any) -> None:
        self.domains.setdefault(domain, 1)
        self.graph.node.append(
            onnx.helper.make_node(op_type, inputs, [output], name=output, domain=domain, **attributes)
        )

    def change(self, op_type: str, value: ir.Value, source: str, result: str) -> None:
        """Between float and the int8 scale of a value."""
        quant = self.program.quants[str(value.name)]
        name = str(value.name)
        scale = self.array(f"{name}/scale", np.float32(quant.scale))
        self.op(op_type, [source, scale, self.array(f"{name}/zero_point", np.int8(quant.zero_point))], result)

    def border(self, value: ir.Value, quantized: bool) -> onnx.ValueInfoProto:
        if not quantized:
            return ir.serde.serialize_value(value)
        return onnx.helper.make_tensor_value_info(f"{value.name}/int8", onnx.TensorProto.INT8, cir.shape(value))

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
        proto = onnx.TensorProto(name=name, data_type=kind, dims=array.shape, data_location=onnx.TensorProto.EXTERNAL)
        for key, entry in (("location", place.file), ("offset", place.offset), ("length", place.length)):
            proto.external_data.add(key=key, value=str(entry))
        self.graph.initializer.append(proto)


class _Product:
    """A normalised product: its tiles, what joins them to z, and `result`, which is z times `factors` plus offsets."""

    def __init__(self, scale: ir.Node, shift: ir.Node, tiles: list[ir.Node], joins: list[ir.Node]) -> None:
        z, factors = scale.inputs
        assert z is not None and factors is not None
        self.z, self.factors, self.result = z, factors, shift.outputs[0]
        self.tiles, self.joins = tiles, joins
        self.replaced = {*tiles, *joins, scale, shift}


def _products(nodes: Sequence[ir.Node]) -> dict[ir.Node, _Product]:
    """The normalised products that lie wholly within `nodes`, by the node in whose place they are written."""
    inside, found = set(nodes), {}
    for node in nodes:
        shift = cir.only_consumer(node.outputs[0]) if cir.BALANCED in node.metadata_props else None
        if shift is None or shift not in inside or node.inputs[0] is None:
            continue
        tiles: list[ir.Node] = []
        joins: list[ir.Node] = []
        if _collect(node.inputs[0], inside, tiles, joins):
            found[shift] = _Product(node, shift, tiles, joins)
    return found


def _collect(z: ir.Value, inside: set[ir.Node], tiles: list[ir.Node], joins: list[ir.Node]) -> bool:
    """Whether z is a product, or joined from products, that nobody else reads."""
    node = z.producer()
    if node is None or node not in inside or cir.only_consumer(z) is None:
        return False
    if node.domain == cir.DIALECT and node.op_type in ("Conv2D", "FullyConnected"):
        tiles.append(node)
        return True
    if node.op_type != "Concat":
        return False
    joins.append(node)
    return all(v is not None and _collect(v, inside, tiles, joins) for v in node.inputs)
