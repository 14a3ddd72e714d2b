"""What the Edge TPU asks of TFLite operators, as predicates with a sentence, a source and a
standing.

Rules are about operators as TFLite writes them, so that one set serves the compiler, which asks
before it places a node, and `check`, which reads existing files. Each family's file declares its
operators as `Builtin`s.

Every rule carries an operator that it accepts and one that it refuses. Of a size limit these are
the largest that was seen mapped and the smallest that was seen left on the CPU: what lies between
is unknown, and refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from compiler.targets import Layer, Target

# documented: the vendor's table (coral.ai/docs/edgetpu/models-intro). measured: seen in public
# compiled files or compiler logs. assumed: our inference, on the careful side.
Standing = Literal["documented", "measured", "assumed"]


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of a TFLite operator.

    `zeros` tells that a constant holds nothing else, `scales` how many scales it has, and
    `equal_scales` that these are all the same number. `values` are those of a constant of a few
    integers, such as axes; None where they are not known. A `variable` keeps its content from one
    run to the next.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    constant: bool = False
    zeros: bool = False
    scales: int = 1
    values: tuple[int, ...] | None = None
    variable: bool = False
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

    def values_of(self, index: int) -> tuple[int, ...] | None:
        """What input number `index` holds, None where that is not known."""
        tensor = self.inputs[index] if index < len(self.inputs) else None
        return tensor.values if tensor is not None else None


@dataclass(frozen=True)
class Rule:
    """One thing that the Edge TPU asks.

    `needs` is a sentence that goes on "it needs that"; `broken` gives what an operator has instead,
    None where it keeps the rule. `accepts` and `refuses` are examples: operators that keep every
    other rule.
    """

    needs: str
    broken: Callable[[OpInfo, Target], str | None]
    standing: Standing
    accepts: OpInfo
    refuses: OpInfo
    source: str = "coral.ai models-intro"


def example(
    builtin: str,
    *tensors: tuple[int, ...] | TensorInfo,
    outputs: int = 1,
    **options: object,
) -> OpInfo:
    """An operator of activations, given by their shapes, and other tensors; the last ones, as many
    as `outputs` says, are what it makes."""
    found: list[TensorInfo] = []
    for index, given in enumerate(tensors):
        if isinstance(given, tuple):
            found.append(TensorInfo(f"t{index}", given, "int8"))
        else:
            found.append(given)
    return OpInfo(builtin, 1, tuple(found[:-outputs]), tuple(found[-outputs:]), options)


def held(*shape: int, dtype: str = "int8") -> TensorInfo:
    """A constant of an example."""
    return TensorInfo("constant", shape, dtype, constant=True)


def integers(*values: int) -> TensorInfo:
    """A constant row of integers of an example."""
    return TensorInfo("integers", (len(values),), "int32", constant=True, values=values)


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
        is_state = tensor.variable and tensor.dtype == "int16"
        if tensor.dtype not in ("int8", "uint8") and not is_state:
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


def _lstm(state: str) -> OpInfo:
    """An LSTM whose state has this type; of its constants only those that tell something."""
    cell = TensorInfo("cell", (1, 20), state, variable=True)
    return example("UNIDIRECTIONAL_SEQUENCE_LSTM", (1, 28, 28), cell, (1, 28, 20))


_PLAIN = example("LOGISTIC", (1, 8, 8, 4), (1, 8, 8, 4))

# Kept by every operator.
COMMON = (
    Rule(
        "tensors are int8 or uint8 (the state of an LSTM may be int16)",
        _dtype,
        "documented",
        accepts=_lstm("int16"),
        refuses=_lstm("float32"),
        source="coral.ai models-intro; int16: keras_lstm_mnist_ptq of google-coral test_data",
    ),
    Rule(
        "shapes are static",
        _static,
        "documented",
        accepts=_PLAIN,
        refuses=example("LOGISTIC", (1, -1), (1, -1)),
    ),
    Rule(
        "tensors are not empty",
        _empty,
        "assumed",
        accepts=_PLAIN,
        refuses=example("LOGISTIC", (1, 0), (1, 0)),
        source="TensorFlow Lite delegates refuse them",
    ),
    Rule(
        "only the three innermost dimensions are larger than 1",
        _inner,
        "documented",
        accepts=_PLAIN,
        refuses=example("LOGISTIC", (2, 8, 8, 4), (2, 8, 8, 4)),
    ),
)


def constant(index: int, what: str, accepts: OpInfo) -> Rule:
    """Input number `index`, such as its weights (`what`), must be known when compiling, as it is in
    the example that is accepted."""

    def broken(op: OpInfo, target: Target) -> str | None:
        tensor = op.inputs[index] if index < len(op.inputs) else None
        if tensor is None or tensor.constant:
            return None
        return f"'{tensor.name}' is computed at run time"

    inputs = list(accepts.inputs)
    given = inputs[index]
    assert given is not None
    inputs[index] = TensorInfo("computed", given.shape, "int8")
    refuses = replace(accepts, inputs=tuple(inputs))
    return Rule(f"its {what} are constant", broken, "documented", accepts, refuses)


def _fused_activation(op: OpInfo, target: Target) -> str | None:
    kind = op.options.get("fusedActivationFunction", 0)
    return f"activation {kind}" if kind else None


NO_FUSED_ACTIVATION = Rule(
    "it has no fused activation",
    _fused_activation,
    "documented",
    accepts=example("MAX_POOL_2D", (1, 8, 8, 4), (1, 4, 4, 4)),
    refuses=example("MAX_POOL_2D", (1, 8, 8, 4), (1, 4, 4, 4), fusedActivationFunction=1),
)


def _dimensions(op: OpInfo, target: Target) -> str | None:
    tensors = [tensor for tensor in (*op.inputs, *op.outputs) if tensor is not None]
    most = max(len(tensor.shape) for tensor in tensors)
    return f"it has {most}" if most > 4 else None


def four_dimensions(builtin: str, *between: TensorInfo) -> Rule:
    """At most four dimensions, of an operator whose example has these inputs behind the first."""
    small, large = (1, 8, 8, 4), (1, 1, 8, 8, 4)
    return Rule(
        "it has at most four dimensions",
        _dimensions,
        "assumed",
        accepts=example(builtin, small, *between, small),
        refuses=example(builtin, large, *between, large),
        source="TensorFlow Lite's kernels of the compiler's time take up to four",
    )


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
