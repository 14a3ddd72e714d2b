"""What an operator file declares, and the few rules that all operators share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal

import numpy as np
import onnx_ir as ir

from compiler.graph import (
    Builder,
    activations_of,
    attribute_of,
    axis_of,
    element_count,
    is_static,
    shape_of,
    values_read,
)
from compiler.ops.writer import Writer
from compiler.targets import Target

FLOAT_MAX = float(np.finfo(np.float32).max)
FLOAT_BYTES = 4

# Why an operator is refused, None where it is not.
Refusal = str | None
# A function of single numbers: takes and gives float arrays of one shape.
Function = Callable[[np.ndarray], np.ndarray]
LinearKind = Literal["dense", "depthwise", "transposed"]


class RefuseError(Exception):
    """A lowering's way to leave a node in ONNX, with the reason that the user will read."""


class Moves(IntEnum):
    """How far an operator only hands on what it reads. Each kind is also all kinds below it."""

    NOTHING = 0  # it computes
    VALUES = 1  # each value that it gives is one that it reads
    ELEMENTS = 2  # it gives the elements of its input, perhaps in another order or type
    VIEW = 3  # in the same order and type: nothing runs on the host


@dataclass(frozen=True)
class Scales:
    """What TFLite's int8 specification asks of an operator's activations.

    `same` share one scale and zero point; `fixed` gives (scale, zero point) where the specification
    prescribes them. Everything else is free.

    `range_of` names the member of `same` whose observed range counts for all: an absorbed clamp.
    That works only while nothing else binds the scale of its input; `otherwise` is then asked.
    Source: https://ai.google.dev/edge/litert/models/quantization_spec
    """

    same: tuple[ir.Value, ...] = ()
    fixed: Mapping[ir.Value, tuple[float, int]] = field(default_factory=dict)
    range_of: ir.Value | None = None
    otherwise: Scales | None = None


def _every_channel() -> slice:
    return slice(None)


@dataclass(frozen=True)
class ChannelTie:
    """Channels (last axis) of `a` that can be multiplied by positive factors if those of `b` are by
    the same.

    `of_a` and `of_b` index the channels, all of them by default.
    """

    a: ir.Value
    b: ir.Value
    of_a: slice | np.ndarray = field(default_factory=_every_channel)
    of_b: slice | np.ndarray = field(default_factory=_every_channel)


# What holds for operators that do not declare otherwise, and for those that we do not know.


def _no_scales(node: ir.Node) -> Scales:
    return Scales()


def _no_ties(node: ir.Node) -> list[ChannelTie] | None:
    return None


def _none(node: ir.Node) -> int:
    return 0


def _no_channels(node: ir.Node) -> int | None:
    return None


def _no_function(node: ir.Node) -> Function | None:
    return None


def _never(node: ir.Node) -> bool:
    return False


def static_tensors(node: ir.Node) -> list[ir.Value]:
    """What a node reads and gives, without tensors whose shape depends on data."""
    return [value for value in [*values_read(node), *node.outputs] if is_static(value)]


def bytes_of_all(node: ir.Node) -> int:
    """Bytes of all that a node reads and gives, in float."""
    return FLOAT_BYTES * sum(map(element_count, static_tensors(node)))


@dataclass(frozen=True)
class Operator:
    """All that the compiler knows of one operator. A default says what holds where we do not know.

    On the way to the Edge TPU:

    lower:    rewrites the ONNX operator into what the Edge TPU has, or raises RefuseError
    body:     an operator of the dialect as an ONNX function, in ONNX's text syntax
    host_reason: why only the host runs it, where that holds for each of its forms
    refuse:   why it cannot or should not be written for the Edge TPU; the device's own rules stand
              beside the operators that `emit` writes, as `Builtin`s
    scales:   constraints on the scales of its activations
    emit:     writes it as TFLite
    absorbed: whether a node is a clamp that needs no operator: its input's scale ends where it does

    For exact rewrites of a graph:

    permute:  moves a Transpose from its inputs to its outputs by rewriting its axes; called with
              the permutation
    ties:     how factors of channels go through it, None where they do not
    combines: it adds or multiplies its inputs element by element; factors of channels of a "sum" go
              into the constants that it adds too
    linear:   it multiplies input 0 by weights (input 1, output channels first) and adds a bias
              (input 2). "dense": an output reads all input channels; "depthwise": only its own;
              "transposed": an input pixel spreads over output pixels

    What it computes:

    macs:     multiply-accumulates in float; the first two inputs and the first output that it gives
              are static
    output_channels: of a layer of ONNX with constant weights
    elementwise: what it does to each number by itself, as a function
    saturates_at: its int8 result is the first or the last for inputs beyond plus or minus this
    moves:    how far it only hands on what it reads
    normalises_rows: it divides each row by a size that is computed from the row
    reads_nan: it gives NaN a meaning of its own
    reads_bytes: its input is int8 or uint8 before any quantization, as pixels are

    Elsewhere:

    host_bytes: bytes of memory that it reads and writes on the host, in float
    host_scalars: elements that the host looks at one after the other, as in sorting
    sequential: each of its steps needs the one before it, so that one core of the host works
    stand_in: the ONNX operator of one input that a converter without the dialect takes instead
    """

    op_type: str
    domain: str = ""
    lower: Callable[[ir.Node, Builder], None] | None = None
    body: str | None = None
    host_reason: str | None = None
    refuse: Callable[[ir.Node, Target], Refusal] | None = None
    scales: Callable[[ir.Node], Scales] = _no_scales
    emit: Callable[[ir.Node, Writer], None] | None = None
    absorbed: Callable[[ir.Node], bool] = _never
    permute: Callable[[ir.Node, Sequence[int], Builder], None] | None = None
    ties: Callable[[ir.Node], list[ChannelTie] | None] = _no_ties
    combines: Literal["sum", "product"] | None = None
    linear: LinearKind | None = None
    macs: Callable[[ir.Node], int] = _none
    output_channels: Callable[[ir.Node], int | None] = _no_channels
    elementwise: Callable[[ir.Node], Function | None] = _no_function
    saturates_at: float | None = None
    moves: Moves = Moves.NOTHING
    normalises_rows: bool = False
    reads_nan: bool = False
    reads_bytes: bool = False
    host_bytes: Callable[[ir.Node], int] = bytes_of_all
    host_scalars: Callable[[ir.Node], int] = _none
    sequential: bool = False
    stand_in: str | None = None

    @property
    def key(self) -> tuple[str, str]:
        return (self.domain, self.op_type)

    @property
    def is_linear(self) -> bool:
        """Whether it multiplies by weights and adds a bias, in the form that the dialect has."""
        return self.linear is not None


def same_scale(node: ir.Node) -> Scales:
    """Every activation in and out shares one scale."""
    return Scales(same=(*activations_of(node), *node.outputs))


def channels(value: ir.Value) -> int:
    """Length of the last axis, 1 for a number."""
    shape = shape_of(value)
    return shape[-1] if shape else 1


def same_channels(node: ir.Node) -> list[ChannelTie] | None:
    """Factors of channels go through an operator that treats each channel alike and by itself."""
    first, *others = [*activations_of(node), *node.outputs]
    if any(channels(value) != channels(first) for value in others):
        return None
    return [ChannelTie(first, value) for value in others]


def free_permute(node: ir.Node, perm: Sequence[int], builder: Builder) -> None:
    """An operator that has no axes: a Transpose passes through it as it is."""


def permute_axis(node: ir.Node, perm: Sequence[int], builder: Builder) -> None:
    """An operator with an `axis` attribute."""
    axis = axis_of(int(attribute_of(node, "axis", -1)), len(perm))
    node.attributes["axis"] = ir.AttrInt64("axis", perm[axis])
