"""Feed-forward blocks of a language model, fused, each as a program of its own.

A block is calibrated on what the float model feeds it, and a whole program takes its weights and
scales over. Ranges hold all that calibration shows: those of the least squared error halve what
some blocks cost on text like that of calibration, and cost more on other text (SmolLM2, 22 blocks:
divergence 0.025 instead of 0.018 on Debian's fortunes).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import onnx_ir as ir

from compiler.driver import build as building
from compiler.driver import quantizing
from compiler.driver.chain import FloatChain
from compiler.driver.fused import Fusing, fused_nodes
from compiler.driver.options import BuildOptions
from compiler.driver.rewriting import PassDriver
from compiler.frontends import Source
from compiler.frontends.decoder import ProgramShape
from compiler.frontends.decoder_parts import STREAM, write_feed_forward
from compiler.graph import ROWS, is_constant
from compiler.partition import Program
from compiler.quantize.products import products
from compiler.quantize.samples import Sample, Samples
from passes import Steps

# Tokens of a row that are looked at, and rows to calibrate on: of more rows, ranges get wider.
LENGTH = 256
CALIBRATED = 8


@dataclass(frozen=True)
class Blocks:
    """The blocks of `source`, calibrated on the first of `rows` [tokens]."""

    source: Source
    options: BuildOptions
    rows: Sequence[np.ndarray]
    _made: dict[int, Program] = field(default_factory=dict)

    @property
    def length(self) -> int:
        return min(LENGTH, *(len(row) for row in self.rows))

    def program(self, layer: int) -> Program:
        """The feed-forward part of a layer, quantized, and fused where that is possible."""
        if layer not in self._made:
            self._made[layer] = self._quantized(layer)
        return self._made[layer]

    def give(self, layer: int, program: Program) -> Program:
        """A program whose fused block of a layer has the weights and scales of the one here."""
        block = self.program(layer)
        graph = program.model.graph
        nodes = {str(node.outputs[0].name): node for node in graph}
        for node in fused_nodes(block, layer):
            _take_constants(graph, nodes[str(node.outputs[0].name)], node)
        own = products(graph)
        for name, product in products(block.model.graph).items():
            if product.has_unit_rows:
                continue
            factors, offsets = product.factors.const_value, product.offsets.const_value
            assert factors is not None and offsets is not None
            own[name].set(factors, offsets)
        quants = {**program.quants, **block.quants}
        return replace(program, quants=quants, means={**program.means, **block.means})

    def _quantized(self, layer: int) -> Program:
        fusing = Fusing(frozenset([layer]))
        shape = ProgramShape(1, self.length, self.length)
        model = write_feed_forward(self.source, fusing.shape(shape), layer)
        driver = PassDriver(fusing.steps(Steps(self.options.without)))
        partitioning = replace(self.options.partitioning, place="auto", cuts=(), pins={})
        alone = fusing.partitioning(partitioning, host_alone=True)
        options = replace(self.options, partitioning=alone)
        program = building.plan_program(model, options, driver=driver)
        samples = Samples([_feeding(streams[layer]) for streams in self._streams])
        return quantizing.quantize(program, samples, options, driver=driver)

    @cached_property
    def _streams(self) -> list[list[np.ndarray]]:
        """By row and layer, what the float model feeds the blocks."""
        with FloatChain(self.source, self.length) as chain:
            return [chain.run(row).streams for row in self.rows[:CALIBRATED]]


def _feeding(stream: np.ndarray) -> Callable[[], Sample]:
    return lambda: {STREAM: stream}


def _take_constants(graph: ir.Graph, node: ir.Node, giver: ir.Node) -> None:
    """Give a node the constants of another one."""
    for index, value in enumerate(giver.inputs):
        if value is None or not is_constant(value):
            continue
        name = f"{node.name}/given/{index}"
        taken = ir.Value(
            name=name, type=value.type, shape=value.shape, const_value=value.const_value
        )
        if ROWS in value.meta:
            taken.meta[ROWS] = value.meta[ROWS]
        graph.register_initializer(taken)
        node.replace_input_with(index, taken)
