"""Raises a model of opset 7 to 22 to opset 23, operator by operator.

ONNX's own converters change some meanings without a word: Softmax over flattened rows, Resize
without half-pixel coordinates, BatchNormalization by position. Here each operator whose form or
meaning changed between these opsets has one adapter (adapters.py). All other operators only gained
types, or optional attributes whose defaults are the old meaning.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from compiler.graph import OPSET, RAISED, attribute_of, key_of, origin_of, shapes
from compiler.importer.adapters import Adapter, adapter_of
from compiler.importer.edit import Edit

# Operators whose kernels in onnxruntime end with opset 21, where all operators have the form of
# opset 23 already.
ENDING = {
    "GlobalLpPool",
    "MaxRoiPool",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "RoiAlign",
}

# Operators for which onnxruntime has kernels in float only. For other types it runs the body that
# ONNX defines the operator by, which it does up to opset 18.
FLOAT_KERNELS = {
    "Elu",
    "HardSigmoid",
    "HardSwish",
    "LeakyRelu",
    "Mish",
    "PRelu",
    "Relu",
    "Selu",
    "Softplus",
    "Softsign",
    "ThresholdedRelu",
}
_KERNEL_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)

# The first opset whose GroupNormalization has a scale for each channel.
GROUPS_BY_CHANNEL = 21


def upgrade(model: ir.Model) -> str | None:
    """Raise a model to opset 23, in place, or to 21 where onnxruntime lacks one of its operators
    beyond.

    A model with an operator that cannot be raised keeps its opset; the return value then says why.
    Functions have to be inlined before.
    """
    version = model.graph.opset_imports.get("", OPSET)
    target = _target_opset(model)
    if version >= target:
        return None
    reason = _lacks_kernel(model)
    if reason is not None:
        return reason
    changed = _changed_nodes(model, version)
    # All are asked before the first is changed: a model is raised as a whole or not at all.
    for node, adapter in changed:
        reason = adapter.refuse(node)
        if reason is not None:
            return f"{node.op_type} '{origin_of(node)}' of opset {version} {reason}"
    if changed:
        shapes.infer(model)
    taken = _value_names(model)
    for node, adapter in changed:
        adapter.adapt(node, Edit(node, taken))
    for node in model.graph.all_nodes():
        node.version = None
    model.graph.opset_imports[""] = target
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    return None


def replace_deprecated(model: ir.Model) -> None:
    """Write GroupNormalization of opsets 18 to 20 in operators that ONNX's checker and shape
    inference know.

    It was deprecated, yet exporters wrote it and onnxruntime runs it. With a scale and a bias for
    each group, it is InstanceNormalization with the groups as channels.
    """
    version = model.graph.opset_imports.get("", OPSET)
    if version >= GROUPS_BY_CHANNEL:
        return
    taken = _value_names(model)
    for node in list(model.graph.all_nodes()):
        if key_of(node) != ("", "GroupNormalization"):
            continue
        x, scale, bias = node.inputs
        edit = Edit(node, taken)
        groups = int(attribute_of(node, "num_groups"))
        epsilon = attribute_of(node, "epsilon", 1e-5)
        grouped = edit.op("Reshape", [x, edit.ints([0, groups, -1])])
        normal = edit.op("InstanceNormalization", [grouped, scale, bias], {"epsilon": epsilon})
        edit.become("Reshape", [normal, edit.op("Shape", [x])])


def _target_opset(model: ir.Model) -> int:
    for node in model.graph.all_nodes():
        domain, op_type = key_of(node)
        if domain == "" and op_type in ENDING:
            return RAISED
    return OPSET


def _changed_nodes(model: ir.Model, version: int) -> list[tuple[ir.Node, Adapter]]:
    changed = []
    for node in model.graph.all_nodes():
        domain, op_type = key_of(node)
        adapter = adapter_of(op_type, version) if domain == "" else None
        if adapter is not None:
            changed.append((node, adapter))
    return changed


def _value_names(model: ir.Model) -> set[str]:
    """Names of all values, those in subgraphs included."""
    names: set[str] = set()
    for graph in model.graphs():
        values = ir.convenience.create_value_mapping(graph).values()
        names.update(str(value.name) for value in values)
    return names


def _lacks_kernel(model: ir.Model) -> str | None:
    """Which node computes on a type for which onnxruntime has no kernel in newer opsets."""
    limited_keys = {("", kind) for kind in FLOAT_KERNELS}
    nodes = [node for node in model.graph.all_nodes() if key_of(node) in limited_keys]
    if nodes:
        shapes.infer(model)
    for node in nodes:
        dtype = node.outputs[0].dtype
        if dtype is None or dtype in _KERNEL_TYPES:
            continue
        # The one operator of these with a kernel for double.
        if dtype == ir.DataType.DOUBLE and node.op_type == "Relu":
            continue
        return (
            f"{node.op_type} '{origin_of(node)}' is {dtype.name.lower()}, "
            "for which newer opsets have no kernel"
        )
    return None
