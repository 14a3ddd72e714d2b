"""A model on its way: what the stages after partitioning read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import onnx_ir as ir

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
