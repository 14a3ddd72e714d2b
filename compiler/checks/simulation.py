"""A float model in which each rounding to int8 can be switched on and off by itself.

A rounding is of one activation, by its scale, or of the weights of one layer. With all of them on
the model gives what the bundle gives, up to the rounding of kernels; with one alone, what this one
contributes. One session of onnxruntime serves for all of them, so that a plan's error is known
without building it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compiler.graph import (
    OPSET,
    activations_of,
    all_activations,
    array_of,
    consumers_of,
    element_count,
    grid_of,
    is_constant,
    quantized_around,
    shape_of,
)
from compiler.graph.reference import Reference
from compiler.ops import Moves, operator_of
from compiler.partition import Program
from compiler.quant import Quant, from_range
from compiler.quantize import weights
from compiler.quantize.samples import Sample


@dataclass(frozen=True)
class Rounding:
    """A source of error: an activation, or the constants that a node reads.

    It is there as long as one of `nodes` runs on the Edge TPU.
    """

    name: str
    nodes: tuple[ir.Node, ...]
    value: ir.Value | None = None

    @property
    def switch(self) -> str:
        """The input of the simulation that turns it on."""
        return f"{self.name}/rounded"


def can_simulate(program: Program) -> bool:
    """Whether onnxruntime quantizes in the opset of a model."""
    return program.model.graph.opset_imports.get("", OPSET) <= OPSET


class Simulation:
    """A program with a switch for each rounding. Use it as a context manager."""

    def __init__(self, program: Program) -> None:
        nodes = []
        for segment in program.plan.segments:
            if segment.device == "tpu":
                nodes += segment.nodes
        self.roundings = roundings(nodes, program.quants)
        model = _switchable(program, self.roundings, set(nodes))
        self._reference = Reference(model)
        self._outputs = [str(value.name) for value in program.model.graph.outputs]

    def run(self, sample: Sample, on: Collection[Rounding]) -> dict[str, np.ndarray]:
        """The outputs for one sample with the roundings `on`."""
        active = {rounding.name for rounding in on}
        switches = {r.switch: np.asarray(r.name in active) for r in self.roundings}
        return self._reference.run({**sample, **switches}, self._outputs)

    def active(self, kept: Collection[ir.Node]) -> list[Rounding]:
        """The roundings that are left where the nodes `kept` run on the host in float."""
        found = []
        for rounding in self.roundings:
            if any(node not in kept for node in rounding.nodes):
                found.append(rounding)
        return found

    def __enter__(self) -> Simulation:
        self._reference.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._reference.__exit__()


def roundings(nodes: Sequence[ir.Node], quants: Mapping[str, Quant]) -> list[Rounding]:
    """Where nodes on the Edge TPU round, in their order."""
    inside = set(nodes)
    found: list[Rounding] = []
    seen: set[ir.Value] = set()
    values = set(quantized_around(nodes))
    for node in nodes:
        for value in activations_of(node):
            # What comes from the host.
            if value.producer() not in inside and value in values and value not in seen:
                seen.add(value)
                found.append(_of_activation(value, inside))
        if _has_rounded_constants(node):
            found.append(Rounding(f"{node.name}/weights", (node,)))
        for value in node.outputs:
            if value in values and not _is_rounded_elsewhere(value, quants):
                found.append(_of_activation(value, inside))
    return found


def _of_activation(value: ir.Value, inside: set[ir.Node]) -> Rounding:
    around = dict.fromkeys(node for node in consumers_of(value) if node in inside)
    producer = value.producer()
    if producer in inside and producer is not None:
        around = {producer: None} | around
    return Rounding(str(value.name), tuple(around), value)


def _is_rounded_elsewhere(value: ir.Value, quants: Mapping[str, Quant]) -> bool:
    """Whether an activation needs no rounding of its own: it only hands on what has the same scale,
    or a clamp behind it is what its scale is for."""
    node = value.producer()
    assert node is not None
    own = quants[str(value.name)]
    if operator_of(node).moves >= Moves.VALUES:
        read = [v for v in activations_of(node) if str(v.name) in quants]
        if read and all(quants[str(v.name)] == own for v in read):
            return True
    readers = consumers_of(value)
    if (
        len(readers) != 1
        or value.is_graph_output()
        or not operator_of(readers[0]).absorbed(readers[0])
    ):
        return False
    return quants.get(str(readers[0].outputs[0].name)) == own


def _has_rounded_constants(node: ir.Node) -> bool:
    if operator_of(node).is_linear:
        return is_constant(node.inputs[1])
    return bool(_rounded_operands(node))


def _rounded_operands(node: ir.Node) -> list[int]:
    """Places of the float constants that are written as int8; single numbers are exact."""
    if operator_of(node).combines is None and node.op_type not in ("Div", "PRelu"):
        return []
    found = []
    for place, value in enumerate(node.inputs):
        if value is None or value.dtype != ir.DataType.FLOAT or not is_constant(value):
            continue
        if element_count(value) > 1:
            found.append(place)
    return found


def _switchable(program: Program, sources: Iterable[Rounding], inside: set[ir.Node]) -> ir.Model:
    """A copy of the model with an input for each rounding."""
    originals = list(program.model.graph)
    copy = program.model.clone()
    own = dict(zip(originals, copy.graph, strict=True))
    values = {str(value.name): value for value in all_activations(copy.graph)}
    pen = _Pen(copy.graph)
    for rounding in sources:
        switch = ir.Value(
            name=rounding.switch, shape=ir.Shape([]), type=ir.TensorType(ir.DataType.BOOL)
        )
        copy.graph.inputs.append(switch)
        if rounding.value is None:
            (node,) = rounding.nodes
            _switch_constants(pen, own[node], node, program, switch)
            continue
        value = values[rounding.name]
        quant = program.quants[rounding.name]
        producer = rounding.value.producer()
        if producer is not None and producer in inside:
            pen.behind(value, quant, switch)
        else:
            readers = [own[node] for node in rounding.nodes]
            pen.in_front(value, quant, switch, readers)
    return copy


def _switch_constants(
    pen: _Pen, copied: ir.Node, node: ir.Node, program: Program, switch: ir.Value
) -> None:
    """Let a node read its constants as int8 has them where the switch is on."""
    if operator_of(node).is_linear:
        weight, bias = node.inputs[1], node.inputs[2]
        assert weight is not None and bias is not None
        new_weight, new_bias = _rounded_layer(node, program)
        pen.constant(copied, 1, weight, new_weight, switch)
        if is_constant(bias):
            pen.constant(copied, 2, bias, new_bias, switch)
        return
    for place in _rounded_operands(node):
        value = node.inputs[place]
        assert value is not None
        array = array_of(value)
        quant = from_range(float(array.min()), float(array.max()))
        pen.constant(copied, place, value, quant.dequantize(quant.quantize(array)), switch)


def _rounded_layer(node: ir.Node, program: Program) -> tuple[np.ndarray, np.ndarray]:
    """Weights and bias of a layer as its int8 ones stand for them; see TFLiteWriter.filters."""
    x, weight, bias = node.inputs
    assert x is not None and weight is not None and bias is not None
    input_scale = _scale(x, program)
    output_scale = _scale(node.outputs[0], program)
    means = None
    if operator_of(node).linear != "transposed":
        means = program.means.get(str(x.name))
    around = weights.Surroundings(
        str(weight.name), input_scale, output_scale, grid_of(weight), means
    )
    original = array_of(bias) if is_constant(bias) else np.zeros(shape_of(weight)[0], np.float32)
    quantized, scales, biases = weights.quantize(array_of(weight), original, around)
    by_row = scales.reshape(-1, *[1] * (quantized.ndim - 1))
    return quantized * by_row, (biases * (scales.astype(np.float64) * input_scale)).astype(
        np.float32
    )


def _scale(value: ir.Value, program: Program) -> float:
    quant = program.quants.get(str(value.name))
    # Pixels come in 8 bits and have the scale of what reads them.
    return 1.0 if quant is None else quant.scale


class _Pen:
    """Adds roundings to a graph."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._count = 0

    def behind(self, value: ir.Value, quant: Quant, switch: ir.Value) -> None:
        """All that read a value read it rounded; the result takes over its name."""
        name = str(value.name)
        producer = value.producer()
        assert producer is not None
        users = list(value.uses())
        node, result = self._rounded(value, quant, switch)
        result.name = name
        for user, place in users:
            user.replace_input_with(place, result)
        for place, output in enumerate(self._graph.outputs):
            if output is value:
                self._graph.outputs[place] = result
        value.name = f"{name}/clean"
        self._graph.insert_after(producer, node)

    def in_front(
        self, value: ir.Value, quant: Quant, switch: ir.Value, readers: Sequence[ir.Node]
    ) -> None:
        """Only `readers` read a value rounded."""
        node, result = self._rounded(value, quant, switch)
        result.name = f"{value.name}/at_tpu"
        for reader in readers:
            for place, read in enumerate(reader.inputs):
                if read is value:
                    reader.replace_input_with(place, result)
        producer = value.producer()
        if producer is None:
            self._graph.insert_before(self._graph[0], node)
        else:
            self._graph.insert_after(producer, node)

    def constant(
        self, node: ir.Node, place: int, original: ir.Value, rounded: np.ndarray, switch: ir.Value
    ) -> None:
        """A node reads a constant rounded where the switch is on."""
        kept = node.inputs[place]
        assert kept is not None
        other = self._initializer(
            np.asarray(rounded, np.float32).reshape(shape_of(kept)), "rounded"
        )
        chosen = self._node("Where", [switch, other, kept], original.dtype, original.shape)
        node.replace_input_with(place, chosen.outputs[0])
        self._graph.insert_before(node, chosen)

    def _rounded(self, value: ir.Value, quant: Quant, switch: ir.Value) -> tuple[ir.Node, ir.Value]:
        """A node that gives a value as int8 has it where the switch is on, else as it is.

        The branches read `value` from outside; the one that is not taken costs nothing.
        """
        scale = self._initializer(np.asarray(quant.scale, np.float32), "scale")
        zero = self._initializer(np.asarray(quant.zero_point, np.int8), "zero")
        to_int = self._node("QuantizeLinear", [value, scale, zero], ir.DataType.INT8, value.shape)
        parts = [to_int.outputs[0], scale, zero]
        to_float = self._node("DequantizeLinear", parts, ir.DataType.FLOAT, value.shape)
        same = self._node("Identity", [value], ir.DataType.FLOAT, value.shape)
        chosen = self._node("If", [switch], ir.DataType.FLOAT, value.shape)
        for name, nodes in (("then_branch", [to_int, to_float]), ("else_branch", [same])):
            branch = ir.Graph([], nodes[-1].outputs, nodes=nodes, name=f"{chosen.name}/{name}")
            chosen.attributes[name] = ir.AttrGraph(name, branch)
        return chosen, chosen.outputs[0]

    def _node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        dtype: ir.DataType | None,
        shape: ir.Shape | None,
    ) -> ir.Node:
        self._count += 1
        name = f"{op_type}/simulated/{self._count}"
        node = ir.node(op_type, inputs, num_outputs=1, name=name)
        (output,) = node.outputs
        output.name = name
        output.shape = shape
        if dtype is not None:
            output.type = ir.TensorType(dtype)
        return node

    def _initializer(self, array: np.ndarray, hint: str) -> ir.Value:
        self._count += 1
        tensor = ir.tensor(array)
        value = ir.Value(
            name=f"{hint}/simulated/{self._count}",
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(list(array.shape)),
            const_value=tensor,
        )
        self._graph.register_initializer(value)
        return value
