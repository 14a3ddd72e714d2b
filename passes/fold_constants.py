"""Evaluate what depends on constants and static shapes only, drop what nobody reads, infer every
shape."""

from __future__ import annotations

import contextlib
import logging
import math

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer

from compiler.graph import (
    HOST_REASON,
    Builder,
    Names,
    all_activations,
    attribute_of,
    bodies,
    constants,
    element_count,
    is_constant,
    is_raised,
    is_static,
    replace_node,
    shape_of,
    shapes,
    values_read,
)
from passes.context import PassContext

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


def run(model: ir.Model, context: PassContext) -> None:
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    infer_shapes(model)
    if not is_raised(model):  # what evaluates knows the newest meaning of each operator
        _keep_outputs(model)
        tidy(model)
        return
    while _fold(model):
        infer_shapes(model)
    # Sequences, branches and symbolic shapes. Its evaluation of operators is another than
    # onnxruntime's.
    with contextlib.suppress(RuntimeError), np.errstate(all="ignore"):
        optimizer.fold_constants(model, should_fold=lambda node: False)
    _forget_branches(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    infer_shapes(model)
    while _fold(model):  # a folded shape may make other shapes known
        infer_shapes(model)
    _keep_outputs(model)
    tidy(model)


def _forget_branches(model: ir.Model) -> None:
    """The branch of an If that is never taken no longer reads anything."""
    nodes = set(model.graph.all_nodes())
    for graph in model.graphs():
        for value in ir.convenience.create_value_mapping(graph).values():
            for user, index in list(value.uses()):
                if user not in nodes:
                    user.replace_input_with(index, None)


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
    """Infers all shapes; one that was unknown is inferred afresh."""
    for value in model.graph.initializers.values():
        if value.const_value is not None:  # folding may have left a shape of symbols
            value.shape = ir.Shape(list(value.const_value.shape))  # type: ignore[arg-type]
    for value in all_activations(model.graph):
        if not is_static(value) and not value.is_graph_input():
            value.shape = None
    shapes.infer(model)


def _fold(model: ir.Model) -> bool:
    """Evaluate what depends on constants, and on shapes that are known. Returns whether there was
    anything."""
    known: dict[ir.Value, np.ndarray] = {}
    nodes = []
    inside: set[ir.Value] = set()
    for node in model.graph:
        shape = _shape(node)
        if shape is not None:
            known[node.outputs[0]] = shape
        elif _is_foldable(node) and all(
            is_constant(v) or v in inside or v in known for v in values_read(node)
        ):
            nodes.append(node)
            inside.update(node.outputs)
    found = known | constants.evaluate(model, nodes, known)
    small = {value for value, array in found.items() if array.nbytes <= LARGEST}
    replaced = [
        node
        for node in [*(v.producer() for v in known), *nodes]
        if node and small.issuperset(node.outputs)
    ]
    names = Names(model.graph)
    for node in replaced:
        b = Builder(model, names, node)
        replace_node(node, [b.const(found[v], str(v.name)) for v in node.outputs])
    tidy(model)
    return bool(replaced)


def _shape(node: ir.Node) -> np.ndarray | None:
    """What Shape and Size give where the shape is known."""
    if node.domain or node.op_type not in ("Shape", "Size") or node.outputs[0].is_graph_output():
        return None
    if not is_static(node.inputs[0]):
        return None
    shape = shape_of(node.inputs[0])
    if node.op_type == "Size":
        return np.array(math.prod(shape), np.int64)
    return np.array(shape[attribute_of(node, "start", 0) : attribute_of(node, "end")], np.int64)


def _is_foldable(node: ir.Node) -> bool:
    """Whether a node may be evaluated: the same each time, not too large, and no output of the
    model."""
    inner = [n for graph in bodies(node) for n in graph.all_nodes()]
    if any(n.domain or n.op_type in _KEPT for n in [node, *inner]):
        return False
    if any(not v.name or v.is_graph_output() for v in node.outputs):
        return False
    return all(element_count(v) <= LARGEST for v in node.outputs if is_static(v))
