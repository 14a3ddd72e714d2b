"""Scales and zero points of activations, under what TFLite's specification asks of the operators around them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import networkx as nx
import numpy as np
import onnx_ir as ir

from compiler import ir as cir
from compiler.ops import Scales, lookup
from compiler.quantize.calibrate import Ranges
from compiler.runtime import pipeline


@dataclass(frozen=True)
class Quant:
    """real = scale * (int8 - zero_point)."""

    scale: float
    zero_point: int

    def quantize(self, array: np.ndarray) -> np.ndarray:
        return pipeline.quantize(array, self.scale, self.zero_point)

    def dequantize(self, array: np.ndarray) -> np.ndarray:
        return pipeline.dequantize(array, self.scale, self.zero_point)


def from_range(low: float, high: float) -> Quant:
    """The asymmetric int8 scale that holds [low, high] and zero exactly."""
    low, high = min(low, 0.0), max(high, 0.0)
    if high == low:
        return Quant(1.0, 0)
    scale = float(np.float32(max((high - low) / 255, float(np.finfo(np.float32).tiny))))
    return Quant(scale, int(np.clip(round(-128 - low / scale), -128, 127)))


def constraints(nodes: Iterable[ir.Node]) -> list[tuple[ir.Node, Scales]]:
    """What the operators ask. A clamp that is absorbed by its input's scale is so only where that scale is free."""
    found: dict[ir.Node, Scales] = {}
    for node in nodes:
        operator = lookup(node)
        assert operator is not None
        found[node] = operator.scales(node)
    bound = {v for scales in found.values() if scales.range_of is None for v in (*scales.same, *scales.fixed)}
    return [(node, _settled(node, scales, bound)) for node, scales in found.items()]


def _settled(node: ir.Node, scales: Scales, bound: set[ir.Value]) -> Scales:
    if scales.range_of is None or not any(v in bound for v in scales.same if v is not scales.range_of):
        return scales
    return Scales() if cir.key(node) == ("", "Relu") else Scales(scales.same)


def separate(model: ir.Model, nodes: Iterable[ir.Node]) -> None:
    """Insert Requantize where operators that share a scale would tie together scales that are fixed and differ."""
    asked = constraints(nodes)
    groups = _groups(asked)
    fixed = [(v, q) for _, scales in asked for v, q in scales.fixed.items()]
    names = cir.Names(model.graph)
    for node, scales in asked:
        if not scales.same or node.op_type == "FakeQuantize":
            continue
        inputs = cir.activations(node)
        found = {q for v, q in fixed if groups[v] == groups[scales.same[0]]}
        if not found or (len(found) == 1 and len(inputs) == 1):
            continue
        b = cir.Builder(model, names, node)
        for index, value in enumerate(node.inputs):
            if value is not None and not cir.is_const(value):
                node.replace_input_with(index, b.op("Requantize", [value], domain=cir.DIALECT))


def _groups(asked: Iterable[tuple[ir.Node, Scales]]) -> dict[ir.Value, int]:
    graph: nx.Graph = nx.Graph()
    for _, scales in asked:
        graph.add_nodes_from([*scales.same, *scales.fixed])
        graph.add_edges_from((scales.same[0], v) for v in scales.same[1:])
    return {v: i for i, members in enumerate(nx.connected_components(graph)) for v in members}


def assign(nodes: Iterable[ir.Node], values: Iterable[ir.Value], ranges: Ranges) -> dict[str, Quant]:
    """A scale for each of `values`, which are all activations of the TPU nodes `nodes`."""
    asked = constraints(nodes)
    groups = _groups(asked)
    silent = {v for _, s in asked if s.range_of is not None for v in s.same if v is not s.range_of}
    fixed: dict[int, Quant] = {}
    for _, scales in asked:
        for value, (scale, zero_point) in scales.fixed.items():
            fixed[groups[value]] = Quant(scale, zero_point)
    shared: dict[int, tuple[float, float]] = {}
    for value in values:
        if value in groups and value not in silent:
            low, high = ranges[str(value.name)]
            before = shared.get(groups[value], (low, high))
            shared[groups[value]] = (min(before[0], low), max(before[1], high))
    return {str(v.name): _quant(v, groups, fixed, shared, ranges) for v in values}


def _quant(
    value: ir.Value,
    groups: Mapping[ir.Value, int],
    fixed: Mapping[int, Quant],
    shared: Mapping[int, tuple[float, float]],
    ranges: Ranges,
) -> Quant:
    group = groups.get(value)
    if group is None:
        return from_range(*ranges[str(value.name)])
    return fixed.get(group) or from_range(*shared[group])
