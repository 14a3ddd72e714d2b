"""What a node costs on an Edge TPU and on the host: seconds and bytes, predicted.

segment = invoke + operators * operator + compute * slowdown + bytes in / down + bytes out / up +
streamed / stream

Figures and their sources stand in compiler/targets/*.toml; benchmarks/fit_cost.py fits them to
public latencies and tells how far predictions are off for networks that the fit did not see.
Nothing here has run on an Edge TPU of ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from compiler.device.legality import drafted
from compiler.graph import (
    DIALECT,
    attribute_of,
    element_count,
    input_at,
    is_constant,
    is_static,
    only_consumer,
    shape_of,
    values_read,
)
from compiler.ops import BUILTINS
from compiler.ops.rules import OpInfo
from compiler.targets import Host, Layer, Target, stored_bytes


@dataclass(frozen=True)
class Parameters:
    """A layer as it is cached or streamed: bytes on the device, seconds where they are sent at each
    invocation."""

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
    seconds, macs, most, parameters = 0.0, 0, 0, []
    for op in ops:
        builtin = BUILTINS.get(op.builtin)
        if builtin is None:
            continue
        work, layer = builtin.work(op, target), builtin.layer(op)
        seconds += (
            work.amount / getattr(target, work.kind) / target.clock * target.slowdown
            + target.operator
        )
        macs += work.macs
        live = sum(t.elements for t in op.activations)
        most = max(most, live)
        if layer is not None:
            size = stored_bytes(layer, target)
            parameters.append(
                Parameters(layer, size, size / target.stream * max(1.0, live / target.pass_bytes))
            )
    return Cost(seconds, host, macs, most, tuple(parameters))


def of_node(node: ir.Node, target: Target, host: Host, legal: bool, int8: bool = False) -> Cost:
    """The cost of a node of the lowered graph; on the Edge TPU only where that takes it (`legal`).

    `int8` tells that the host has int8 weights for normalised products.
    """
    ops = drafted(node) if legal and not _is_fused(node) else []
    return of_operators(ops, target, on_host(node, host, int8))


def _is_fused(node: ir.Node) -> bool:
    """A clamp that alone reads its input is written as that input's scale."""
    return node.op_type in ("Relu", "Clip") and only_consumer(node.inputs[0]) is node  # type: ignore[arg-type]


def on_host(node: ir.Node, host: Host, int8: bool = False) -> float:
    """Seconds on the host: bound by arithmetic or by memory. int8 weights are a quarter of the
    bytes to read; that they multiply no slower than float is assumed."""
    if node.op_type in ("Reshape", "Identity"):
        return 0.0
    values = [v for v in [*values_read(node), *node.outputs] if is_static(v)]
    if node.op_type == "GroupQueryAttention":
        # The cache is written in place, and read as far as it is filled: half, on average.
        cache = sum(
            element_count(v) for v in values if v.is_graph_input() and len(shape_of(v)) == 4
        )
        moved = 2 * cache + 4 * sum(element_count(v) for v in values if len(shape_of(v)) < 4)
    elif int8 and node.domain == DIALECT and is_constant(input_at(node, 1)):
        moved = sum(element_count(v) * (1 if is_constant(v) else 4) for v in values)
    elif node.op_type == "Gather":
        moved = 8 * element_count(node.outputs[0])
    else:
        moved = 4 * sum(map(element_count, values))
    return host.operator + max(float_macs(node) / host.macs, moved / host.bytes)


def float_macs(node: ir.Node) -> int:
    """Multiply-accumulates of a node in float."""
    values = [node.inputs[0], input_at(node, 1), node.outputs[0]] if node.inputs else []
    if len(values) < 3 or values[1] is None or not all(is_static(v) for v in values):
        return 0
    x, w, y = (shape_of(v) for v in values)
    match node.op_type:
        case "Conv" | "Conv2D" | "DepthwiseConv2D":
            return math.prod(y) // w[0] * math.prod(w)
        case "ConvTranspose" | "TransposeConv2D":
            return math.prod(x) // x[-1 if node.domain else 1] * math.prod(w)
        case "MatMul" | "Gemm" | "FullyConnected":
            return math.prod(y) * (x[0] if attribute_of(node, "transA", 0) else x[-1])
        case "Attention":
            return 2 * math.prod(y) * w[-2]
        case "GroupQueryAttention":
            return (
                math.prod(y) * shape_of(node.inputs[3])[2]
            )  # of twice the cache's places, half are filled
    return 0
