"""Puts values in the place of others and infers shapes."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnx_ir as ir

from compiler.graph.keys import DIALECT, IR_VERSION, ORIGIN, origin_of


def infer_node(model: ir.Model, node: ir.Node) -> None:
    """Type and shape of a node's outputs from ONNX's own inference; function bodies serve the
    dialect."""
    graph = onnx.GraphProto(name="one")
    graph.node.append(ir.serde.serialize_node(node))
    for value in dict.fromkeys(v for v in node.inputs if v is not None):
        tensor = value.const_value
        if tensor is not None and tensor.size <= 64:
            graph.initializer.append(onnx.numpy_helper.from_array(tensor.numpy(), value.name))
        else:
            graph.input.append(ir.serde.serialize_value(value))
    graph.output.extend(onnx.ValueInfoProto(name=v.name) for v in node.outputs if v.name)
    proto = onnx.ModelProto(ir_version=IR_VERSION, graph=graph)
    for domain, version in model.opset_imports.items():
        proto.opset_import.append(onnx.helper.make_opsetid(domain, version))
    if node.domain == DIALECT:
        function = model.functions[node.op_identifier()]
        proto.functions.append(ir.serde.serialize_function(function))
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    found = {info.name: info for info in inferred.graph.output}
    for value in node.outputs:
        info = found.get(str(value.name))
        if info is None or info.type.WhichOneof("value") is None:
            continue
        value.type = ir.serde.deserialize_type_proto_for_type(info.type)
        value.shape = ir.serde.deserialize_type_proto_for_shape(info.type)


def replace_node(
    node: ir.Node,
    values: Sequence[ir.Value],
    made: frozenset[ir.Value] | set[ir.Value] = frozenset(),
) -> None:
    """Put other values in the place of a node's outputs and remove the node.

    Values in `made` are new and take the names of those they replace, so that names stay those of
    the source model.
    """
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    for old, new in zip(list(node.outputs), values, strict=True):
        rename = new in made
        if old.is_graph_output() and (not rename or new.is_graph_output()):
            new, rename = _identity(graph, node, new), True  # noqa: PLW2901
        name = old.name
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        if rename:
            old.name, new.name = f"{name}/replaced", name
    graph.remove(node, safe=True)


def _identity(graph: ir.Graph, node: ir.Node, value: ir.Value) -> ir.Value:
    made = ir.node("Identity", [value], num_outputs=1)
    made.metadata_props[ORIGIN] = origin_of(node)
    out = made.outputs[0]
    out.name, out.shape, out.type = f"{value.name}/copy", value.shape, value.type
    made.name = out.name
    graph.insert_before(node, made)
    return out
