"""How much each TPU segment contributes to the error at the end, and which to keep in float for a
budget.

A segment's own error on float inputs is added to its outputs in the float model; what that does to
the model's outputs is its contribution. One model with a noise input behind each segment serves for
all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import onnx_ir as ir

from compiler.checks.difference import Difference
from compiler.graph import all_activations, origin_of, shape_of
from compiler.graph.reference import Reference
from compiler.partition import Program
from compiler.quantize.samples import Sample
from compiler.runtime import Bundle, Pipeline
from compiler.runtime.conversion import convert


def shares(
    bundle: Bundle,
    program: Program,
    samples: Iterable[Sample],
    progress: Callable[[], None] = lambda: None,
) -> dict[int, float]:
    """The share of each TPU segment in the noise of the model's float outputs, relative to how much
    these vary."""
    segments = [s for s in program.plan.segments if s.device == "tpu"]
    outputs = {s.index: [str(v.name) for v in s.outputs] for s in segments}
    noisy = [v for s in segments for v in s.outputs]
    boundaries = {
        str(v.name): v for s in segments for v in [*s.inputs, *s.outputs] if not v.is_graph_input()
    }
    silent = {f"{v.name}/noise": np.zeros(shape_of(v), np.float32) for v in noisy}
    ends = [str(v.name) for v in program.model.graph.outputs if v.dtype == ir.DataType.FLOAT]
    pipeline = Pipeline(bundle)
    differences = {index: {name: Difference() for name in ends} for index in outputs}
    with Reference(*_injected(program.model, noisy, boundaries)) as reference:
        for sample in samples:
            clean = reference.run(
                {**sample, **silent}, [*ends, *(n for n in boundaries if n not in ends)]
            )
            floats = {**sample, **clean}
            for index, names in outputs.items():
                entries = {t["name"]: t for t in pipeline.segments[index]["outputs"]}
                alone = pipeline.run_segment(index, floats)
                noise = {
                    f"{n}/noise": convert(alone[n], {**entries[n], "dtype": "float32"}) - floats[n]
                    for n in names
                }
                disturbed = reference.run({**sample, **silent, **noise}, ends)
                for name, difference in differences[index].items():
                    difference.add(disturbed[name], clean[name])
            progress()
    found = {
        index: sum(d.relative_noise for d in by_end.values())
        for index, by_end in differences.items()
    }
    total = sum(found.values()) or 1.0
    return {index: round(noise / total, 4) for index, noise in found.items()}


def _injected(
    model: ir.Model, noisy: Iterable[ir.Value], boundaries: Mapping[str, ir.Value]
) -> tuple[ir.Model, list[ir.Value]]:
    """(a copy in which an input `X/noise` is added to each value X, its values of the names in
    `borders`)."""
    copy = model.clone()
    graph = copy.graph
    values = {str(v.name): v for v in all_activations(graph)}
    for name in (str(v.name) for v in noisy):
        value = values[name]
        producer = value.producer()
        assert producer is not None
        noise = ir.Value(name=f"{name}/noise", shape=value.shape, type=value.type)
        graph.inputs.append(noise)
        node = ir.node("Add", [value, noise], num_outputs=1, name=f"{name}/noisy")
        (result,) = node.outputs
        result.name, result.shape, result.type = name, value.shape, value.type
        ir.convenience.replace_all_uses_with(value, result, replace_graph_outputs=True)
        node.replace_input_with(0, value)
        value.name = f"{name}/clean"
        graph.insert_after(producer, node)
        values[name] = result
    return copy, [values[name] for name in boundaries]


def kept_in_float(program: Program, contributions: Mapping[int, float], budget: float) -> list[str]:
    """Names of nodes to keep on the host: of the segments that contribute most for their
    arithmetic, as many as have up to a share `budget` of the Edge TPU's multiply-accumulates."""
    segments = [s for s in program.plan.segments if s.device == "tpu" and s.macs]
    room = budget * sum(s.macs for s in segments)
    names: list[str] = []
    for segment in sorted(segments, key=lambda s: -contributions[s.index] / s.macs):
        if segment.macs <= room and contributions[segment.index] > 0:
            room -= segment.macs
            names += [origin_of(n) for n in segment.nodes]
    return list(dict.fromkeys(names))
