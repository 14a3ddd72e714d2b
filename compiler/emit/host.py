"""Writes the ONNX model of a host segment: float in, float out, weights inside."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
import onnx_ir as ir

from compiler import ir as cir

# A protobuf holds 2 GiB; weights beyond this go to a file beside the model.
INLINE_BYTES = 1 << 30


def write(
    model: ir.Model, nodes: Sequence[ir.Node], inputs: Sequence[ir.Value], outputs: Sequence[ir.Value], path: Path
) -> list[Path]:
    """Write the nodes as a model of their own. Returns the files written."""
    graph = onnx.GraphProto(name=path.stem)
    used: set[tuple[str, str, str]] = set()
    constants: dict[ir.Value, None] = {}
    for node in nodes:
        graph.node.append(ir.serde.serialize_node(node))
        used.add(node.op_identifier())
        constants.update(dict.fromkeys(v for v in cir.reads(node) if cir.is_const(v)))
    graph.input.extend(ir.serde.serialize_value(v) for v in inputs)
    graph.output.extend(ir.serde.serialize_value(v) for v in outputs)
    for value in constants:
        tensor = value.const_value
        assert tensor is not None
        proto = onnx.numpy_helper.from_array(tensor.numpy(), value.name) if _plain(tensor) else _serialized(value)
        graph.initializer.append(proto)
    proto = onnx.ModelProto(ir_version=cir.IR_VERSION, producer_name="coral-bundle", graph=graph)
    functions = [f for identifier, f in model.functions.items() if identifier in used]
    proto.functions.extend(ir.serde.serialize_function(f) for f in functions)
    domains = {node.domain for node in nodes} | {""}
    for domain, version in sorted(model.opset_imports.items()):
        if domain in domains:
            proto.opset_import.append(onnx.helper.make_opsetid(domain, version))
    data = path.with_suffix(".data")
    if sum(v.const_value.nbytes for v in constants if v.const_value is not None) > INLINE_BYTES:
        onnx.external_data_helper.convert_model_to_external_data(proto, location=data.name)
        onnx.save(proto, path)
        return [path, data]
    path.write_bytes(proto.SerializeToString(deterministic=True))
    return [path]


def _plain(tensor: ir.TensorProtocol) -> bool:
    return tensor.dtype not in (ir.DataType.STRING,) and tensor.dtype.itemsize >= 1


def _serialized(value: ir.Value) -> onnx.TensorProto:
    assert value.const_value is not None
    proto = ir.serde.serialize_tensor(value.const_value)
    proto.name = str(value.name)
    return proto
