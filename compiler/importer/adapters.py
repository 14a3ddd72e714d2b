"""One adapter for each operator whose form or meaning changed between opsets 7 and 23.

An adapter states the old meaning in the new form. Its docstring says what changed, and in which
opset; the source is ONNX's docs/Changelog.md. A test (test_upgrade.py) holds every schema of ONNX
against the table at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compiler.graph import attribute_of, axis_of, constant_of, input_at
from compiler.importer.edit import Edit


def _axes(node: ir.Node, edit: Edit) -> None:
    """Squeeze 13, Unsqueeze 13, ReduceSum 13, other reductions 18: the attribute `axes` became an
    input.

    Without axes, all are meant.
    """
    axes = edit.pop("axes")
    if axes:
        edit.read(node.inputs[0], edit.ints(axes))


def _batch_normalization(node: ir.Node, edit: Edit) -> None:
    """BatchNormalization 9: lost `spatial`, which was 0 where each position has its own statistics
    [C, H, W]."""
    if edit.pop("spatial", 1):
        return
    x, scale, bias, mean, variance = node.inputs
    epsilon = edit.number_like(edit.pop("epsilon", 1e-5), x)
    deviation = edit.op("Sqrt", [edit.op("Add", [variance, epsilon])])
    normal = edit.op("Div", [edit.op("Sub", [x, mean]), deviation])
    edit.become("Add", [edit.op("Mul", [normal, scale]), bias])


def _clip(node: ir.Node, edit: Edit) -> None:
    """Clip 11: the attributes `min` and `max` became inputs."""
    x = node.inputs[0]
    low = edit.pop("min")
    high = edit.pop("max")
    bounds = []
    if low is not None or high is not None:
        bounds.append(None if low is None else edit.number_like(low, x))
    if high is not None:
        bounds.append(edit.number_like(high, x))
    if bounds:
        edit.read(x, *bounds)


def _dft(node: ir.Node, edit: Edit) -> None:
    """DFT 20: the attribute `axis`, 1 by default, became an input, -2 by default."""
    axis = edit.ints(edit.pop("axis", 1))
    edit.read(node.inputs[0], input_at(node, 1), axis)


def _dropout(node: ir.Node, edit: Edit) -> None:
    """Dropout 12: the attribute `ratio` became an input, which training alone reads.

    The mask is not read: `_gives_mask` refuses nodes whose mask is.
    """
    edit.pop("ratio")
    node.resize_outputs(1)


def _grid_sample(node: ir.Node, edit: Edit) -> None:
    """GridSample 20: modes have other names."""
    mode = attribute_of(node, "mode", "bilinear")
    new_names = {"bilinear": "linear", "bicubic": "cubic"}
    node.attributes["mode"] = ir.AttrString("mode", new_names.get(mode, mode))


def _pad(node: ir.Node, edit: Edit) -> None:
    """Pad 11: the attributes `pads` and `value` became inputs."""
    x = node.inputs[0]
    pads = edit.ints(edit.pop("pads"))
    value = edit.pop("value", 0.0)
    if value:
        edit.read(x, pads, edit.number_like(value, x))
    else:
        edit.read(x, pads)


def _resize(node: ir.Node, edit: Edit) -> None:
    """Resize 11 and Upsample 10: a position was coordinate / scale.

    ONNX's tests of opset 10 take the nearest position below where an axis grows, and the one above
    where it shrinks. A node with axes of both kinds therefore becomes two: one that shrinks, then
    one that grows.
    """
    mode = attribute_of(node, "mode", "nearest")
    x = node.inputs[0]
    attribute = edit.pop("scales")
    if attribute is None:
        scales = node.inputs[1]
        known = constant_of(scales)
    else:
        scales = edit.floats(attribute)
        known = np.asarray(attribute)
    attributes = {"mode": mode, "coordinate_transformation_mode": "asymmetric"}
    if mode != "nearest":
        edit.become("Resize", [x, None, scales], attributes)
        return
    growing = attributes | {"nearest_mode": "floor"}
    shrinking = attributes | {"nearest_mode": "ceil"}
    if known is not None and np.all(known >= 1):
        edit.become("Resize", [x, None, scales], growing)
        return
    if known is not None and np.all(known <= 1):
        edit.become("Resize", [x, None, scales], shrinking)
        return
    one = edit.floats([1])
    smaller = edit.op("Resize", [x, None, edit.op("Min", [scales, one])], shrinking)
    edit.become("Resize", [smaller, None, edit.op("Max", [scales, one])], growing)


def _roi_align(node: ir.Node, edit: Edit) -> None:
    """RoiAlign 16: corners are half a pixel off by default."""
    mode = "coordinate_transformation_mode"
    node.attributes[mode] = ir.AttrString(mode, "output_half_pixel")


def _scan(node: ir.Node, edit: Edit) -> None:
    """Scan 9: `_has_batches` refuses the older form; a node of it never comes here."""


def _scatter(node: ir.Node, edit: Edit) -> None:
    """Scatter 11: has a new name."""
    node.op_type = "ScatterElements"


def _slice(node: ir.Node, edit: Edit) -> None:
    """Slice 10: the attributes `starts`, `ends` and `axes` became inputs."""
    parts = [edit.pop(name) for name in ("starts", "ends", "axes")]
    constants = [edit.ints(part) for part in parts if part is not None]
    edit.read(node.inputs[0], *constants)


def _softmax(node: ir.Node, edit: Edit) -> None:
    """Softmax 13, LogSoftmax 13, Hardmax 13: over one axis, the last by default.

    Before, over the rows of a matrix: all axes from `axis` on, 1 by default, were flattened to one.
    """
    (x,) = node.inputs
    assert x is not None
    axis = edit.pop("axis", 1)
    if x.shape is not None:
        rank = len(x.shape)
        first = axis_of(axis, rank)
        wide = [index for index in range(first, rank) if x.shape[index] != 1]
        # With one axis that is wider than 1, flattening changes nothing.
        if len(wide) <= 1:
            only = wide[0] if wide else rank - 1
            node.attributes["axis"] = ir.AttrInt64("axis", only)
            return
    rows = edit.op("Flatten", [x], {"axis": axis})
    result = edit.op(node.op_type, [rows], {"axis": -1})
    edit.become("Reshape", [result, edit.op("Shape", [x])])


def _split(node: ir.Node, edit: Edit) -> None:
    """Split 13: the attribute `split` became an input.

    Split 18: without it, the number of parts has to be given.
    """
    sizes = edit.pop("split")
    if sizes is not None:
        edit.read(node.inputs[0], edit.ints(sizes))
    elif input_at(node, 1) is None:
        node.attributes["num_outputs"] = ir.AttrInt64("num_outputs", len(node.outputs))


def _top_k(node: ir.Node, edit: Edit) -> None:
    """TopK 10: the attribute `k` became an input."""
    edit.read(node.inputs[0], edit.ints([edit.pop("k")]))


def _refuses_none(node: ir.Node) -> str | None:
    return None


def _has_batches(node: ir.Node) -> str | None:
    return "has a batch axis, which newer ones have not"


def _gives_statistics(node: ir.Node) -> str | None:
    if any(map(_is_read, node.outputs[1:])):
        return "gives statistics, which newer ones do in training only"
    return None


def _gives_mask(node: ir.Node) -> str | None:
    if any(map(_is_read, node.outputs[1:])):
        return "gives a mask that is not defined at inference"
    return None


def _is_read(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


@dataclass(frozen=True)
class Adapter:
    """Brings nodes of opsets before `opset` to its form.

    `refuse` says why a node has no form there, or returns None.
    """

    opset: int
    adapt: Callable[[ir.Node, Edit], None]
    refuse: Callable[[ir.Node], str | None] = _refuses_none


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
    "Scan": Adapter(9, _scan, _has_batches),
    "Scatter": Adapter(11, _scatter),
    "Slice": Adapter(10, _slice),
    "Softmax": Adapter(13, _softmax),
    "Split": Adapter(18, _split),
    "Squeeze": Adapter(13, _axes),
    "TopK": Adapter(10, _top_k),
    "Unsqueeze": Adapter(13, _axes),
    "Upsample": Adapter(10, _resize),
}


def adapter_of(op_type: str, opset: int) -> Adapter | None:
    """The adapter that a node of this operator and opset needs; None where its form is current."""
    adapter = ADAPTERS.get(op_type)
    if adapter is None or opset >= adapter.opset:
        return None
    return adapter
