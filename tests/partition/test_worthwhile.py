"""Where the prediction decides: an Edge TPU is used, but not for little, and not by many transfers
for a little more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from compiler.device.cost import host_alone
from compiler.driver import build as building
from compiler.driver.options import BuildOptions
from compiler.partition import PartitionOptions, Plan, partition
from compiler.targets import Host, Target
from tests.conftest import save, small_network
from tests.partition.graphs import chain, check_borders, model_of

TARGET = Target.load()
AUTO = PartitionOptions(place="auto")


def on_tpu(plan: Plan) -> list[list[str]]:
    return [[n.op_type for n in s.nodes] for s in plan.segments if s.device == "tpu"]


def test_an_edge_tpu_gets_something_unless_nobody_needs_that() -> None:
    """A layer that the host computes in a tenth of the time of an invocation."""
    model = chain([16, 16])
    assert on_tpu(partition(model, TARGET, AUTO)) == [["FullyConnected"]]
    plan = partition(model, TARGET, PartitionOptions(place="auto", needs_tpu=False))
    assert on_tpu(plan) == []
    # No solver looked for the best of the plans that use an Edge TPU.
    assert partition(model, TARGET, AUTO).gap is None and plan.gap == pytest.approx(0, abs=1e-6)


def convolutions(count: int, between: str) -> ir.Model:
    """Convolutions with an operator between each two that the host has to run on a few numbers."""
    lines, weights, name = [], {}, "x"
    for index in range(count):
        weights |= {f"w{index}": np.ones((64, 64, 3, 3), np.float32), f"b{index}": np.ones(64)}
        weights[f"b{index}"] = weights[f"b{index}"].astype(np.float32)
        lines.append(
            f"c{index} = edgetpu.Conv2D <pads = [1, 1, 1, 1], strides = [1, 1],"
            f" dilations = [1, 1]> ({name}, w{index}, b{index})"
        )
        name = f"c{index}"
        if index < count - 1:
            lines.append(f"h{index} = {between} ({name})")
            name = f"h{index}"
    lines[-1] = lines[-1].replace(f"{name} =", "y =")
    body = " ".join(lines)
    return model_of(f"g (float[1,32,32,64] x) => (float[1,32,32,64] y) {{ {body} }}", weights)


def test_what_pays_is_the_fastest_plan() -> None:
    model = convolutions(3, "Relu")
    plan = partition(model, TARGET, AUTO)
    check_borders(plan, model.graph)
    assert len(on_tpu(plan)) == 1 and plan.gap == pytest.approx(0, abs=1e-6)
    assert plan.latency < host_alone(model.graph, Host.load("pi5")).in_float


@pytest.mark.parametrize("between", ["Erf", "Relu"])
def test_no_plan_is_slower_than_giving_everything_to_the_edge_tpu(between: str) -> None:
    model = convolutions(3, between)
    everything = partition(model, TARGET, PartitionOptions(place="tpu"))
    plan = partition(model, TARGET, AUTO)
    assert plan.latency <= 1.05 * everything.latency
    assert len(on_tpu(plan)) <= len(on_tpu(everything))


def test_the_host_alone_carries_nothing_of_the_edge_tpus(tmp_path: Path) -> None:
    """The prediction that stands beside a plan is that of the plan with --place host."""
    path = save(tmp_path / "small.onnx", small_network())
    program = building.plan_program(building.read(path, BuildOptions()), BuildOptions())
    alone = BuildOptions(partitioning=PartitionOptions(place="host"))
    plain = building.plan_program(building.read(path, alone), alone)
    assert program.alone is not None and plain.alone is not None
    assert program.alone.in_float == pytest.approx(plain.plan.latency)
    assert program.alone.in_int8 <= program.alone.in_float
    kinds = {node.domain for node in plain.model.graph}
    assert "edgetpu" not in kinds
