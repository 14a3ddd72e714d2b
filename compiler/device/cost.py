"""What a node costs on an Edge TPU and on the host: seconds and bytes, predicted.

segment = invoke + bytes in / down + bytes out / up + the sum over operators of
operator + max(compute, streamed / stream), as the device computes while parameters arrive

Figures and their sources stand in compiler/targets/*.toml; benchmarks/fit_cost.py fits them to
public latencies and tells how far predictions are off for networks that the fit did not see.
Nothing here has run on an Edge TPU of ours. What an operator computes and moves is declared with
it: `Builtin.work`, `Builtin.layer`, `Operator.macs`, `Operator.host_bytes`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from compiler.device.draft import drafted
from compiler.graph import (
    BALANCED,
    consumers_of,
    element_count,
    input_at,
    is_constant,
    is_static,
    produced_by,
    producer_of,
)
from compiler.ops import BUILTINS, Moves, operator_of
from compiler.ops.common import FLOAT_BYTES, static_tensors
from compiler.ops.rules import OpInfo
from compiler.targets import Host, Layer, Target, stored_bytes

INT8_BYTES = 1


@dataclass(frozen=True)
class HostAlone:
    """Seconds of a whole model on the host and nothing else: in float, and with the products of its
    layers in int8."""

    in_float: float
    in_int8: float


@dataclass(frozen=True)
class Parameters:
    """A layer as it is cached or streamed: bytes on the device, seconds that are added where they
    are sent at each invocation. Some are always sent (`Layer.is_streamed`)."""

    layer: Layer
    bytes: int
    stream: float


@dataclass(frozen=True)
class Cost:
    """One node. `tpu` and `host` are seconds without transfers; `activations` are bytes that live
    while it runs."""

    tpu: float
    host: float
    macs: int
    activations: int
    parameters: tuple[Parameters, ...]


def of_operators(ops: Sequence[OpInfo], target: Target, host: float = 0.0) -> Cost:
    """The cost of TFLite operators on the Edge TPU; `host` are the seconds that the same takes
    there."""
    seconds = 0.0
    macs = 0
    most_live = 0
    parameters = []
    for op in ops:
        builtin = BUILTINS.get(op.builtin)
        if builtin is None:
            continue
        work = builtin.work(op, target)
        # Units per cycle, of the work's kind.
        rate = getattr(target, work.kind)
        compute = work.amount / rate / target.clock * target.slowdown
        seconds += compute + target.operator
        macs += work.macs
        live = sum(tensor.elements for tensor in op.activations)
        most_live = max(most_live, live)
        layer = builtin.layer(op)
        if layer is not None:
            parameters.append(_hidden(_parameters(layer, live, target), compute))
    return Cost(seconds, host, macs, most_live, tuple(parameters))


def _parameters(layer: Layer, live: int, target: Target) -> Parameters:
    """A layer beside `live` bytes of activations."""
    size = stored_bytes(layer, target)
    # Activations that are too large for one pass are gone through in several, each of which needs
    # the weights again.
    passes = max(1.0, live / target.pass_bytes)
    return Parameters(layer, size, size / target.stream * passes)


def _hidden(parameters: Parameters, compute: float) -> Parameters:
    """Parameters arrive while their operator computes; only what takes longer adds time.

    Measured: 300 7x7 convolutions of which 12 MiB stream take 2% longer than cached ones would,
    not the 11% that streaming takes alone (iwatake2222/EdgeTPU_Analysis, Result.xlsx, USB 3).
    """
    return replace(parameters, stream=max(0.0, parameters.stream - compute))


def of_node(node: ir.Node, target: Target, host: Host, legal: bool, int8: bool = False) -> Cost:
    """The cost of a node of the lowered graph; on the Edge TPU only where that takes it (`legal`).

    `int8` tells that the host has int8 weights for normalised products.
    """
    is_written = legal and not operator_of(node).absorbed(node)
    ops = drafted(node) if is_written else []
    return of_operators(ops, target, on_host(node, host, int8))


def on_host(node: ir.Node, host: Host, int8: bool = False) -> float:
    """Seconds on the host: bound by arithmetic, by memory, or by what it does element by element.

    With `int8` the host multiplies normalised rows by int8 weights, a quarter of the bytes.
    """
    operator = operator_of(node)
    if operator.moves == Moves.VIEW:
        return 0.0
    boundary = _at_boundary(node, host)
    if boundary is not None:
        return boundary
    has_int8_weights = int8 and operator.is_linear and is_constant(input_at(node, 1))
    if has_int8_weights:
        moved, rate = _int8_bytes(node), host.int8_macs
    else:
        moved, rate = operator.host_bytes(node), host.macs
    if operator.sequential:
        rate /= host.cores
    busy = max(
        float_macs(node) / rate,
        moved / host.bytes,
        operator.host_scalars(node) / host.scalars,
    )
    return host.operator + busy


def _at_boundary(node: ir.Node, host: Host) -> float | None:
    """What a node of a normalised product takes that is written as quantization
    (compiler/emit/rows.py); None for others."""
    if not node.outputs or not is_static(node.outputs[0]):
        return None
    # Seconds to move a byte for each element.
    pass_of_bytes = element_count(node.outputs[0]) / host.bytes
    if _balances(node):
        return host.operator + (INT8_BYTES + FLOAT_BYTES) * pass_of_bytes
    if node.op_type == "Add" and _balances(node.inputs[0].producer() if node.inputs[0] else None):
        return 0.0  # it is the zero point
    if _divides_rows(node):
        # The scales of the rows, their quantization, and the sum that tells of NaN.
        return 4 * host.operator + (INT8_BYTES + 2 * FLOAT_BYTES) * pass_of_bytes
    return None


def _balances(node: ir.Node | None) -> bool:
    """Whether a node gives the results of the Edge TPU their factors."""
    if node is None or BALANCED not in node.metadata_props:
        return False
    made = producer_of(node.inputs[0])
    return made is not None and made.op_type != "Reshape"


def _divides_rows(node: ir.Node) -> bool:
    """Whether a node divides rows by their peaks for the Edge TPU."""
    if node.op_type != "Div" or produced_by(node.inputs[1], "Max") is None:
        return False
    return all(operator_of(reader).is_linear for reader in consumers_of(node.outputs[0]))


def host_alone(nodes: Iterable[ir.Node], host: Host) -> HostAlone:
    """What the nodes of a model take on the host that were not rewritten for an Edge TPU.

    In int8, each layer quantizes what it reads, and multiplies that by weights of a byte each.
    """
    in_float = 0.0
    in_int8 = 0.0
    for node in nodes:
        seconds = on_host(node, host)
        in_float += seconds
        in_int8 += min(seconds, _layer_in_int8(node, host)) if _is_layer(node) else seconds
    return HostAlone(in_float, in_int8)


def _is_layer(node: ir.Node) -> bool:
    """Whether a node multiplies by constant weights."""
    return is_constant(input_at(node, 1)) and float_macs(node) > 0


def _layer_in_int8(node: ir.Node, host: Host) -> float:
    source = input_at(node, 0)
    assert source is not None
    read = element_count(source)
    quantize = host.operator + read * (FLOAT_BYTES + INT8_BYTES) / host.bytes
    moved = _int8_bytes(node) - read * (FLOAT_BYTES - INT8_BYTES)
    return quantize + host.operator + max(float_macs(node) / host.int8_macs, moved / host.bytes)


def _int8_bytes(node: ir.Node) -> int:
    """Bytes that a layer with int8 weights reads and writes; its activations are float."""
    total = 0
    for value in static_tensors(node):
        total += element_count(value) * (INT8_BYTES if is_constant(value) else FLOAT_BYTES)
    return total


def float_macs(node: ir.Node) -> int:
    """Multiply-accumulates of a node in float; 0 where a shape depends on data."""
    given = [output for output in node.outputs if output.name != ""]
    shaped = [input_at(node, 0), input_at(node, 1), *given[:1]]
    return operator_of(node).macs(node) if all(map(is_static, shaped)) else 0
