"""Refused segments are cut in two at half of their predicted time: against all cuts."""

from __future__ import annotations

import pytest

from compiler.partition import Plan, halved, partition
from compiler.targets import Target
from tests.partition.graphs import chain, check_borders, model_of
from tests.passes.golden import weight

TARGET = Target.load()


def names(plan: Plan) -> list[list[str]]:
    return [[str(node.outputs[0].name) for node in segment.nodes] for segment in plan.segments]


@pytest.mark.parametrize(
    "widths",
    [
        (256, 64, 512, 128, 768, 64, 256),
        # The first is most of the time, then the last.
        (1024, 1024, 64, 64, 64),
        (64, 64, 64, 1024, 1024),
        (128, 128, 128),
    ],
)
def test_the_parts_take_as_nearly_the_same_time_as_any_cut_gives(widths: tuple[int, ...]) -> None:
    graph = chain(widths)
    plan = partition(graph, TARGET)
    (segment,) = plan.segments
    cut = halved(plan, graph.graph, TARGET, {0})
    check_borders(cut, graph.graph)
    first, second = cut.segments
    assert first.nodes + second.nodes == segment.nodes
    times = [plan.costs[node].tpu for node in segment.nodes]
    apart = [abs(sum(times[:i]) - sum(times[i:])) for i in range(1, len(times))]
    assert abs(sum(times[: len(first.nodes)]) - sum(times[len(first.nodes) :])) == pytest.approx(
        min(apart)
    )
    assert {first.tpu, second.tpu} == {segment.tpu}


def test_what_both_parts_take_is_predicted_anew() -> None:
    graph = chain((256, 64, 512, 128))
    plan = partition(graph, TARGET)
    cut = halved(plan, graph.graph, TARGET, {0})
    (whole,) = plan.segments
    assert sum(part.macs for part in cut.segments) == whole.macs == 256 * 64 + 64 * 512 + 512 * 128
    assert sum(part.parameter_bytes for part in cut.segments) == whole.parameter_bytes
    # One more invocation, and what lies between goes back and forth.
    between = cut.segments[0].outputs[0].shape[-1]
    more = TARGET.invoke + between / TARGET.up + between / TARGET.down
    assert cut.latency == pytest.approx(plan.latency + more)


def test_a_clamp_stays_with_the_layer_whose_scale_it_is() -> None:
    """It costs nothing itself; behind a cut it would be an operator of its own."""
    graph = chain((64, 64, 64), clamped=(0, 1))
    cut = halved(partition(graph, TARGET), graph.graph, TARGET, {0})
    check_borders(cut, graph.graph)
    assert names(cut) == [["d0", "r0"], ["d1", "y"]]


def test_one_layer_stays_whole() -> None:
    """Though a clamp is behind it."""
    graph = chain((64, 64), clamped=(0,))
    plan = partition(graph, TARGET)
    assert names(halved(plan, graph.graph, TARGET, {0})) == names(plan) == [["d0", "y"]]


def test_other_segments_stay_as_they_are() -> None:
    """Erf is the host's, between two segments of two layers each."""
    weights = {
        f"{kind}{i}": weight(64, 64) if kind == "w" else weight(64)
        for kind in "wb"
        for i in range(4)
    }
    graph = model_of(
        """
    g (float[1,64] x) => (float[1,64] y) {
        a = edgetpu.FullyConnected (x, w0, b0)
        b = edgetpu.FullyConnected (a, w1, b1)
        e = Erf (b)
        c = edgetpu.FullyConnected (e, w2, b2)
        y = edgetpu.FullyConnected (c, w3, b3)
    }""",
        weights,
    )
    plan = partition(graph, TARGET)
    assert names(plan) == [["a", "b"], ["e"], ["c", "y"]]
    for index, wanted in (
        (0, [["a"], ["b"], ["e"], ["c", "y"]]),
        (2, [["a", "b"], ["e"], ["c"], ["y"]]),
    ):
        cut = halved(plan, graph.graph, TARGET, {index})
        check_borders(cut, graph.graph)
        assert names(cut) == wanted
    both = halved(plan, graph.graph, TARGET, {0, 2})
    assert names(both) == [["a"], ["b"], ["e"], ["c"], ["y"]]
    assert names(plan) == [["a", "b"], ["e"], ["c", "y"]]
