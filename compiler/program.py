"""A model on its way: what the stages after partitioning read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import onnx_ir as ir

from compiler import ir as cir
from compiler.partition import Plan
from compiler.quantize.scales import Quant
from compiler.targets import Target


@dataclass(frozen=True)
class Program:
    """A model after all passes, cut into segments; `quants` are filled in by calibration."""

    model: ir.Model
    plan: Plan
    target: Target
    quants: Mapping[str, Quant] = field(default_factory=dict)

    @cached_property
    def made_on_tpu(self) -> set[ir.Value]:
        """Tensors that leave a TPU segment as int8."""
        return {v for s in self.plan.segments if s.device == "tpu" for v in s.outputs}

    @cached_property
    def read_as_int8(self) -> set[ir.Value]:
        """Tensors of the host that only TPU segments read."""
        tpu = {n for s in self.plan.segments if s.device == "tpu" for n in s.nodes}
        crossing = {v for s in self.plan.segments if s.device == "host" for v in s.outputs}
        outputs, others = set(self.model.graph.outputs), set()
        for node in self.model.graph:
            if node not in tpu:
                others.update(cir.reads(node))
        return {v for v in crossing - outputs - others if str(v.name) in self.quants}
