"""Puts values in the place of others and infers shapes of single nodes."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx
import onnx_ir as ir

from compiler.graph.keys import DIALECT, IR_VERSION, ORIGIN, origin_of

# Constants of at most this many elements are shown to the inference: axes, shapes, pads.
SHOWN_ELEMENTS = 64


def infer_node(model: ir.Model, node: ir.Node) -> None:
    """Fill in type and shape of a node's outputs from ONNX's own inference.

    The dialect's operators are inferred through their function bodies. What cannot be inferred
    stays as it is.
    """
    inferred = onnx.shape_inference.infer_shapes(_model_of(model, node), data_prop=True)
    found = {info.name: info for info in inferred.graph.output}
    for value in node.outputs:
        info = found.get(str(value.name))
        if info is None or info.type.WhichOneof("value") is None:
            continue
        value.type = ir.serde.deserialize_type_proto_for_type(info.type)
        value.shape = ir.serde.deserialize_type_proto_for_shape(info.type)


def _model_of(model: ir.Model, node: ir.Node) -> onnx.ModelProto:
    """A model of one node, whose inputs are inputs but for small constants."""
    graph = onnx.GraphProto(name="one")
    graph.node.append(ir.serde.serialize_node(node))
    for value in dict.fromkeys(value for value in node.inputs if value is not None):
        tensor = value.const_value
        if tensor is not None and tensor.size <= SHOWN_ELEMENTS:
            graph.initializer.append(onnx.numpy_helper.from_array(tensor.numpy(), value.name))
        else:
            graph.input.append(ir.serde.serialize_value(value))
    graph.output.extend(
        onnx.ValueInfoProto(name=value.name) for value in node.outputs if value.name
    )
    proto = onnx.ModelProto(ir_version=IR_VERSION, graph=graph)
    for domain, version in model.opset_imports.items():
        proto.opset_import.append(onnx.helper.make_opsetid(domain, version))
    if node.domain == DIALECT:
        function = model.functions[node.op_identifier()]
        proto.functions.append(ir.serde.serialize_function(function))
    return proto


def replace_node(
    node: ir.Node,
    values: Sequence[ir.Value],
    made: Collection[ir.Value] = frozenset(),
) -> None:
    """Put other values in the place of a node's outputs and remove the node.

    Values in `made` are new and take the names of those they replace, so that names stay those of
    the source model.
    """
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    for old, given in zip(list(node.outputs), values, strict=True):
        new = given
        takes_name = new in made
        # An output of the model keeps its name, which a value with one of its own cannot take.
        if old.is_graph_output() and (not takes_name or new.is_graph_output()):
            new = _copy_in_front(graph, node, old, given)
            takes_name = True
        name = old.name
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        if takes_name:
            old.name = f"{name}/replaced"
            new.name = name
    graph.remove(node, safe=True)


def _copy_in_front(graph: ir.Graph, node: ir.Node, old: ir.Value, value: ir.Value) -> ir.Value:
    """A copy of `value` in front of the node whose output `old` it replaces."""
    made = ir.node("Identity", [value], num_outputs=1)
    made.metadata_props[ORIGIN] = origin_of(node)
    copy = made.outputs[0]
    copy.name, copy.shape, copy.type = f"{old.name}/copy", value.shape, value.type
    made.name = copy.name
    graph.insert_before(node, made)
    return copy
