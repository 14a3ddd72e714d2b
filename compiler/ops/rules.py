"""What the Edge TPU asks of TFLite operators, as predicates with a sentence, a source and a
standing.

Rules are about operators as TFLite writes them, so that one set serves the compiler, which asks
before it places a node, and `check`, which reads existing files. Each family's file declares its
operators as `Builtin`s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from compiler.targets import Layer, Target

# documented: the vendor's table (coral.ai/docs/edgetpu/models-intro). measured: seen in public
# compiled files or compiler logs. assumed: our inference, on the careful side.
Standing = Literal["documented", "measured", "assumed"]


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of a TFLite operator.

    `zeros` tells that a constant holds nothing else, `scales` how many scales it has, and
    `equal_scales` that these are all the same number.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    constant: bool = False
    zeros: bool = False
    scales: int = 1
    equal_scales: bool = False

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class OpInfo:
    """A TFLite operator; absent optional inputs are None."""

    builtin: str
    version: int
    inputs: tuple[TensorInfo | None, ...]
    outputs: tuple[TensorInfo, ...]
    options: Mapping[str, Any]

    @property
    def activations(self) -> list[TensorInfo]:
        """Tensors that are computed at run time, inputs first."""
        tensors = [tensor for tensor in (*self.inputs, *self.outputs) if tensor is not None]
        return [tensor for tensor in tensors if not tensor.constant]


@dataclass(frozen=True)
class Rule:
    """One thing that the Edge TPU asks.

    `needs` is a sentence that goes on "it needs that"; `broken` gives what an operator has instead,
    None where it keeps the rule.
    """

    needs: str
    broken: Callable[[OpInfo, Target], str | None]
    standing: Standing
    source: str = "coral.ai models-intro"


@dataclass(frozen=True)
class Work:
    """What one operator asks of the device: `amount` units of a `kind`, of which a target does so
    many a cycle.

    Of "conv", "pointwise", "depthwise" and "dense" the units are multiply-accumulates with the
    padding that the device computes too, of "vector" elements, and of "broadcast" elements that
    meet a constant of their channel. `macs` is without padding.
    """

    kind: Literal["conv", "pointwise", "depthwise", "dense", "vector", "broadcast"]
    amount: int
    macs: int = 0


def elements(op: OpInfo, target: Target) -> Work:
    """Work of an operator that goes through its tensors once: the larger of input and output."""
    inputs = [tensor for tensor in op.inputs if tensor is not None and not tensor.constant]
    read = sum(tensor.elements for tensor in inputs)
    written = sum(tensor.elements for tensor in op.outputs)
    return Work("vector", max(read, written))


def no_parameters(op: OpInfo) -> Layer | None:
    return None


@dataclass(frozen=True)
class Builtin:
    """A TFLite operator that the Edge TPU has, up to version `newest`, under rules beyond those of
    every operator.

    `layer` gives the parameters that it stores on the device, `work` what it computes. `table` is
    the table of its options in TFLite's schema, where it is not the name in camel case.
    """

    name: str
    newest: int
    rules: tuple[Rule, ...] = ()
    layer: Callable[[OpInfo], Layer | None] = no_parameters
    work: Callable[[OpInfo, Target], Work] = elements
    table: str = ""

    @property
    def options_table(self) -> str:
        if self.table:
            return self.table
        words = [word.capitalize() for word in self.name.split("_")]
        return f"{''.join(words)}Options"


def _dtype(op: OpInfo, target: Target) -> str | None:
    for tensor in op.activations:
        if tensor.dtype not in ("int8", "uint8"):
            return f"'{tensor.name}' is {tensor.dtype}"
    return None


def _static(op: OpInfo, target: Target) -> str | None:
    for tensor in op.activations:
        if min(tensor.shape, default=0) < 0:
            return _shape(tensor)
    return None


def _empty(op: OpInfo, target: Target) -> str | None:
    for tensor in op.activations:
        if 0 in tensor.shape:
            return _shape(tensor)
    return None


def _inner(op: OpInfo, target: Target) -> str | None:
    for tensor in op.activations:
        outer = tensor.shape[: -target.open_dimensions]
        if max(outer, default=1) > 1:
            return _shape(tensor)
    return None


def _shape(tensor: TensorInfo) -> str:
    return f"'{tensor.name}' is {list(tensor.shape)}"


# Kept by every operator.
COMMON = (
    Rule("tensors are int8 or uint8", _dtype, "documented"),
    Rule("shapes are static", _static, "documented"),
    Rule("tensors are not empty", _empty, "assumed", "TensorFlow Lite delegates refuse them"),
    Rule("only the three innermost dimensions are larger than 1", _inner, "documented"),
)


def constant(index: int, what: str) -> Rule:
    """Input number `index`, such as its weights (`what`), must be known when compiling."""

    def broken(op: OpInfo, target: Target) -> str | None:
        tensor = op.inputs[index] if index < len(op.inputs) else None
        if tensor is None or tensor.constant:
            return None
        return f"'{tensor.name}' is computed at run time"

    return Rule(f"its {what} are constant", broken, "documented")


def _fused_activation(op: OpInfo, target: Target) -> str | None:
    kind = op.options.get("fusedActivationFunction", 0)
    return f"activation {kind}" if kind else None


NO_FUSED_ACTIVATION = Rule("it has no fused activation", _fused_activation, "documented")


def rows_of(op: OpInfo) -> int:
    """Rows of an operator's output: how many times it works along the last axis."""
    return math.prod(op.outputs[0].shape[:-1])


def judge(op: OpInfo, builtins: Mapping[str, Builtin], target: Target) -> str | None:
    """Why the Edge TPU does not take an operator, None where it does."""
    builtin = builtins.get(op.builtin)
    if builtin is None:
        return f"the Edge TPU has no {op.builtin}"
    if op.version > builtin.newest:
        return (
            f"{op.builtin} is version {op.version}; the newest known to compile is {builtin.newest}"
        )
    for rule in (*COMMON, *builtin.rules):
        has = rule.broken(op, target)
        if has is not None:
            return f"{op.builtin} needs that {rule.needs}; {has}"
    return None


def first_refusal(
    ops: Iterable[OpInfo], builtins: Mapping[str, Builtin], target: Target
) -> str | None:
    """Why the Edge TPU does not take the first of several operators that it refuses."""
    for op in ops:
        reason = judge(op, builtins, target)
        if reason is not None:
            return reason
    return None
