"""Types and shapes of every tensor, by ONNX's own inference and, where it does not know an
operator, by onnxruntime."""

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
            if result is None or is_constant(value):
                continue
            if result.type is not None:
                value.type = result.type
            if not isinstance(value.type, ir.TensorType):
                value.shape = None  # of a sequence, it would be that of its elements
            elif result.shape is not None:
                value.shape = result.shape


def _inferred(proto: onnx.ModelProto) -> onnx.ModelProto:
    """With `check_type`, ONNX finds types of outputs that it does not find without; it may also
    complain of others."""
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
        value.shape, value.type = ir.Shape(list(tensor.shape)), ir.TensorType(tensor.dtype)  # type: ignore[arg-type]
        del graph.initializers[name]
        value.const_value = None
        if not value.is_graph_input():
            graph.inputs.append(value)
    return ir.serde.serialize_model(copy)


def _by_onnxruntime(model: ir.Model) -> bool:
    """Shapes of results of operators outside of ONNX, where those of their inputs are known.
    Whether any was found."""
    found = False
    for node in model.graph:
        if node.domain in ("", "ai.onnx", DIALECT) or all(_is_known(v) for v in node.outputs):
            continue
        if all(is_static(v) for v in values_read(node)):
            found |= _try(model, node)
    return found


def _is_known(value: ir.Value) -> bool:
    return not value.name or (value.dtype is not None and is_static(value))


def _try(model: ir.Model, node: ir.Node) -> bool:
    """One node as a model of its own: what onnxruntime infers, or what a run on zeros gives."""
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


_ELEMENTS = {
    "tensor(float)": ir.DataType.FLOAT,
    "tensor(float16)": ir.DataType.FLOAT16,
    "tensor(double)": ir.DataType.DOUBLE,
    "tensor(bool)": ir.DataType.BOOL,
    **{
        f"tensor({u}int{n})": ir.DataType[f"{u}int{n}".upper()]
        for u in ("", "u")
        for n in (8, 16, 32, 64)
    },
}


def _alone(model: ir.Model, node: ir.Node, names: list[str]) -> ort.InferenceSession:
    proto = onnx.ModelProto(ir_version=IR_VERSION)
    graph = proto.graph
    graph.name = "one"
    graph.node.append(ir.serde.serialize_node(node))
    constants = [v for v in values_read(node) if v.const_value is not None]
    if sum(v.const_value.nbytes for v in constants if v.const_value is not None) > TRIED:
        raise ValueError("too large")
    graph.initializer.extend(onnx.numpy_helper.from_array(array_of(v), v.name) for v in constants)
    graph.input.extend(
        ir.serde.serialize_value(v) for v in values_read(node) if v.const_value is None
    )
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
    return {i.name: np.zeros(i.shape, _ELEMENTS[i.type].numpy()) for i in session.get_inputs()}
