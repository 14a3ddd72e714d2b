"""Which blocks are fused: by errors and times that are made up, against all sets of blocks."""

from __future__ import annotations

from itertools import chain, combinations, pairwise

import pytest

from compiler.driver.fused import GAIN, MOST_PLANS, NOT_FUSED, Choices, Fusing, Profile
from compiler.driver.overlap import Step
from compiler.frontends.decoder import ProgramShape
from compiler.partition import PartitionOptions
from passes import Steps

ERRORS = {0: 0.016, 1: 0.001, 2: 0.004, 3: 0.0005}


def profile(tpu: float, host: float, unfused: float) -> Profile:
    steps: list[tuple[Step, int | None]] = []
    for layer in ERRORS:
        steps += [(Step(None, host), None), (Step(0, tpu), layer)]
    return Profile([*steps, (Step(None, host), None)], dict.fromkeys(ERRORS, unfused))


def choices(halves: float = 4.0) -> Choices:
    return Choices({1: profile(2.0, 10.0, 5.0), 2: profile(1.5, halves, 2.5)}, ERRORS, 0.004)


def all_sets() -> list[frozenset[int]]:
    sizes = range(len(ERRORS) + 1)
    found = chain.from_iterable(combinations(ERRORS, size) for size in sizes)
    return [frozenset(layers) for layers in found]


def test_blocks_that_are_not_fused_run_on_the_host() -> None:
    whole = profile(2.0, 10.0, 5.0)
    assert whole.seconds(frozenset(), 1) == pytest.approx(50 + 4 * 5)
    assert whole.seconds(frozenset([1, 3]), 1) == pytest.approx(50 + 2 * 2 + 2 * 5)


@pytest.mark.parametrize("goal", [0.004, 0.0046, 0.006, 0.01, 0.02, 1.0])
def test_the_fastest_set_within_a_goal(goal: float) -> None:
    found = choices().fastest_within(goal)
    assert found.divergence <= goal
    fitting = [choices().candidate(layers) for layers in all_sets()]
    best = min(c.seconds for c in fitting if c.divergence <= goal + 1e-12)
    # A set that is faster by less than the margin is not worth its error.
    assert found.seconds * (1 - GAIN) <= best + 1e-12


def test_the_nearest_plan_where_no_set_reaches_the_goal() -> None:
    assert choices().fastest_within(0.001).fusing == NOT_FUSED


def test_the_frontier_gets_slower_and_more_accurate() -> None:
    found = choices().offered()
    assert 2 <= len(found) <= MOST_PLANS
    assert found[-1].fusing == NOT_FUSED and found[0].fusing.layers == frozenset(ERRORS)
    for faster, slower in pairwise(found):
        assert faster.seconds < slower.seconds * (1 - GAIN)
        assert faster.divergence > slower.divergence


def test_parts_are_taken_only_where_they_are_clearly_faster() -> None:
    every = frozenset(ERRORS)
    assert choices().candidate(every).fusing.parts == 2
    # Where the host takes as long for half of a chunk, nothing is gained.
    assert choices(halves=10.0).candidate(every).fusing.parts == 1


def test_a_gain_below_the_margin_leaves_the_host_alone() -> None:
    tiny = Choices({1: profile(4.99, 100.0, 5.0)}, ERRORS, 0.004)
    assert [c.fusing for c in tiny.candidates()] == [NOT_FUSED]
    assert tiny.fastest_within(1.0).fusing == NOT_FUSED


def test_what_fusing_asks_of_program_passes_and_plan() -> None:
    fusing = Fusing(frozenset([2]), 2)
    shape = fusing.shape(ProgramShape(1, 64, 128))
    assert (shape.tokens, shape.context, shape.first_rows) == (32, 128, 1)
    steps = fusing.steps(Steps(at={"second_row": {"x": True}}))
    assert steps.at == {
        "second_row": {"x": True},
        "fuse_blocks": {"blk.2.ffn_down/fused": True},
    }
    auto = fusing.partitioning(PartitionOptions(place="auto"), host_alone=True)
    assert (auto.place, auto.only) == ("tpu", ("*/fused",))
    whole = fusing.partitioning(PartitionOptions(place="tpu"), host_alone=False)
    assert whole.only == () and whole.pins["blk.2.ffn_down"] == "host"
    assert NOT_FUSED.partitioning(auto, host_alone=True) is auto
