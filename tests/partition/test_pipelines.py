"""Plans of known networks on more and more Edge TPUs: what a little more pace may cost."""

from __future__ import annotations

from itertools import pairwise

import onnx_ir as ir
import pytest

from compiler.driver import build as building
from compiler.driver.options import BuildOptions
from compiler.partition import PartitionOptions, Plan, partition
from compiler.planner import Objective
from compiler.targets import Target
from fixtures import networks

TPUS = range(3, 7)


@pytest.fixture(scope="module", params=["resnet50", "densenet121"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ir.Model:
    path = networks.generate(request.param, tmp_path_factory.mktemp("network"))
    options = BuildOptions()
    return building.rewrite(building.read(path, options), options)


def planned(model: ir.Model, tpus: int, objective: Objective) -> Plan:
    return partition(model, Target.load(), PartitionOptions(tpus, objective))


def plans(model: ir.Model, objective: Objective) -> list[Plan]:
    return [planned(model, tpus, objective) for tpus in TPUS]


def best_interval(plan: Plan) -> float:
    assert plan.gap is not None
    return plan.interval * (1 - plan.gap)


def test_a_little_more_pace_costs_nothing(model: ir.Model) -> None:
    """Within 1% of the best pace, the plan of fewer Edge TPUs is taken if its latency is less."""
    found = plans(model, "throughput")
    for fewer, more in pairwise(found):
        assert best_interval(more) <= best_interval(fewer) * (1 + 1e-9)
        assert more.interval <= 1.01 * best_interval(more) * (1 + 1e-6)
        if fewer.interval <= 1.01 * best_interval(more):
            assert more.latency <= fewer.latency * (1 + 1e-9)


def test_more_edge_tpus_never_make_an_inference_slower(model: ir.Model) -> None:
    found = plans(model, "latency")
    for fewer, more in pairwise(found):
        assert more.latency <= fewer.latency * (1 + 1e-9)
    # Little of these networks could run at once, so that plans are near to what none can undercut.
    assert all(plan.gap is not None and plan.gap < 0.25 for plan in found)
