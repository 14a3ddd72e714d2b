"""A model on its way: what the stages after partitioning read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain

import numpy as np
import onnx_ir as ir

from compiler.device.cost import HostAlone
from compiler.graph import OPSET, activations_of, consumers_of, values_read
from compiler.ops import Moves, operator_of
from compiler.partition.plan import Plan
from compiler.quant import Quant
from compiler.targets import Target


@dataclass(frozen=True)
class Program:
    """A model after all passes, cut into segments. Calibration fills in `quants`, and `means`: of
    each channel of an activation, by name. `alone` is what the model takes on the host and nothing
    else; None where nobody asked."""

    model: ir.Model
    plan: Plan
    target: Target
    alone: HostAlone | None = None
    quants: Mapping[str, Quant] = field(default_factory=dict)
    means: Mapping[str, np.ndarray] = field(default_factory=dict)

    @cached_property
    def made_on_tpu(self) -> set[ir.Value]:
        """Tensors that leave a TPU segment as int8."""
        return set(chain.from_iterable(s.outputs for s in self.plan.segments if s.device == "tpu"))

    @cached_property
    def joins(self) -> list[ir.Node]:
        """Nodes of the host that only pass on what Edge TPUs make and only Edge TPUs read, such as
        a Concat of tiles. They keep the scales that they would have there, so that nothing is
        rounded twice."""
        found: dict[ir.Node, None] = {}
        for segment in self.plan.segments:
            if segment.device == "host":
                found |= dict.fromkeys(filter(_passes_on, segment.nodes))
        outputs = set(self.model.graph.outputs)
        on_tpu = set(chain.from_iterable(s.nodes for s in self.plan.segments if s.tpu is not None))
        changed = True
        while changed:
            changed = False
            for node in list(found):
                inside = {*on_tpu, *found}
                made = all(value.producer() in inside for value in activations_of(node))
                read = all(inside.issuperset(consumers_of(value)) for value in node.outputs)
                if not made or not read or outputs.intersection(node.outputs):
                    del found[node]
                    changed = True
        return list(found)

    @property
    def int8_boundaries(self) -> bool:
        """Whether host segments quantize by themselves; onnxruntime lacks QuantizeLinear of the
        newest opsets."""
        return self.model.graph.opset_imports.get("", OPSET) <= OPSET

    @cached_property
    def dequantized_inside(self) -> set[ir.Value]:
        """Tensors of the Edge TPU that host segments take as int8."""
        return self.made_on_tpu if self.int8_boundaries else set()

    @cached_property
    def quantized_inside(self) -> set[ir.Value]:
        """Tensors of host segments that only TPU segments read, so that they leave as int8."""
        if not self.int8_boundaries:
            return set()
        on_tpu = [s for s in self.plan.segments if s.device == "tpu"]
        on_host = [s for s in self.plan.segments if s.device == "host"]
        tpu = set(chain.from_iterable(s.nodes for s in on_tpu))
        crossing = set(chain.from_iterable(s.outputs for s in on_host))
        outputs, others = set(self.model.graph.outputs), set()
        for node in self.model.graph:
            if node not in tpu:
                others.update(values_read(node))
        return {v for v in crossing - outputs - others if str(v.name) in self.quants}


def _passes_on(node: ir.Node) -> bool:
    operator = operator_of(node)
    return operator.moves >= Moves.VALUES or operator.absorbed(node)
