"""Infers types and shapes of every tensor of a model.

ONNX's own inference does it, and onnxruntime where ONNX does not know an operator.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from compiler.graph import DIALECT, IR_VERSION, array_of, is_constant, is_static, values_read

# Constants of at most this many bytes are shown to the inference: axes, shapes, pads.
SHOWN = 1000
# A node with more bytes of constants is not tried on onnxruntime.
TRIED = 1 << 26
# The operators of this domain give shapes that depend on nothing but the shapes of their inputs.
CLASSIC = "ai.onnx.ml"


def infer(model: ir.Model) -> None:
    """Fill in types and shapes, in subgraphs too. What cannot be inferred stays as it is; nothing
    is raised for it."""
    _by_onnx(model)
    while _by_onnxruntime(model):
        _by_onnx(model)


def _by_onnx(model: ir.Model) -> None:
    try:
        found = ir.serde.deserialize_model(_inferred(_without_weights(model)))
    except Exception:
        return  # what is wrong with the model is for the checker and onnxruntime to say
    for graph, other in zip(model.graphs(), found.graphs(), strict=True):
        results = ir.convenience.create_value_mapping(other)
        for name, value in ir.convenience.create_value_mapping(graph).items():
            result = results.get(name)
            if result is not None and not is_constant(value):
                _take_over(value, result)


def _take_over(value: ir.Value, result: ir.Value) -> None:
    """Give a value the type and shape that were found."""
    if result.type is not None:
        value.type = result.type
    if not isinstance(value.type, ir.TensorType):
        # Of a sequence, it would be that of its elements.
        value.shape = None
    elif result.shape is not None:
        value.shape = result.shape


def _inferred(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with all types and shapes that ONNX's inference finds."""
    # With `check_type` it finds types of outputs that it does not find without, but it may also
    # complain of others.
    try:
        return onnx.shape_inference.infer_shapes(proto, check_type=True, data_prop=True)
    except Exception:
        return onnx.shape_inference.infer_shapes(proto, data_prop=True)


def _without_weights(model: ir.Model) -> onnx.ModelProto:
    """The model with its larger constants as inputs."""
    copy = model.clone()
    graph = copy.graph
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.nbytes <= SHOWN:
            continue
        value.shape = ir.Shape(list(tensor.shape))  # type: ignore[arg-type]
        value.type = ir.TensorType(tensor.dtype)
        del graph.initializers[name]
        value.const_value = None
        if not value.is_graph_input():
            graph.inputs.append(value)
    return ir.serde.serialize_model(copy)


def _by_onnxruntime(model: ir.Model) -> bool:
    """Fill in what operators outside of ONNX give, where the shapes of their inputs are known.

    Returns whether anything was found.
    """
    found = False
    for node in model.graph:
        if node.domain in ("", "ai.onnx", DIALECT) or all(_is_known(v) for v in node.outputs):
            continue
        if all(is_static(v) for v in values_read(node)):
            found |= _try_alone(model, node)
    return found


def _is_known(value: ir.Value) -> bool:
    return not value.name or (value.dtype is not None and is_static(value))


def _try_alone(model: ir.Model, node: ir.Node) -> bool:
    """Infer one node as a model of its own, or run it on zeros. Returns whether that helped."""
    names = [str(v.name) for v in node.outputs if v.name]
    try:
        session = _alone(model, node, names)
        shapes = [output.shape for output in session.get_outputs()]
        if node.domain == CLASSIC:
            shapes = [list(np.shape(result)) for result in session.run(None, _zeros(session))]
        types = [output.type for output in session.get_outputs()]
    except Exception:
        return False  # the build says why onnxruntime does not take it
    changed = False
    values = [v for v in node.outputs if v.name]
    for value, shape, kind in zip(values, shapes, types, strict=True):
        element = _ELEMENTS.get(kind)
        if element is None or not all(isinstance(d, int) for d in shape) or _is_known(value):
            continue
        value.type, value.shape = ir.TensorType(element), ir.Shape(shape)
        changed = True
    return changed


# What onnxruntime calls the types of tensors.
_ELEMENTS = {
    "tensor(float)": ir.DataType.FLOAT,
    "tensor(float16)": ir.DataType.FLOAT16,
    "tensor(double)": ir.DataType.DOUBLE,
    "tensor(bool)": ir.DataType.BOOL,
    "tensor(int8)": ir.DataType.INT8,
    "tensor(int16)": ir.DataType.INT16,
    "tensor(int32)": ir.DataType.INT32,
    "tensor(int64)": ir.DataType.INT64,
    "tensor(uint8)": ir.DataType.UINT8,
    "tensor(uint16)": ir.DataType.UINT16,
    "tensor(uint32)": ir.DataType.UINT32,
    "tensor(uint64)": ir.DataType.UINT64,
}


def _alone(model: ir.Model, node: ir.Node, names: list[str]) -> ort.InferenceSession:
    proto = onnx.ModelProto(ir_version=IR_VERSION)
    graph = proto.graph
    graph.name = "one"
    graph.node.append(ir.serde.serialize_node(node))
    room = TRIED
    for value in values_read(node):
        if value.const_value is None:
            graph.input.append(ir.serde.serialize_value(value))
            continue
        room -= value.const_value.nbytes
        if room < 0:
            raise ValueError("too large")
        graph.initializer.append(onnx.numpy_helper.from_array(array_of(value), value.name))
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    for domain, version in model.opset_imports.items():
        proto.opset_import.append(onnx.helper.make_opsetid(domain, version))
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _zeros(session: ort.InferenceSession) -> dict[str, np.ndarray]:
    inputs = session.get_inputs()
    return {value.name: np.zeros(value.shape, _ELEMENTS[value.type].numpy()) for value in inputs}
