"""Small graphs to cut, and what a plan promises by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from compiler import importer
from compiler.graph import activations_of, consumers_of
from compiler.partition import Plan
from compiler.targets import Target
from passes import fold_constants
from tests.passes.golden import parsed, weight

# An Edge TPU of two tiles, each for two and a half blocks of 64 outputs and 16 inputs beside the
# activations. What it streams is slow, so that plans are told apart by it.
BLOCK = 64 * 16
ACTIVATIONS = 240
SMALL = replace(
    Target.load(),
    tiles=2,
    tile_bytes=(BLOCK * 5 + ACTIVATIONS) // 2,
    activation_bytes=ACTIVATIONS,
    stream=1e6,
)


def model_of(text: str, weights: dict[str, np.ndarray] | None = None) -> ir.Model:
    model = ir.serde.deserialize_model(parsed(text, weights))
    importer.name_nodes(model.graph)
    fold_constants.infer_shapes(model)
    return model


def chain(widths: Sequence[int], clamped: Sequence[int] = ()) -> ir.Model:
    """Dense layers one behind the other, some of them with a Relu, which is written as a scale."""
    lines, weights, name = [], {}, "x"
    for index, (inputs, outputs) in enumerate(pairwise(widths)):
        weights |= {f"w{index}": weight(outputs, inputs), f"b{index}": weight(outputs)}
        lines.append(f"d{index} = edgetpu.FullyConnected ({name}, w{index}, b{index})")
        name = f"d{index}"
        if index in clamped:
            lines.append(f"r{index} = Relu ({name})")
            name = f"r{index}"
    lines[-1] = lines[-1].replace(f"{name} =", "y =")
    return model_of(
        f"g (float[1,{widths[0]}] x) => (float[1,{widths[-1]}] y) {{ {' '.join(lines)} }}", weights
    )


def check_borders(plan: Plan, graph: ir.Graph) -> None:
    """Every node once, in an order that runs; borders are what crosses them, by definition."""
    order = [node for segment in plan.segments for node in segment.nodes]
    assert sorted(map(id, order)) == sorted(map(id, graph))
    assert [segment.index for segment in plan.segments] == list(range(len(plan.segments)))
    made: set[ir.Value] = set(graph.inputs)
    for segment in plan.segments:
        inside = set(segment.nodes)
        for node in segment.nodes:
            assert set(activations_of(node)) <= made
            made |= set(node.outputs)
        read = {v for node in segment.nodes for v in activations_of(node)}
        assert set(segment.inputs) == {v for v in read if v.producer() not in inside}
        given = {v for node in segment.nodes for v in node.outputs}
        outside = {v for v in given if v.is_graph_output() or set(consumers_of(v)) - inside}
        assert set(segment.outputs) == outside
