"""How much each TPU segment contributes to the error of a bundle's results, and which segments to
keep in float for a budget.

A segment's own error on float inputs is added to its outputs in the float model; what that does to
the model's outputs is its contribution. One model with a noise input behind each segment serves for
all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compiler.checks.difference import Difference
from compiler.checks.segments import boundary_values, outputs_in_float, tpu_segments
from compiler.graph import all_activations, origin_of, shape_of
from compiler.graph.reference import Reference
from compiler.partition import Program
from compiler.quantize.samples import Sample
from compiler.runtime import Bundle, Pipeline


def shares(
    bundle: Bundle,
    program: Program,
    samples: Iterable[Sample],
    progress: Callable[[], None] = lambda: None,
) -> dict[int, float]:
    """The share of each TPU segment, by index, in the noise of the model's float outputs, relative
    to how much these vary. `progress` is called after each sample."""
    segments = tpu_segments(program)
    boundaries = boundary_values(segments)
    ends = [str(v.name) for v in program.model.graph.outputs if v.dtype == ir.DataType.FLOAT]
    watched = [*ends, *(name for name in boundaries if name not in ends)]
    noisy_values: list[ir.Value] = []
    differences: dict[int, dict[str, Difference]] = {}
    for segment in segments:
        noisy_values += segment.outputs
        differences[segment.index] = {name: Difference() for name in ends}
    noisy = _with_noise(program.model, noisy_values, boundaries)
    pipeline = Pipeline(bundle)
    with Reference(noisy.model, noisy.values) as reference:
        for sample in samples:
            clean = reference.run({**sample, **noisy.silence}, watched)
            floats = {**sample, **clean}
            for index, by_end in differences.items():
                alone = pipeline.run_segment(index, floats)
                noise = {}
                for name, array in outputs_in_float(pipeline.segments[index], alone).items():
                    noise[_noise_name(name)] = array - floats[name]
                disturbed = reference.run({**sample, **noisy.silence, **noise}, ends)
                for name, difference in by_end.items():
                    difference.add(disturbed[name], clean[name])
            progress()
    return _normalised(differences)


def kept_in_float(program: Program, contributions: Mapping[int, float], budget: float) -> list[str]:
    """Names of source nodes to keep on the host.

    They are those of the segments that contribute most error per multiply-accumulate, as many
    segments as have up to a share `budget` of the Edge TPU's multiply-accumulates.
    """
    segments = [segment for segment in tpu_segments(program) if segment.macs]
    room = budget * sum(segment.macs for segment in segments)
    segments.sort(key=lambda segment: -contributions[segment.index] / segment.macs)
    names: dict[str, None] = {}
    for segment in segments:
        if segment.macs <= room and contributions[segment.index] > 0:
            room -= segment.macs
            names |= dict.fromkeys(origin_of(node) for node in segment.nodes)
    return list(names)


def _normalised(differences: Mapping[int, Mapping[str, Difference]]) -> dict[int, float]:
    """Shares of all noise that add up to 1, or to 0 where there is none."""
    noise = {}
    for index, by_end in differences.items():
        noise[index] = sum(difference.relative_noise for difference in by_end.values())
    total = sum(noise.values()) or 1.0
    return {index: round(value / total, 4) for index, value in noise.items()}


@dataclass(frozen=True)
class _NoisyModel:
    """A copy of a model with an input of noise behind some values.

    `values` are the copies of those that were asked for; `silence` are inputs of no noise.
    """

    model: ir.Model
    values: list[ir.Value]
    silence: Sample


def _noise_name(name: str) -> str:
    return f"{name}/noise"


def _with_noise(
    model: ir.Model, noisy: Iterable[ir.Value], watched: Mapping[str, ir.Value]
) -> _NoisyModel:
    """A copy in which an input is added to each value in `noisy`."""
    copy = model.clone()
    values = {str(value.name): value for value in all_activations(copy.graph)}
    silence = {}
    for original in noisy:
        name = str(original.name)
        values[name] = _add_noise(copy.graph, values[name])
        silence[_noise_name(name)] = np.zeros(shape_of(original), np.float32)
    return _NoisyModel(copy, [values[name] for name in watched], silence)


def _add_noise(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """Add an input to a value for all its readers; the sum takes over the value's name."""
    producer = value.producer()
    assert producer is not None
    name = str(value.name)
    noise = ir.Value(name=_noise_name(name), shape=value.shape, type=value.type)
    graph.inputs.append(noise)
    node = ir.node("Add", [value, noise], num_outputs=1, name=f"{name}/noisy")
    (result,) = node.outputs
    result.name = name
    result.shape = value.shape
    result.type = value.type
    ir.convenience.replace_all_uses_with(value, result, replace_graph_outputs=True)
    # The new node was a reader of the value too.
    node.replace_input_with(0, value)
    value.name = f"{name}/clean"
    graph.insert_after(producer, node)
    return result
