"""Evaluate what depends on constants and static shapes only, drop what nobody reads, infer every
shape."""

from __future__ import annotations

import contextlib
import logging

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer

from compiler.graph import (
    HOST_REASON,
    IR_VERSION,
    OPSET,
    Builder,
    Names,
    all_activations,
    array_of,
    attribute_of,
    element_count,
    is_constant,
    is_static,
    replace_node,
    shape_of,
    values_read,
)
from compiler.targets import Target

# Up to this many bytes a folded constant is kept.
LARGEST = 1 << 30
# Whose results differ from run to run, and those whose constants keep_scales reads.
_KEPT = {
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
} | {
    "DequantizeLinear",
    "QuantizeLinear",
}
_SEQUENCES = {
    "SequenceConstruct",
    "SequenceEmpty",
    "SequenceErase",
    "SequenceInsert",
    "SequenceMap",
    "SplitToSequence",
}


def run(model: ir.Model, target: Target) -> None:
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    infer_shapes(model)
    # An operator that the folder cannot evaluate stays; what is infinite or not a number is so at
    # run time too.
    with contextlib.suppress(RuntimeError), np.errstate(all="ignore"):
        optimizer.fold_constants(model, input_size_limit=LARGEST, output_size_limit=LARGEST)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    infer_shapes(model)
    while _fold(model):  # a folded shape may make other shapes known
        infer_shapes(model)
    _keep_outputs(model)
    tidy(model)


def _keep_outputs(model: ir.Model) -> None:
    """An output that turned out to be a constant becomes the copy of one: segments make outputs."""
    graph, names = model.graph, Names(model.graph)
    for index, value in enumerate(graph.outputs):
        if value.const_value is None or value.producer() is not None or value.is_graph_input():
            continue
        name = str(value.name)
        graph.initializers.pop(name)
        value.name = names.fresh(f"{name}/constant")
        graph.register_initializer(value)
        node = ir.node("Identity", [value], num_outputs=1, name=names.fresh(f"{name}/Identity"))
        node.metadata_props[HOST_REASON] = "it is a constant"
        (copy,) = node.outputs
        copy.name, copy.type, copy.shape = name, value.type, value.shape
        graph.append(node)
        graph.outputs[index] = copy


def tidy(model: ir.Model) -> None:
    """Remove nodes, initializers and opsets that nothing uses."""
    common.RemoveUnusedNodesPass()(model)


def infer_shapes(model: ir.Model) -> None:
    """ONNX's shape inference; a shape that was unknown is inferred afresh."""
    for value in model.graph.initializers.values():
        if value.const_value is not None:  # folding may have left a shape of symbols
            value.shape = ir.Shape(list(value.const_value.shape))  # type: ignore[arg-type]
    for value in all_activations(model.graph):
        if not is_static(value) and not value.is_graph_input():
            value.shape = None
    common.ShapeInferencePass()(model)
    for node in model.graph:
        if node.op_type in _SEQUENCES and node.domain == "":
            node.outputs[0].type = node.outputs[0].shape = (
                None  # the pass takes sequences for tensors
            )


def _fold(model: ir.Model) -> bool:
    """Evaluate what onnxscript leaves, such as ConstantOfShape. Returns whether there was anything."""
    names, folded = Names(model.graph), False
    for node in list(model.graph):
        arrays = _value(node)
        if arrays is None or any(v.is_graph_output() for v in node.outputs):
            continue
        b = Builder(model, names, node)
        replace_node(
            node, [b.const(a, str(v.name)) for a, v in zip(arrays, node.outputs, strict=True)]
        )
        folded = True
    return folded


def _value(node: ir.Node) -> list[np.ndarray] | None:
    """The outputs of a node that depends on nothing but constants, or on a shape that is known."""
    if node.domain or node.op_type in _KEPT or any(v.name == "" for v in node.outputs):
        return None
    if node.op_type == "Shape" and is_static(node.inputs[0]):
        begin, end = attribute_of(node, "start", 0), attribute_of(node, "end")
        return [np.array(shape_of(node.inputs[0])[begin:end], np.int64)]
    if node.op_type == "Size" and is_static(node.inputs[0]):
        return [np.array(element_count(node.inputs[0]), np.int64)]  # type: ignore[arg-type]
    if not node.inputs or not all(is_constant(v) for v in values_read(node)):
        return None
    return _evaluate(node)


def _evaluate(node: ir.Node) -> list[np.ndarray] | None:
    graph = onnx.GraphProto(name="one")
    graph.node.append(ir.serde.serialize_node(node))
    feeds = {str(v.name): array_of(v) for v in values_read(node)}
    graph.input.extend(ir.serde.serialize_value(v) for v in values_read(node))
    graph.output.extend(onnx.ValueInfoProto(name=v.name) for v in node.outputs)
    opset = node.graph.opset_imports.get("", OPSET) if isinstance(node.graph, ir.Graph) else OPSET
    proto = onnx.ModelProto(ir_version=IR_VERSION, graph=graph)
    proto.opset_import.append(onnx.helper.make_opsetid("", opset))
    try:
        with np.errstate(all="ignore"):
            results = onnx.reference.ReferenceEvaluator(proto).run(None, feeds)
    except Exception:
        return None  # it stays, for onnxruntime to evaluate
    plain = all(
        isinstance(r, np.ndarray | np.generic) and np.asarray(r).nbytes <= LARGEST for r in results
    )
    return [np.asarray(r) for r in results] if plain else None
