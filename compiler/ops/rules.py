"""What the Edge TPU asks of TFLite operators, as predicates with a sentence, a source and a
standing.

Rules are about operators as TFLite writes them, so that one set serves the compiler, which asks
before it places a node, and `check`, which reads existing files. Each family's file declares its
operators as `Builtin`s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from compiler.targets import Layer, Target

# documented: the vendor's table (coral.ai/docs/edgetpu/models-intro). measured: seen in public
# compiled files or compiler logs. assumed: our inference, on the careful side.
Standing = Literal["documented", "measured", "assumed"]


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of a TFLite operator. `zeros` tells that a constant holds nothing else, `scales` how
    many it has."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    constant: bool = False
    zeros: bool = False
    scales: int = 1

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
        return [t for t in (*self.inputs, *self.outputs) if t is not None and not t.constant]


@dataclass(frozen=True)
class Rule:
    """`needs` is a sentence; `broken` gives what an operator has instead, None where it keeps the
    rule."""

    needs: str
    broken: Callable[[OpInfo, Target], str | None]
    standing: Standing
    source: str = "coral.ai models-intro"


@dataclass(frozen=True)
class Work:
    """What one operator asks of the device: `amount` units of a `kind`, of which a target does so
    many a cycle.

    Of "conv", "pointwise", "depthwise" and "dense" the units are multiply-accumulates with the
    padding that the device computes too, of "vector" elements. `macs` is without padding.
    """

    kind: Literal["conv", "pointwise", "depthwise", "dense", "vector"]
    amount: int
    macs: int = 0


def elements(op: OpInfo, target: Target) -> Work:
    """Work of an operator that goes through its tensors once."""
    read = sum(t.elements for t in op.inputs if t is not None and not t.constant)
    return Work("vector", max(read, sum(t.elements for t in op.outputs)))


@dataclass(frozen=True)
class Builtin:
    """A TFLite operator that the Edge TPU has, up to a version, under rules beyond those of every
    operator.

    `layer` gives the parameters that it stores on the device, `work` what it computes.
    """

    name: str
    newest: int
    rules: tuple[Rule, ...] = ()
    layer: Callable[[OpInfo], Layer | None] = lambda op: None
    work: Callable[[OpInfo, Target], Work] = elements


def _dtype(op: OpInfo, target: Target) -> str | None:
    other = next((t for t in op.activations if t.dtype not in ("int8", "uint8")), None)
    return None if other is None else f"'{other.name}' is {other.dtype}"


def _static(op: OpInfo, target: Target) -> str | None:
    other = next((t for t in op.activations if any(d < 0 for d in t.shape)), None)
    return None if other is None else f"'{other.name}' is {list(other.shape)}"


def _empty(op: OpInfo, target: Target) -> str | None:
    other = next((t for t in op.activations if 0 in t.shape), None)
    return None if other is None else f"'{other.name}' is {list(other.shape)}"


def _open(op: OpInfo, target: Target) -> str | None:
    count = target.open_dimensions
    other = next((t for t in op.activations if any(d > 1 for d in t.shape[:-count])), None)
    return None if other is None else f"'{other.name}' is {list(other.shape)}"


# Kept by every operator.
COMMON = (
    Rule("tensors are int8 or uint8", _dtype, "documented"),
    Rule("shapes are static", _static, "documented"),
    Rule("tensors are not empty", _empty, "assumed", "TensorFlow Lite delegates refuse them"),
    Rule("only the three innermost dimensions are larger than 1", _open, "documented"),
)


def constant(index: int, what: str) -> Rule:
    """An operand that must be known when compiling."""

    def broken(op: OpInfo, target: Target) -> str | None:
        tensor = op.inputs[index] if index < len(op.inputs) else None
        return (
            None
            if tensor is None or tensor.constant
            else f"'{tensor.name}' is computed at run time"
        )

    return Rule(f"its {what} are constant", broken, "documented")


def no_fused_activation(op: OpInfo, target: Target) -> str | None:
    kind = op.options.get("fusedActivationFunction", 0)
    return f"activation {kind}" if kind else None


NO_FUSED_ACTIVATION = Rule("it has no fused activation", no_fused_activation, "documented")


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
