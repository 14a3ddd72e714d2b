"""Schedules, plans whose stages run at once, and queues, against brute force."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from compiler import planner
from compiler.planner import HOST, Problem, Tasks, Tensor
from compiler.planner.problem import INFINITE
from compiler.planner.sections import sections
from tests.planner.test_planner import draw

Stage = tuple[int, list[int]]


def partitions(items: Sequence[int]) -> Iterator[list[list[int]]]:
    """All ways to put items into groups."""
    if not items:
        yield []
        return
    first, *rest = items
    for groups in partitions(rest):
        for place, group in enumerate(groups):
            yield [*groups[:place], [first, *group], *groups[place + 1 :]]
        yield [[first], *groups]


def least_makespan(problem: Problem) -> float:
    """Over all plans with any number of stages on each device."""
    least = INFINITE
    devices = [*range(problem.tpus), HOST]
    for groups in partitions(range(problem.count)):
        for chosen in itertools.product(devices, repeat=len(groups)):
            used = [device for device in dict.fromkeys(chosen) if device != HOST]
            stages = list(zip(chosen, groups, strict=True))
            # TPUs are alike.
            if used == sorted(used) and all(may_run(problem, *stage) for stage in stages):
                least = min(least, planner.finish(problem, stages))
    return least


def may_run(problem: Problem, device: int, nodes: Sequence[int]) -> bool:
    times = problem.host if device == HOST else problem.tpu
    return all(times[n] < INFINITE for n in nodes)


@pytest.mark.parametrize(
    "seed", [*range(8), *(pytest.param(s, marks=pytest.mark.slow) for s in range(8, 40))]
)
def test_the_least_makespan_is_found(seed: int) -> None:
    rng = random.Random(seed)
    problem = draw(rng, 5, 0.2, rng.random() < 0.5, (2, "latency"))
    least = least_makespan(problem)
    start = planner.heuristic(problem, 0.2).stages
    found = planner.parallel(problem, start, 0.5)
    assert found.cost == pytest.approx(planner.finish(problem, found.stages))
    assert found.cost <= planner.finish(problem, start) * (1 + 1e-9)
    best = planner.by_timetable(problem, 10.0, found.stages, most=5)
    assert best.cost == pytest.approx(least, rel=1e-6)
    assert best.bound is not None and best.bound <= least * (1 + 1e-6)
    assert planner.makespan_bound(problem, found.cost) <= least * (1 + 1e-6)


def tiles(count: int, tpus: int) -> Problem:
    """A layer in tiles of which each TPU holds one, between two small nodes."""
    last = count + 1
    edges = [(0, n) for n in range(1, last)] + [(n, last) for n in range(1, last)]
    tensors = [Tensor(0, tuple(range(1, last)), False, 0.1, 0.1)]
    tensors += [Tensor(n, (last,), False, 0.1, 0.1) for n in range(1, last)]
    return Problem(
        tpu=[1.0, *[2.0] * count, 1.0],
        host=[INFINITE] * (count + 2),
        edges=edges,
        tensors=tensors,
        sizes=[0, *[100] * count, 0],
        stream=[0.0, *[50.0] * count, 0.0],
        capacities=[100] * (count + 2),
        tpus=tpus,
        invoke=0.5,
    )


def test_tiles_run_at_once() -> None:
    problem = tiles(4, 4)
    (section,) = sections(problem)
    assert [sorted(branch) for branch in section.branches] == [[1], [2], [3], [4]]
    chain = planner.solve(problem)
    found = planner.parallel(problem, chain.stages, 1.0)
    # Three invocations: what is before, the tiles, and what joins them.
    before, tile, behind = 0.5 + 1 + 0.1, 0.5 + 2 + 0.2, 0.5 + 1 + 4 * 0.1
    assert found.cost == pytest.approx(before + tile + behind)
    assert planner.finish(problem, chain.stages) > found.cost


def test_a_schedule_is_as_the_runtime_queues_segments() -> None:
    """Task 0 feeds 1 and 2 on one device; 2 has more behind it and goes first."""
    tasks = Tasks([1.0, 2.0, 2.0, 5.0], [0, 1, 1, 0], [[], [0], [0], [2]])
    starts = [interval.start for interval in planner.schedule(tasks)]
    assert starts == [0.0, 3.0, 1.0, 3.0]
    assert planner.makespan(tasks) == 8.0


def test_one_after_the_other_is_the_sum() -> None:
    problem = replace(draw(random.Random(1), 12, 0.0, False, (1, "latency")), tpus=1)
    stages = planner.solve(problem).stages
    assert planner.finish(problem, stages) == pytest.approx(planner.cost(problem, stages))


def test_requests_wait_in_a_queue() -> None:
    """One device of 2 s each: the third request that comes at once waits for the two before it."""
    tasks = Tasks([2.0], [0], [[]])
    assert planner.latencies(tasks, {}, {}, [0.0, 0.0, 0.0]) == [2.0, 4.0, 6.0]
    assert planner.latencies(tasks, {0: [0, 1]}, {}, [0.0, 0.0, 0.0]) == [2.0, 2.0, 4.0]
    assert planner.latencies(tasks, {}, {0: 3}, [0.0, 0.0, 0.0]) == [2.0, 2.0, 2.0]


def test_a_queue_is_as_theory_says() -> None:
    """Pollaczek-Khinchine: at half load and constant service, the mean wait is half of it."""
    tasks = Tasks([1.0], [0], [[]])
    taken = planner.latencies(tasks, {}, {}, planner.arrivals(0.5, 1))
    mean = sum(taken) / len(taken)
    assert mean == pytest.approx(1.5, rel=0.1)
    assert planner.percentile(taken, 0.95) > mean
    assert planner.percentile([3.0, 1.0, 2.0, 4.0], 0.5) == 2.0
