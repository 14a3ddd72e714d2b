"""Evaluate what depends on constants and static shapes only, and infer every shape.

    Reshape(x, Concat(Gather(Shape(x), 0), -1))   ->   Reshape(x, {8, -1})

Exporters compute shapes inside the graph; passes want to see them as constants. Nodes are evaluated
by onnxruntime, which also runs the model (compiler/graph/constants.py); onnxscript's folder takes
care of sequences, branches and symbolic shapes. One round may make more shapes known, so it goes on
until nothing is found.
"""

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
# Results that differ from run to run.
RANDOM = frozenset({
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
    "RandomUniformLike",
})  # fmt: skip
# Scales that keep_scales reads; without them int8 weights would be float ones.
QUANTIZERS = frozenset({"DequantizeLinear", "QuantizeLinear"})


def run(model: ir.Model, context: PassContext) -> None:
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    infer_shapes(model)
    # What evaluates nodes knows the newest meaning of each operator.
    if is_raised(model):
        _fold_all(model, context)
        _fold_control_flow(model)
        infer_shapes(model)
        # A branch that is gone may have made other shapes known.
        _fold_all(model, context)
    _keep_outputs(model)
    tidy(model)


def tidy(model: ir.Model) -> None:
    """Remove nodes, initializers and opsets that nothing uses."""
    common.RemoveUnusedNodesPass()(model)


def infer_shapes(model: ir.Model) -> None:
    """Infer all types and shapes; what was unknown is inferred afresh."""
    for value in model.graph.initializers.values():
        # Folding may have left a shape of symbols.
        if value.const_value is not None:
            value.shape = ir.Shape(list(value.const_value.shape))  # type: ignore[arg-type]
    for value in all_activations(model.graph):
        if not is_static(value) and not value.is_graph_input():
            value.shape = None
    shapes.infer(model)


def _fold_all(model: ir.Model, context: PassContext) -> None:
    while folded := _fold(model):
        for node in folded:
            context.matched(node)
        infer_shapes(model)


def _fold(model: ir.Model) -> list[ir.Node]:
    """Evaluate what depends on constants, and on shapes that are known; returns these nodes."""
    known: dict[ir.Value, np.ndarray] = {}
    shape_nodes: list[ir.Node] = []
    nodes: list[ir.Node] = []
    # What can be had without running the model.
    computed: set[ir.Value] = set()
    for node in model.graph:
        shape = _known_shape(node)
        if shape is not None:
            known[node.outputs[0]] = shape
            shape_nodes.append(node)
        elif _is_foldable(node) and _reads_only(computed, node):
            nodes.append(node)
        else:
            continue
        computed.update(node.outputs)
    found = known | constants.evaluate(model, nodes, known)
    small = {value for value, array in found.items() if array.nbytes <= LARGEST}
    folded = [node for node in [*shape_nodes, *nodes] if small.issuperset(node.outputs)]
    names = Names(model.graph)
    for node in folded:
        b = Builder(model, names, node)
        replace_node(node, [b.const(found[value], str(value.name)) for value in node.outputs])
    tidy(model)
    return folded


def _reads_only(computed: set[ir.Value], node: ir.Node) -> bool:
    """Whether a node reads constants and values in `computed` alone."""
    return all(is_constant(value) or value in computed for value in values_read(node))


def _known_shape(node: ir.Node) -> np.ndarray | None:
    """What Shape and Size give where the shape is known."""
    if node.domain or node.op_type not in ("Shape", "Size") or node.outputs[0].is_graph_output():
        return None
    if not is_static(node.inputs[0]):
        return None
    shape = shape_of(node.inputs[0])
    if node.op_type == "Size":
        return np.array(math.prod(shape), np.int64)
    start, end = attribute_of(node, "start", 0), attribute_of(node, "end")
    return np.array(shape[start:end], np.int64)


def _is_foldable(node: ir.Node) -> bool:
    """Whether a node may be evaluated: the same each time, not too large, and no output of the
    model."""
    if not _is_evaluated(node):
        return False
    for body in bodies(node):
        if not all(_is_evaluated(inner) for inner in body.all_nodes()):
            return False
    if any(not value.name or value.is_graph_output() for value in node.outputs):
        return False
    return all(element_count(value) <= LARGEST for value in node.outputs if is_static(value))


def _is_evaluated(node: ir.Node) -> bool:
    return not node.domain and node.op_type not in RANDOM | QUANTIZERS


def _fold_control_flow(model: ir.Model) -> None:
    """Fold sequences, branches with a known condition, and symbolic shapes, by onnxscript.

    It evaluates no operator, as it would do so in another way than onnxruntime.
    """
    with contextlib.suppress(RuntimeError), np.errstate(all="ignore"):
        optimizer.fold_constants(model, should_fold=lambda node: False)
    _forget_branches(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)


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
