"""Evaluates nodes that depend on constants only, on onnxruntime, so that they mean at build time
what they mean at run time. ONNX's reference evaluator serves the types that numpy lacks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import onnxruntime as ort

from compiler.graph import IR_VERSION, array_of, consumers_of, is_constant, values_read
from compiler.graph.reference import open_session, quiet_options

Known = Mapping[ir.Value, np.ndarray]


def evaluate(model: ir.Model, nodes: Sequence[ir.Node], known: Known) -> dict[ir.Value, np.ndarray]:
    """What nodes in topological order give for those that read them.

    They read constants, `known` and each other. A value that cannot be had as an array is left out.
    """
    if not nodes:
        return {}
    outputs = _read_outside(nodes)
    if all(_is_native(v) for n in nodes for v in [*values_read(n), *n.outputs]):
        try:
            return _run(model, nodes, known, outputs)
        except Exception:  # at least one of them is nothing for onnxruntime
            if len(nodes) == 1:
                return {}
    elif len(nodes) == 1:
        return _refer(model, nodes[0], known)
    return _one_by_one(model, nodes, known)


def _one_by_one(
    model: ir.Model, nodes: Sequence[ir.Node], known: Known
) -> dict[ir.Value, np.ndarray]:
    found = dict(known)
    for node in nodes:
        if all(is_constant(v) or v in found for v in values_read(node)):
            found |= evaluate(model, [node], found)
    return {value: array for value, array in found.items() if value not in known}


def _read_outside(nodes: Sequence[ir.Node]) -> list[ir.Value]:
    """All outputs of the nodes of which at least one is read by another node."""
    inside = set(nodes)
    read_inside = {value for node in nodes for value in values_read(node)}
    found = []
    for node in nodes:
        last = any(
            v not in read_inside or any(user not in inside for user in consumers_of(v))
            for v in node.outputs
        )
        found += [v for v in node.outputs if v.name] if last else []
    return found


def _is_native(value: ir.Value) -> bool:
    """Whether numpy itself has the type, so that onnxruntime takes and gives the array."""
    dtype = value.const_value.dtype if value.const_value is not None else value.dtype
    return (
        dtype is None
        or dtype == ir.DataType.STRING
        or (dtype.itemsize >= 1 and dtype.numpy().isbuiltin == 1)
    )


def _run(
    model: ir.Model, nodes: Sequence[ir.Node], known: Known, outputs: Sequence[ir.Value]
) -> dict[ir.Value, np.ndarray]:
    proto, feeds = _model(model, nodes, known, outputs)
    options = quiet_options()
    options.intra_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    # Each node is run once: rewriting them would take longer.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = open_session(proto.SerializeToString(), options)
    results = session.run([str(v.name) for v in outputs], feeds)
    pairs = zip(outputs, results, strict=True)
    return {value: array for value, array in pairs if isinstance(array, np.ndarray)}


def _refer(model: ir.Model, node: ir.Node, known: Known) -> dict[ir.Value, np.ndarray]:
    proto, feeds = _model(model, [node], known, node.outputs)
    try:
        with np.errstate(all="ignore"):
            results = onnx.reference.ReferenceEvaluator(proto).run(None, feeds)
    except Exception:
        return {}
    pairs = zip(node.outputs, results, strict=True)
    return {
        value: np.asarray(result)
        for value, result in pairs
        if isinstance(result, np.ndarray | np.generic)
    }


def _model(
    model: ir.Model, nodes: Sequence[ir.Node], known: Known, outputs: Sequence[ir.Value]
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """The nodes as a model whose inputs are the constants, which then need not be serialized."""
    graph = onnx.GraphProto(name="constants")
    graph.node.extend(ir.serde.serialize_node(node) for node in nodes)
    made = {value for node in nodes for value in node.outputs}
    read = dict.fromkeys(
        value for node in nodes for value in values_read(node) if value not in made
    )
    feeds = {}
    for value in read:
        array = known[value] if value in known else array_of(value)
        feeds[str(value.name)] = array
        kind = (
            value.const_value.dtype
            if value.const_value is not None
            else ir.DataType.from_numpy(array.dtype)
        )
        graph.input.append(
            onnx.helper.make_tensor_value_info(str(value.name), kind.value, array.shape)
        )
    graph.output.extend(onnx.ValueInfoProto(name=value.name) for value in outputs)
    proto = onnx.ModelProto(ir_version=IR_VERSION, graph=graph)
    for domain, version in model.opset_imports.items():
        proto.opset_import.append(onnx.helper.make_opsetid(domain, version))
    return proto, feeds
