"""Evaluates nodes that depend on constants only.

onnxruntime does it, so that they mean at build time what they mean at run time. ONNX's reference
evaluator serves the types that numpy lacks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import onnxruntime as ort

from compiler.graph import IR_VERSION, array_of, consumers_of, is_constant, values_read

# Arrays of values that are no constants of the graph, or not yet.
Known = Mapping[ir.Value, np.ndarray]


def evaluate(model: ir.Model, nodes: Sequence[ir.Node], known: Known) -> dict[ir.Value, np.ndarray]:
    """What nodes in topological order give for those that read them.

    They read constants, `known` and each other. A value that cannot be had as an array is left out.
    """
    if not nodes:
        return {}
    if all(_is_native(node) for node in nodes):
        try:
            return _on_onnxruntime(model, nodes, known, _read_outside(nodes))
        except Exception:
            # At least one of them is nothing for onnxruntime; the others are tried by themselves.
            if len(nodes) == 1:
                return {}
    elif len(nodes) == 1:
        return _on_reference(model, nodes[0], known)
    return _one_by_one(model, nodes, known)


def _one_by_one(
    model: ir.Model, nodes: Sequence[ir.Node], known: Known
) -> dict[ir.Value, np.ndarray]:
    found = dict(known)
    for node in nodes:
        if all(is_constant(value) or value in found for value in values_read(node)):
            found |= evaluate(model, [node], found)
    return {value: array for value, array in found.items() if value not in known}


def _read_outside(nodes: Sequence[ir.Node]) -> list[ir.Value]:
    """All outputs of the nodes of which at least one is read by another node, or by none."""
    inside = set(nodes)
    read_inside: set[ir.Value] = set()
    for node in nodes:
        read_inside.update(values_read(node))

    def leaves(value: ir.Value) -> bool:
        return value not in read_inside or not inside.issuperset(consumers_of(value))

    found: list[ir.Value] = []
    for node in nodes:
        if any(leaves(value) for value in node.outputs):
            found += [value for value in node.outputs if value.name]
    return found


def _is_native(node: ir.Node) -> bool:
    """Whether numpy itself has all types of a node, so that onnxruntime takes and gives arrays."""
    return all(_has_native_type(value) for value in [*values_read(node), *node.outputs])


def _has_native_type(value: ir.Value) -> bool:
    dtype = value.const_value.dtype if value.const_value is not None else value.dtype
    if dtype is None or dtype == ir.DataType.STRING:
        return True
    return dtype.itemsize >= 1 and dtype.numpy().isbuiltin == 1


def _on_onnxruntime(
    model: ir.Model, nodes: Sequence[ir.Node], known: Known, outputs: Sequence[ir.Value]
) -> dict[ir.Value, np.ndarray]:
    """Run the nodes as one model. Raises what onnxruntime raises."""
    proto, feeds = _model(model, nodes, known, outputs)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    # Each node is run once: rewriting them would take longer.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    results = session.run([str(value.name) for value in outputs], feeds)
    pairs = zip(outputs, results, strict=True)
    # Sequences and optional values are lists and None.
    return {value: array for value, array in pairs if isinstance(array, np.ndarray)}


def _on_reference(model: ir.Model, node: ir.Node, known: Known) -> dict[ir.Value, np.ndarray]:
    """Evaluate one node by ONNX's reference evaluator; empty where that cannot."""
    proto, feeds = _model(model, [node], known, node.outputs)
    try:
        with np.errstate(all="ignore"):
            results = onnx.reference.ReferenceEvaluator(proto).run(None, feeds)
    except Exception:
        return {}
    found = {}
    for value, result in zip(node.outputs, results, strict=True):
        if isinstance(result, np.ndarray | np.generic):
            found[value] = np.asarray(result)
    return found


def _model(
    model: ir.Model, nodes: Sequence[ir.Node], known: Known, outputs: Sequence[ir.Value]
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """(the nodes as a model, its inputs): constants are inputs, so that none is serialized."""
    graph = onnx.GraphProto(name="constants")
    graph.node.extend(ir.serde.serialize_node(node) for node in nodes)
    feeds = {}
    for value in _read_first(nodes):
        array = known[value] if value in known else array_of(value)
        feeds[str(value.name)] = array
        if value.const_value is not None:
            dtype = value.const_value.dtype
        else:
            dtype = ir.DataType.from_numpy(array.dtype)
        info = onnx.helper.make_tensor_value_info(str(value.name), dtype.value, array.shape)
        graph.input.append(info)
    graph.output.extend(onnx.ValueInfoProto(name=value.name) for value in outputs)
    proto = onnx.ModelProto(ir_version=IR_VERSION, graph=graph)
    for domain, version in model.opset_imports.items():
        proto.opset_import.append(onnx.helper.make_opsetid(domain, version))
    return proto, feeds


def _read_first(nodes: Sequence[ir.Node]) -> list[ir.Value]:
    """What nodes read that none of them makes, each once."""
    made: set[ir.Value] = set()
    found: dict[ir.Value, None] = {}
    for node in nodes:
        found.update(dict.fromkeys(value for value in values_read(node) if value not in made))
        made.update(node.outputs)
    return list(found)
