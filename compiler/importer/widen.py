"""Widens a model that computes in float16 to float32, which loses nothing.

Calibration and host segments then have one float type to deal with. Inputs and outputs of the model
keep their type: a Cast stands behind each such input and in front of each such output.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compiler.graph import WIDENED, all_activations, shapes

_HALF = ir.DataType.FLOAT16
_SINGLE = ir.DataType.FLOAT
# Attributes that name the type of a result: those of Cast and its like.
_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype", "output_datatype", "stash_type")


def widen_halves(model: ir.Model) -> None:
    """Compute in float32 what the model computes in float16.

    Models with subgraphs or sequences of float16 stay as they are.
    """
    graph = model.graph
    sources = [*graph.initializers.values(), *graph.inputs]
    if not any(value.dtype == _HALF for value in sources):
        return
    if any(graph.subgraphs()):
        return
    shapes.infer(model)
    if any(_is_half_sequence(value) for value in all_activations(graph)):
        return
    model.metadata_props[WIDENED] = "float16"
    # Types change below; which outputs were float16 has to be known before.
    half_outputs = {v for v in graph.outputs if v.dtype == _HALF and not v.is_graph_input()}
    _widen_initializers(graph)
    for node in graph:
        _widen_attributes(node)
        for value in node.outputs:
            if value.dtype == _HALF:
                value.type = ir.TensorType(_SINGLE)
    for value in graph.inputs:
        if value.dtype == _HALF:
            _cast_input(graph, value)
    for index, value in enumerate(list(graph.outputs)):
        if value in half_outputs:
            graph.outputs[index] = _cast_output(graph, value)


def _is_half_sequence(value: ir.Value) -> bool:
    """Operators on sequences take one type, so that none of their elements may change."""
    return value.dtype == _HALF and not isinstance(value.type, ir.TensorType)


def _widen_initializers(graph: ir.Graph) -> None:
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype == _HALF:
            value.const_value = _lazy_float32(tensor)
            value.type = ir.TensorType(_SINGLE)


def _lazy_float32(tensor: ir.TensorProtocol) -> ir.LazyTensor:
    def widened() -> ir.TensorProtocol:
        return ir.tensor(tensor.numpy().astype(np.float32))

    shape = ir.Shape(list(tensor.shape))  # type: ignore[arg-type]
    return ir.LazyTensor(widened, dtype=_SINGLE, shape=shape)


def _widen_attributes(node: ir.Node) -> None:
    for name in _TYPE_ATTRIBUTES:
        attribute = node.attributes.get(name)
        if attribute is not None and attribute.value == _HALF:
            node.attributes[name] = ir.AttrInt64(name, _SINGLE.value)
    # The tensor of Constant and ConstantOfShape.
    attribute = node.attributes.get("value")
    if attribute is None or not isinstance(attribute.value, ir.TensorProtocol):
        return
    if attribute.value.dtype == _HALF:
        array = attribute.value.numpy().astype(np.float32)
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(array))


def _cast_input(graph: ir.Graph, value: ir.Value) -> None:
    cast = _cast(value, _SINGLE, f"{value.name}/float32")
    graph.insert_before(graph[0], cast)
    for user, index in list(value.uses()):
        if user is not cast:
            user.replace_input_with(index, cast.outputs[0])


def _cast_output(graph: ir.Graph, value: ir.Value) -> ir.Value:
    cast = _cast(value, _HALF, str(value.name))
    value.name = f"{value.name}/float32"
    graph.append(cast)
    return cast.outputs[0]


def _cast(value: ir.Value, dtype: ir.DataType, name: str) -> ir.Node:
    node = ir.node("Cast", [value], {"to": dtype.value}, num_outputs=1, name=f"{name}/cast")
    (output,) = node.outputs
    output.name = name
    output.shape = value.shape
    output.type = ir.TensorType(dtype)
    return node
