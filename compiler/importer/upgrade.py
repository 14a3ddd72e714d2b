"""Raises a model of opset 7 to 22 to opset 23, operator by operator.

ONNX's own converters leave some old meanings behind without a word: Softmax over coerced rows,
Resize without half-pixel coordinates, BatchNormalization by position. Here each operator whose form
or meaning changed between these opsets has one adapter, which states the old meaning in the new
form. All other operators only took more types or optional attributes, whose defaults are the old
meaning. The changes are those of ONNX's docs/Changelog.md; tests/test_upgrade.py holds every schema
against the table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from compiler.graph import (
    OPSET,
    ORIGIN,
    RAISED,
    attribute_of,
    axis_of,
    constant_of,
    input_at,
    key_of,
    origin_of,
    shapes,
)

# Whose kernels in onnxruntime end with opset 21, where all operators have the form of opset 23
# already.
ENDING = {"GlobalLpPool", "MaxRoiPool", "Multinomial", "RoiAlign"} | {
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
}


# For which onnxruntime has kernels in float only. Of other types it takes them apart into what ONNX
# says that they are made of, which it does up to opset 18.
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
} | {
    "Softsign",
    "ThresholdedRelu",
}

# The opset of which GroupNormalization has a scale for each channel.
GROUPS_BY_CHANNEL = 21


def upgrade(model: ir.Model) -> str | None:
    """Raise a model to opset 23, in place, or to 21 where onnxruntime lacks one of its operators
    beyond.

    A model with an operator that cannot be raised keeps its opset; the return value then says why.
    Functions have to be inlined before.
    """
    version = model.graph.opset_imports.get("", OPSET)
    kinds = {node.op_type for node in model.graph.all_nodes() if key_of(node)[0] == ""}
    target = RAISED if kinds & ENDING else OPSET
    if version >= target:
        return None
    why = _other_kernels(model)
    if why is not None:
        return why
    changed = [
        (node, ADAPTERS[node.op_type])
        for node in model.graph.all_nodes()
        if _is_changed(node, version)
    ]
    for node, row in changed:
        why = row.refuse(node)
        if why is not None:
            return f"{node.op_type} '{origin_of(node)}' of opset {version} {why}"
    if changed:
        shapes.infer(model)
    taken = _names(model)
    for node, row in changed:
        row.adapt(node, _Edit(node, taken))
    for node in model.graph.all_nodes():
        node.version = None
    model.graph.opset_imports[""] = target
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    return None


def replace_deprecated(model: ir.Model) -> None:
    """Write GroupNormalization of opsets 18 to 20 in operators that ONNX's checker and shape
    inference know.

    It was deprecated, yet exporters wrote it and onnxruntime runs it. With a scale and a bias for
    each group it is what InstanceNormalization makes of the groups as channels.
    """
    version = model.graph.opset_imports.get("", OPSET)
    taken = _names(model)
    for node in list(model.graph.all_nodes()):
        if key_of(node) != ("", "GroupNormalization") or version >= GROUPS_BY_CHANNEL:
            continue
        x, scale, bias = node.inputs
        edit = _Edit(node, taken)
        groups = edit.op("Reshape", [x, edit.ints([0, int(attribute_of(node, "num_groups")), -1])])
        normal = edit.op(
            "InstanceNormalization",
            [groups, scale, bias],
            {"epsilon": attribute_of(node, "epsilon", 1e-5)},
        )
        edit.become("Reshape", [normal, edit.op("Shape", [x])])


def _names(model: ir.Model) -> set[str | None]:
    """All names of values, those in subgraphs included."""
    return {
        value.name
        for graph in model.graphs()
        for value in ir.convenience.create_value_mapping(graph).values()
    }


def _other_kernels(model: ir.Model) -> str | None:
    """Which node computes on a type for which onnxruntime has no kernel in newer opsets."""
    nodes = [
        node
        for node in model.graph.all_nodes()
        if key_of(node) in {("", kind) for kind in FLOAT_KERNELS}
    ]
    if nodes:
        shapes.infer(model)
    floats = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    for node in nodes:
        dtype = node.outputs[0].dtype
        if dtype == ir.DataType.DOUBLE and node.op_type == "Relu":
            continue
        if dtype is not None and dtype not in floats:
            return f"{node.op_type} '{origin_of(node)}' is {dtype.name.lower()}, for which newer opsets have no kernel"
    return None


class _Edit:
    """Adds nodes in front of `node`, which lies in the main graph or in a subgraph.

    An adapter leaves `node` itself as the last one, so that its outputs keep their names and
    readers.
    """

    def __init__(self, node: ir.Node, taken: set[str | None]) -> None:
        self.node, self._taken = node, taken

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: dict[str, Any] | None = None,
    ) -> ir.Value:
        """A new node of one output."""
        node = ir.node(op_type, inputs, attributes or {}, num_outputs=1)
        node.metadata_props[ORIGIN] = origin_of(self.node)
        (value,) = node.outputs
        value.name = node.name = self._fresh(f"{self.node.outputs[0].name}/{op_type}")
        assert self.node.graph is not None
        self.node.graph.insert_before(self.node, node)
        return value

    def ints(self, numbers: Sequence[int] | int) -> ir.Value:
        """A constant of int64."""
        return self._constant(np.asarray(numbers, np.int64))

    def floats(self, numbers: Sequence[float]) -> ir.Value:
        """A constant of float32."""
        return self._constant(np.asarray(numbers, np.float32))

    def number_like(self, number: float, like: ir.Value | None) -> ir.Value:
        """A constant scalar of the type of another value."""
        assert like is not None
        if like.dtype is None or like.dtype == ir.DataType.BFLOAT16:
            return self.op("CastLike", [self._constant(np.asarray(number, np.float32)), like])
        return self._constant(np.asarray(number, like.dtype.numpy()))

    def become(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: dict[str, Any] | None = None,
    ) -> None:
        """Make the node itself another one."""
        self.node.op_type = op_type
        self.node.attributes.clear()
        self.node.attributes.update(
            {a.name: a for a in ir.convenience.convert_attributes(attributes or {})}
        )
        self.read(*inputs)

    def read(self, *inputs: ir.Value | None) -> None:
        """Replace the inputs of the node."""
        self.node.resize_inputs(len(inputs))
        for index, value in enumerate(inputs):
            self.node.replace_input_with(index, value)

    def pop(self, name: str, default: Any = None) -> Any:
        """Take an attribute off the node; its value as a plain Python object."""
        value = attribute_of(self.node, name, default)
        self.node.attributes.pop(name, None)
        return value

    def _constant(self, array: np.ndarray) -> ir.Value:
        value = self.op("Constant", [], {"value": ir.tensor(array)})
        value.type, value.shape = (
            ir.TensorType(ir.DataType.from_numpy(array.dtype)),
            ir.Shape(array.shape),
        )
        return value

    def _fresh(self, hint: str) -> str:
        name, number = hint, 0
        while name in self._taken:
            number += 1
            name = f"{hint}_{number}"
        self._taken.add(name)
        return name


def _axes(node: ir.Node, edit: _Edit) -> None:
    """Squeeze 13, Unsqueeze 13, ReduceSum 13, other reductions 18: the attribute `axes` became an
    input.

    Without axes, all are meant.
    """
    axes = edit.pop("axes")
    if axes:
        edit.read(node.inputs[0], edit.ints(axes))


def _batch_normalization(node: ir.Node, edit: _Edit) -> None:
    """BatchNormalization 9: no `spatial`, which was 0 where each position had statistics of its own
    [C, H, W]."""
    if edit.pop("spatial", 1):
        return
    x, scale, bias, mean, variance = node.inputs
    epsilon = edit.number_like(edit.pop("epsilon", 1e-5), x)
    deviation = edit.op("Sqrt", [edit.op("Add", [variance, epsilon])])
    normal = edit.op("Div", [edit.op("Sub", [x, mean]), deviation])
    edit.become("Add", [edit.op("Mul", [normal, scale]), bias])


def _clip(node: ir.Node, edit: _Edit) -> None:
    """Clip 11: the attributes `min` and `max` became inputs."""
    x = node.inputs[0]
    low, high = edit.pop("min"), edit.pop("max")
    if low is not None or high is not None:
        bounds = [None if number is None else edit.number_like(number, x) for number in (low, high)]
        edit.read(x, *(bounds if high is not None else bounds[:1]))


def _dft(node: ir.Node, edit: _Edit) -> None:
    """DFT 20: the attribute `axis`, 1 by default, became an input, -2 by default."""
    edit.read(node.inputs[0], input_at(node, 1), edit.ints(edit.pop("axis", 1)))


def _dropout(node: ir.Node, edit: _Edit) -> None:
    """Dropout 12: the attribute `ratio` became an input, which training alone reads. Nobody reads
    the mask."""
    edit.pop("ratio")
    node.resize_outputs(1)


def _grid_sample(node: ir.Node, edit: _Edit) -> None:
    """GridSample 20: modes have other names."""
    mode = attribute_of(node, "mode", "bilinear")
    node.attributes["mode"] = ir.AttrString(
        "mode", {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)
    )


def _pad(node: ir.Node, edit: _Edit) -> None:
    """Pad 11: the attributes `pads` and `value` became inputs."""
    x = node.inputs[0]
    pads, value = edit.ints(edit.pop("pads")), edit.pop("value", 0.0)
    edit.read(x, pads, *([edit.number_like(value, x)] if value else []))


def _resize(node: ir.Node, edit: _Edit) -> None:
    """Resize 11 and Upsample 10: coordinates were x / scale.

    The nearest position is the one below where an axis grows and the one above where it shrinks, as
    ONNX's tests of opset 10 have it, so that axes of both kinds take two operators.
    """
    mode, x = attribute_of(node, "mode", "nearest"), node.inputs[0]
    old = edit.pop("scales")
    scales = node.inputs[1] if old is None else edit.floats(old)
    attributes = {"mode": mode, "coordinate_transformation_mode": "asymmetric"}
    if mode != "nearest":
        edit.become("Resize", [x, None, scales], attributes)
        return
    below, above = attributes | {"nearest_mode": "floor"}, attributes | {"nearest_mode": "ceil"}
    known = constant_of(scales) if old is None else np.asarray(old)
    if known is not None and (np.all(known >= 1) or np.all(known <= 1)):
        edit.become("Resize", [x, None, scales], below if np.all(known >= 1) else above)
        return
    one = edit.floats([1])
    smaller = edit.op("Resize", [x, None, edit.op("Min", [scales, one])], above)
    edit.become("Resize", [smaller, None, edit.op("Max", [scales, one])], below)


def _roi_align(node: ir.Node, edit: _Edit) -> None:
    """RoiAlign 16: corners are half a pixel off by default."""
    mode = "coordinate_transformation_mode"
    node.attributes[mode] = ir.AttrString(mode, "output_half_pixel")


def _scatter(node: ir.Node, edit: _Edit) -> None:
    """Scatter 11: has a new name."""
    node.op_type = "ScatterElements"


def _slice(node: ir.Node, edit: _Edit) -> None:
    """Slice 10: the attributes `starts`, `ends` and `axes` became inputs."""
    parts = [edit.pop(name) for name in ("starts", "ends", "axes")]
    edit.read(node.inputs[0], *(edit.ints(part) for part in parts if part is not None))


def _softmax(node: ir.Node, edit: _Edit) -> None:
    """Softmax 13, LogSoftmax 13, Hardmax 13: over one axis, the last by default.

    Before, over the rows of a matrix: all axes from `axis` on, 1 by default, were one.
    """
    (x,) = node.inputs
    assert x is not None
    axis, shape = edit.pop("axis", 1), x.shape
    if shape is not None:
        first = axis_of(axis, len(shape))
        wide = [i for i in range(first, len(shape)) if shape[i] != 1]
        if len(wide) <= 1:
            node.attributes["axis"] = ir.AttrInt64("axis", wide[0] if wide else len(shape) - 1)
            return
    rows = edit.op("Flatten", [x], {"axis": axis})
    result = edit.op(node.op_type, [rows], {"axis": -1})
    edit.become("Reshape", [result, edit.op("Shape", [x])])


def _split(node: ir.Node, edit: _Edit) -> None:
    """Split 13: the attribute `split` became an input. Split 18: without it, the number of parts is
    given."""
    sizes = edit.pop("split")
    if sizes is not None:
        edit.read(node.inputs[0], edit.ints(sizes))
    elif input_at(node, 1) is None:
        node.attributes["num_outputs"] = ir.AttrInt64("num_outputs", len(node.outputs))


def _top_k(node: ir.Node, edit: _Edit) -> None:
    """TopK 10: the attribute `k` became an input."""
    edit.read(node.inputs[0], edit.ints([edit.pop("k")]))


def _is_read(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def _takes_all(node: ir.Node) -> str | None:
    return None


def _has_batches(node: ir.Node) -> str | None:
    return "has a batch axis, which newer ones have not"


def _gives_statistics(node: ir.Node) -> str | None:
    return (
        "gives statistics, which newer ones do in training only"
        if any(map(_is_read, node.outputs[1:]))
        else None
    )


def _gives_mask(node: ir.Node) -> str | None:
    return (
        "gives a mask that is not defined at inference"
        if any(map(_is_read, node.outputs[1:]))
        else None
    )


@dataclass(frozen=True)
class Adapter:
    """Brings nodes of opsets before `opset` to its form; `refuse` says why a node has none there."""

    opset: int
    adapt: Callable[[ir.Node, _Edit], None]
    refuse: Callable[[ir.Node], str | None] = _takes_all


_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")

ADAPTERS: dict[str, Adapter] = {
    "BatchNormalization": Adapter(14, _batch_normalization, _gives_statistics),
    "Clip": Adapter(11, _clip),
    "DFT": Adapter(20, _dft),
    "Dropout": Adapter(12, _dropout, _gives_mask),
    "GridSample": Adapter(20, _grid_sample),
    "Hardmax": Adapter(13, _softmax),
    "LogSoftmax": Adapter(13, _softmax),
    "Pad": Adapter(11, _pad),
    "ReduceSum": Adapter(13, _axes),
    **{f"Reduce{kind}": Adapter(18, _axes) for kind in _REDUCTIONS},
    "Resize": Adapter(11, _resize),
    "RoiAlign": Adapter(16, _roi_align),
    "Scan": Adapter(9, lambda node, edit: None, _has_batches),
    "Scatter": Adapter(11, _scatter),
    "Slice": Adapter(10, _slice),
    "Softmax": Adapter(13, _softmax),
    "Split": Adapter(18, _split),
    "Squeeze": Adapter(13, _axes),
    "TopK": Adapter(10, _top_k),
    "Unsqueeze": Adapter(13, _axes),
    "Upsample": Adapter(10, _resize),
}


def _is_changed(node: ir.Node, version: int) -> bool:
    domain, op_type = key_of(node)
    return not domain and op_type in ADAPTERS and version < ADAPTERS[op_type].opset
