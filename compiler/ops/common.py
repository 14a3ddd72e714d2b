"""What an operator file declares, and the few rules that all operators share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from compiler.graph import Builder, activations_of, attribute_of, axis_of, shape_of
from compiler.ops.writer import Writer
from compiler.targets import Target

FLOAT_MAX = float(np.finfo(np.float32).max)


class RefuseError(Exception):
    """A lowering's way to leave a node in ONNX, with the reason that the user will read."""


@dataclass(frozen=True)
class Scales:
    """What TFLite's int8 specification asks of an operator's activations.

    `same` share one scale and zero point; `fixed` gives (scale, zero point) where the specification
    prescribes them. `range_of` names the member of `same` whose observed range counts for all.
    Everything else is free. Source: https://ai.google.dev/edge/litert/models/quantization_spec
    """

    same: tuple[ir.Value, ...] = ()
    fixed: Mapping[ir.Value, tuple[float, int]] = field(default_factory=dict)
    range_of: ir.Value | None = None


Refusal = str | None


@dataclass(frozen=True)
class ChannelTie:
    """Channels (last axis) of `a` that can be multiplied by positive factors if those of `b` are by
    the same.

    `of_a` and `of_b` index the channels, all of them by default.
    """

    a: ir.Value
    b: ir.Value
    of_a: slice | np.ndarray = field(default_factory=lambda: slice(None))
    of_b: slice | np.ndarray = field(default_factory=lambda: slice(None))


@dataclass(frozen=True)
class Operator:
    """All that the compiler knows of one operator; absent parts mean that the operator does not
    have them.

    lower:    rewrites the ONNX operator into what the Edge TPU has, or raises RefuseError
    refuse:   why it cannot or should not be written for the Edge TPU, None where it can; the Edge TPU's own rules
              stand beside the operators that `emit` writes, as `Builtin`s
    scales:   constraints on the scales of its activations
    emit:     writes it as TFLite
    permute:  moves a Transpose from its inputs to its outputs by rewriting its axes; called with the permutation
    ties:     how factors of channels go through it (constants that it adds follow), None where they do not
    """

    op_type: str
    domain: str = ""
    lower: Callable[[ir.Node, Builder], None] | None = None
    refuse: Callable[[ir.Node, Target], Refusal] | None = None
    scales: Callable[[ir.Node], Scales] = lambda node: Scales()
    emit: Callable[[ir.Node, Writer], None] | None = None
    permute: Callable[[ir.Node, Sequence[int], Builder], None] | None = None
    ties: Callable[[ir.Node], list[ChannelTie] | None] = lambda node: None

    @property
    def key(self) -> tuple[str, str]:
        return (self.domain, self.op_type)


def same_scale(node: ir.Node) -> Scales:
    """Every activation in and out shares one scale."""
    return Scales(same=(*activations_of(node), *node.outputs))


def channels(value: ir.Value) -> int:
    """Length of the last axis, 1 for a number."""
    return shape_of(value)[-1] if shape_of(value) else 1


def same_channels(node: ir.Node) -> list[ChannelTie] | None:
    """Factors of channels go through an operator that treats each channel alike and by itself."""
    first, *others = [*activations_of(node), *node.outputs]
    if any(channels(v) != channels(first) for v in others):
        return None
    return [ChannelTie(first, v) for v in others]


def free_permute(node: ir.Node, perm: Sequence[int], b: Builder) -> None:
    """An operator that has no axes: a Transpose passes through it as it is."""


def permute_axis(node: ir.Node, perm: Sequence[int], b: Builder) -> None:
    """An operator with an `axis` attribute."""
    axis = axis_of(int(attribute_of(node, "axis", -1)), len(perm))
    node.attributes["axis"] = ir.AttrInt64("axis", perm[axis])


def same_geometry(size: int, kernel: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """TensorFlow's SAME padding (before, after) along one axis; the odd pixel goes after."""
    reach = (kernel - 1) * dilation + 1
    total = max((-(-size // stride) - 1) * stride + reach - size, 0)
    return total // 2, total - total // 2
