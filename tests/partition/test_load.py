"""Plans for requests that come at a rate, and the host's slots."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir
import pytest

from compiler.errors import OptionError
from compiler.partition import PartitionOptions, partition, partition_for_all
from compiler.partition.load import p95, repeated
from compiler.targets import Host, Target
from tests.partition.test_divide import layers, rewritten

TARGET = Target.load()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ir.Model:
    return rewritten(layers(tmp_path_factory.mktemp("load") / "x.onnx", [64, 128, 64]))


def test_a_load_needs_as_many_copies_as_answer_it(model: ir.Model) -> None:
    """One Edge TPU answers 1,000 requests a second at half load; at 3,000 it needs three more."""
    one = partition(model, TARGET, PartitionOptions(1))
    service = one.latency
    slow, fast = 0.5 / one.interval, 1.8 / one.interval
    assert service <= p95(one, slow) < 5 * service
    assert p95(one, fast) > 50 * service, "requests come faster than they are answered"
    for rate in (slow, fast):
        _, plan = partition_for_all(model, TARGET, PartitionOptions(4, "p95", rate=rate))
        assert plan.p95 is not None and plan.p95 <= p95(repeated(one, 4), rate) * (1 + 1e-9)
        assert plan.p95 < 3 * service
        assert plan.objective == plan.p95


def test_groups_take_requests_in_turn(model: ir.Model) -> None:
    one = partition(model, TARGET, PartitionOptions(1))
    plan = repeated(one, 3)
    assert [s.replicas for s in plan.segments if s.tpu is not None] == [(1, 2)]
    assert plan.latency == one.latency
    assert plan.shares[0] == pytest.approx(one.shares[0] / 3)


@pytest.mark.parametrize(
    "given", [{"objective": "p95"}, {"rate": 3.0}, {"objective": "p95", "rate": 0.0}]
)
def test_a_rate_goes_with_p95(given: dict[str, object]) -> None:
    with pytest.raises(OptionError, match="rate"):
        PartitionOptions(2, **given)  # type: ignore[arg-type]


def test_slots_of_the_host_count_for_many_requests(model: ir.Model) -> None:
    """A single request has the host for itself; of many, several are there at once."""
    host = Host.load("pi5")
    assert host.slots > 1 and host.slots_gain > 1
    latency = partition(model, TARGET, PartitionOptions(2))
    throughput = partition(model, TARGET, PartitionOptions(2, "throughput"))
    assert latency.host_slots == 1 and throughput.host_slots == host.slots
    pinned = replace(latency, host_slots=int(host.slots))
    for plan, gain in ((latency, 1.0), (pinned, host.slots_gain)):
        if None in plan.loads:
            assert plan.shares[None] == pytest.approx(plan.loads[None] / gain)
