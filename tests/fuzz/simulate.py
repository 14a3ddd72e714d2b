"""What int8 alone does to a model: the float graph with every scale of its TPU segments applied by
ONNX's own QuantizeLinear and DequantizeLinear, and weights rounded. The bundle's kernels may add
little to that.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compiler.graph import activations_around, array_of, grid_of
from compiler.ops import operator_of
from compiler.partition import Program
from compiler.quantize import weights


def simulated(program: Program) -> ir.Model:
    """A copy of the program's model that rounds what TPU segments read, make, and multiply by."""
    names = {n.name for s in program.plan.segments if s.device == "tpu" for n in s.nodes}
    model = program.model.clone()
    nodes = [n for n in model.graph if n.name in names]
    for node in nodes:
        if (
            operator_of(node).stand_in == "Sigmoid"
        ):  # the approximation that the Edge TPU has: a logistic
            node.op_type, node.domain = "Sigmoid", ""
        if operator_of(node).is_linear:
            node.replace_input_with(1, _weights(model.graph, node, program))
    inside = set(nodes)
    for value in activations_around(nodes):
        made = value.producer() in inside
        rounded = _rounded(model.graph, value, program)
        for user, index in list(value.uses()):
            if (
                (made or user in inside)
                and user is not rounded.producer()
                and user.op_type != "QuantizeLinear"
            ):
                user.replace_input_with(index, rounded)
        if made and value.is_graph_output():
            name, value.name = value.name, f"{value.name}/exact"
            rounded.name = name
            model.graph.outputs[model.graph.outputs.index(value)] = rounded
    model.graph.sort()
    return model


def _constant(graph: ir.Graph, array: np.ndarray, name: str) -> ir.Value:
    tensor = ir.tensor(array)
    value = ir.Value(
        name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def _rounded(graph: ir.Graph, value: ir.Value, program: Program) -> ir.Value:
    quant, name = program.quants[str(value.name)], str(value.name)
    scale = _constant(graph, np.asarray(quant.scale, np.float32), f"{name}/sim/scale")
    zero = _constant(graph, np.asarray(quant.zero_point, np.int8), f"{name}/sim/zero")
    down = ir.node("QuantizeLinear", [value, scale, zero], num_outputs=1, name=f"{name}/sim/q")
    up = ir.node(
        "DequantizeLinear", [down.outputs[0], scale, zero], num_outputs=1, name=f"{name}/sim/dq"
    )
    down.outputs[0].name = f"{name}/sim/int8"
    up.outputs[0].name, up.outputs[0].shape, up.outputs[0].type = (
        f"{name}/sim",
        value.shape,
        value.type,
    )
    graph.extend([down, up])
    return up.outputs[0]


def _weights(graph: ir.Graph, node: ir.Node, program: Program) -> ir.Value:
    x, weight, bias = node.inputs
    assert x is not None and weight is not None and bias is not None
    scales = [program.quants[str(v.name)].scale for v in (x, node.outputs[0])]
    array = array_of(weight)
    around = weights.Surroundings(str(weight.name), *scales, grid_of(weight))
    quantized, steps, _ = weights.quantize(array, array_of(bias), around)
    rounded = (quantized.reshape(len(array), -1) * steps[:, None]).reshape(array.shape)
    return _constant(graph, rounded.astype(np.float32), f"{node.name}/sim/weights")
