"""Gives a cut program its scales: the passes that look at samples, then ranges, then scales."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import onnx_ir as ir

import passes
from compiler.driver import picture
from compiler.driver.options import BuildOptions
from compiler.driver.rewriting import PassDriver, steps_of
from compiler.driver.stages import stage
from compiler.graph import activations_around, consumers_of, quantized_around
from compiler.importer import state as state_pairs
from compiler.ops import Moves, operator_of
from compiler.partition import Program
from compiler.progress import Progress, silent
from compiler.quantize import samples as sampling
from compiler.quantize.calibrate import Ranges, calibrate
from compiler.quantize.carried import carried
from compiler.quantize.products import Product, products
from compiler.quantize.scales import assign
from passes import SampleContext


def quantize(
    program: Program,
    samples: sampling.Samples,
    options: BuildOptions,
    progress: Progress = silent,
    driver: PassDriver | None = None,
) -> Program:
    """Give a scale to every activation that a TPU segment touches, by what samples show."""
    chosen = list(balanced(program).values())
    known = _picture_ranges(program, options)
    context = _sample_context(program, samples, progress, products=chosen, ranges=known)
    return _calibrated(program, context, options, driver)


def _picture_ranges(program: Program, options: BuildOptions) -> Ranges:
    """The range of the picture that goes in, where it is known, for all that only moves it."""
    known = picture.known_range(program.model, options)
    if known is None:
        return {}
    found: Ranges = {}
    waiting = list(program.model.graph.inputs)
    while waiting:
        value = waiting.pop()
        found[str(value.name)] = known
        for reader in consumers_of(value):
            if operator_of(reader).moves >= Moves.ELEMENTS:
                waiting += reader.outputs
    return found


def balanced(program: Program) -> dict[str, Product]:
    """The normalised products on an Edge TPU, by the names of their factors."""
    found = products(program.model.graph)
    return {name: p for name, p in found.items() if p.made in program.made_on_tpu}


def scaled(
    program: Program,
    ranges: Ranges,
    options: BuildOptions,
    driver: PassDriver,
    apart: Collection[ir.Node] = (),
) -> Program:
    """As `quantize`, for a program of which all ranges are known, but for nodes `apart`."""
    context = _sample_context(program, sampling.Samples([]), silent, ranges=dict(ranges))
    context.nodes = [node for node in context.nodes if node not in apart]
    return _calibrated(program, context, options, driver)


def _sample_context(
    program: Program, samples: sampling.Samples, progress: Progress, **known: Any
) -> SampleContext:
    nodes: list[ir.Node] = []
    for segment in program.plan.segments:
        if segment.device == "tpu":
            nodes += segment.nodes
    return SampleContext(
        program.target,
        samples=samples,
        announce=progress,
        nodes=nodes,
        joins=program.joins,
        **known,
    )


def _calibrated(
    program: Program, context: SampleContext, options: BuildOptions, driver: PassDriver | None
) -> Program:
    """Run the passes that look at samples, then choose scales by the ranges that they leave."""
    driver = driver or PassDriver(steps_of(options))
    driver.run(passes.SAMPLE_PASSES, program.model, context)
    scaled = [*context.nodes, *context.joins]
    values = quantized_around(scaled)
    # All of the graph, also what the host computes: layers move there while accuracy is sought.
    options.observers.check([str(value.name) for value in activations_around(program.model.graph)])
    unknown = [value for value in values if str(value.name) not in context.ranges]
    with stage("calibrate"):
        found = calibrate(program.model, unknown, context.stats, context.samples, options.observers)
    with stage("quantize"):
        pairs = carried(program.model.graph, state_pairs.of(program.model), set(values))
        quants = assign(scaled, values, context.ranges | found, pairs)
    return replace(program, quants=quants, means=context.means)
