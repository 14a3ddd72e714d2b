"""Makes the programs of a language model: planned, and with their scales.

All have the weights in common, as numbers and as bytes in the bundle: factors and offsets of
normalised products (compiler/quantize/balance.py) are chosen for prefill and taken over by the
others. Each program is placed by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import onnx_ir as ir

from compiler.driver import build as building
from compiler.driver import decoding, quantizing
from compiler.driver.blocks import Blocks
from compiler.driver.fused import NOT_FUSED, PARTS, Fusing, fused_nodes
from compiler.driver.options import BuildOptions, LanguageOptions
from compiler.driver.rewriting import PassDriver
from compiler.frontends import Source, decoder
from compiler.frontends.decoder import ProgramShape, sample
from compiler.partition import PartitionOptions, Plan, Program
from compiler.progress import Progress, silent
from compiler.quantize.balance import known
from compiler.quantize.products import Product, products
from compiler.quantize.samples import Samples
from compiler.targets import Target
from passes import BALANCE, SampleContext

MEGABYTE = 1 << 20


def program_shapes(options: LanguageOptions, fusing: Fusing = NOT_FUSED) -> dict[str, ProgramShape]:
    """The programs by name."""
    # Prefill pads its last chunk, so the cache has so many places more.
    places = options.context + options.chunk
    shapes = {
        "prefill": fusing.shape(ProgramShape(1, options.chunk, places)),
        "decode": ProgramShape(1, 1, places),
    }
    if options.slots > 1:
        shapes["batch"] = ProgramShape(options.slots, 1, places)
    return shapes


def parts_of(options: LanguageOptions) -> tuple[int, ...]:
    """In how many parts a chunk may be run."""
    # Weights that are loaded in turns leave no room for two parts at once.
    is_whole = options.max_ram is not None or options.chunk < 4
    return tuple(n for n in PARTS if n == 1 or not (is_whole or options.chunk % n))


@dataclass(frozen=True)
class Maker:
    """What programs are made from; `calibration` are rows of tokens [tokens]."""

    source: Source
    options: BuildOptions
    calibration: Sequence[np.ndarray]
    driver: PassDriver
    progress: Progress = silent

    def programs(
        self, fusing: Fusing = NOT_FUSED, shapes: Mapping[str, ProgramShape] | None = None
    ) -> dict[str, Program]:
        """The programs, with scales from what the float model shows on the calibration rows.

        `shapes` are by name, and have a prefill; by default those of `program_shapes`.
        """
        shapes = shapes or program_shapes(self.options.language, fusing)
        planned = {}
        written = {}
        blocked = decoding.precision(self.options)
        cut = replace(self.options, partitioning=_partitioning(self.options))
        for name, shape in shapes.items():
            if blocked is not None and shape.tokens == 1:
                # Nothing of it is int8, so that there is nothing to rewrite or to calibrate.
                written[name] = decoding.program(self.source, shape, blocked, cut)
                continue
            own = fusing if name == "prefill" else NOT_FUSED
            planned[name] = self._planned(shape, own)
        balanced = self._balanced(planned, shapes["prefill"])
        quantized = {}
        for name, program in planned.items():
            own_products = products(program.model.graph)
            for product_name, product in balanced.items():
                _copy_factors(product, own_products[product_name])
            ranges = known([own_products[product] for product in balanced])
            layers = sorted(fusing.layers) if name == "prefill" else []
            apart: set[ir.Node] = set()
            for layer in layers:
                apart.update(fused_nodes(program, layer))
            made = quantizing.scaled(program, ranges, self.options, self.driver, apart)
            for layer in layers:
                made = self.blocks.give(layer, made)
            quantized[name] = made
        return quantized | written

    def plan(self, fusing: Fusing) -> Plan:
        """The plan of prefill."""
        if fusing == NOT_FUSED:
            return self._plain_plan
        return self._planned(program_shapes(self.options.language, fusing)["prefill"], fusing).plan

    @cached_property
    def blocks(self) -> Blocks:
        """Its feed-forward blocks, fused, each calibrated by itself."""
        return Blocks(self.source, self.options, self.calibration)

    @cached_property
    def _plain_plan(self) -> Plan:
        """The plan of prefill without fused blocks."""
        return self._planned(program_shapes(self.options.language)["prefill"], NOT_FUSED).plan

    @cached_property
    def _is_host_alone(self) -> bool:
        """Whether prefill is on the host without fused blocks."""
        return all(segment.tpu is None for segment in self._plain_plan.segments)

    def with_all_logits(self, fusing: Fusing, tokens: int) -> Program:
        """Prefill of a chunk of so many tokens, in one part, that gives the logits of each."""
        shape = ProgramShape(1, tokens, tokens, all_logits=True)
        whole = replace(fusing, parts=1)
        return self.programs(whole, {"prefill": whole.shape(shape)})["prefill"]

    def _planned(self, shape: ProgramShape, fusing: Fusing) -> Program:
        """A program where it is fastest."""
        partitioning = _partitioning(self.options)
        if fusing.layers:
            partitioning = fusing.partitioning(partitioning, self._is_host_alone)
        options = replace(self.options, partitioning=partitioning)
        driver = replace(self.driver, steps=fusing.steps(self.driver.steps))
        model = decoder.write(self.source, shape)
        return building.plan_program(model, options, self.progress, driver)

    def _balanced(self, programs: Mapping[str, Program], shape: ProgramShape) -> dict[str, Product]:
        """The normalised products that an Edge TPU runs in any of the programs, by name, with
        factors and offsets by what the float model shows."""
        wanted: set[str] = set()
        for program in programs.values():
            found = quantizing.balanced(program)
            wanted |= {name for name, product in found.items() if product.has_unit_rows}
        if not wanted:
            return {}
        # Prefill gives logits of the last token only, and fused blocks take all tokens but the
        # first. The head and the other products are balanced by the rows of all tokens.
        shape = replace(shape, all_logits=True, fused=frozenset())
        model: ir.Model = decoder.write(self.source, shape)
        building.rewrite(model, self.options, driver=self.driver)
        found = products(model.graph)
        chosen = {name: found[name] for name in sorted(wanted)}
        context = SampleContext(
            Target.load(self.options.target),
            samples=Samples([partial(sample, model.graph, row, shape) for row in self.calibration]),
            announce=self.progress,
            products=list(chosen.values()),
        )
        self.driver.apply(BALANCE, model, context)
        return chosen


def _partitioning(options: BuildOptions) -> PartitionOptions:
    """How programs are cut: the host multiplies in int8, has a program by itself that it is as fast
    in, and its segments fit an eighth of half the memory (`LanguageOptions.max_ram`)."""
    limit = options.language.max_ram
    host_bytes = None if limit is None else limit * MEGABYTE // 16
    return replace(options.partitioning, host_int8=True, host_bytes=host_bytes, needs_tpu=False)


def _copy_factors(source: Product, product: Product) -> None:
    factors, offsets = source.factors.const_value, source.offsets.const_value
    assert factors is not None and offsets is not None
    product.set(factors, offsets)
