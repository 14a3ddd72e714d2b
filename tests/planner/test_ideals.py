"""The dynamic programme over ideals against brute force on small graphs, and against the solver on
larger ones."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from compiler import planner
from compiler.planner import HOST, Problem, Tensor, ideals
from compiler.planner.merging import by_merging
from compiler.planner.problem import INFINITE, Stages
from tests.planner.test_planner import check_contract, draw, every_plan

OBJECTIVES = ["latency", "throughput"]


def drawn(seed: int, objective: str, free: bool = False) -> Problem:
    rng = random.Random(seed)
    tpus = rng.choice([1, 2, 2, 3])
    count = 5 if free or tpus > 2 else 7
    return draw(rng, count, rng.choice([0, 0, 0.2]), free, (tpus, objective))


def least(problem: Problem) -> float:
    """What brute force finds; infinite where no plan is allowed."""
    return min((planner.cost(problem, plan) for plan in every_plan(problem)), default=INFINITE)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("seed", range(40))
def test_ideals_find_what_brute_force_finds(seed: int, objective: str) -> None:
    problem = drawn(seed, objective, free=seed % 2 == 0)
    best = least(problem)
    found = planner.by_ideals(problem)
    if best == INFINITE:
        assert found is None
        return
    assert found is not None and found.bound is not None
    check_contract(problem, found)
    assert found.cost == pytest.approx(best, rel=1e-9)
    assert found.bound <= best * (1 + 1e-12)


@pytest.mark.parametrize("by", [planner.by_ideals, lambda problem: planner.exact(problem, 20.0)])
@pytest.mark.parametrize("seed", range(12))
def test_no_device_exceeds_the_limit(seed: int, by: object) -> None:
    """Of the plans of nearly the best pace, the one with the least latency."""
    problem = drawn(seed, "throughput")
    pace = least(problem)
    if pace == INFINITE:
        pytest.skip("no plan")
    limited = replace(problem, objective="latency", limit=1.1 * pace)
    best = least(limited)
    found = by(limited)  # type: ignore[operator]
    assert best < INFINITE and found is not None
    assert max(planner.loads(limited, found.stages).values()) <= limited.limit
    # The solver rounds times.
    assert found.cost == pytest.approx(best, rel=1e-3)
    assert found.bound <= best * (1 + 1e-9)


def packed(problem: Problem) -> Problem:
    """The same in little room, which every three nodes waste some of: more is streamed than bytes
    promise."""
    room = [40] * problem.count
    problem = replace(problem, capacities=room)

    def streaming(nodes: Sequence[int]) -> list[float]:
        holders = [n for n in nodes if problem.sizes[n]]
        tighter = replace(problem, capacities=[c - 4 * (len(holders) // 3) for c in room])
        kept, _ = planner.cached(tighter, nodes)
        return [0.0 if n in kept else problem.stream[n] for n in nodes]

    return replace(problem, streaming=streaming)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("seed", range(30))
def test_exact_times_to_stream_decide(seed: int, objective: str) -> None:
    problem = packed(drawn(100 + seed, objective))
    best = least(problem)
    found = planner.by_ideals(problem)
    if best == INFINITE:
        assert found is None
        return
    assert found is not None and found.bound is not None
    assert found.cost == pytest.approx(best, rel=1e-9)
    assert found.bound == pytest.approx(best, rel=1e-6)


def test_without_all_exact_times_the_bound_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the search ends early, what it says of the best plan is still true."""
    problem = packed(drawn(101, "latency"))
    monkeypatch.setattr(ideals, "_MOST_ROUNDS", 1)
    monkeypatch.setattr(ideals, "_ASKED_AT_ONCE", 0)
    found = planner.by_ideals(problem)
    assert found is not None and found.bound is not None
    assert found.bound <= least(problem) <= found.cost


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("seed", range(4))
def test_ideals_and_the_solver_agree(seed: int, objective: str) -> None:
    problem = draw(random.Random(seed), 24, 0.0, False, (3, objective))
    found = planner.by_ideals(problem)
    assert found is not None and found.bound is not None
    check_contract(problem, found)
    solved = planner.exact(problem, 20.0, found)
    assert solved is not None and solved.bound is not None
    assert solved.bound <= found.cost <= solved.cost * (1 + 1e-9)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_more_tpus_are_never_worse(objective: str) -> None:
    problem = draw(random.Random(5), 30, 0.0, False, (1, objective))
    costs = []
    for tpus in range(1, 7):
        found = planner.solve(replace(problem, tpus=tpus))
        assert found.bound == pytest.approx(found.cost)
        costs.append(found.cost)
    assert costs == sorted(costs, reverse=True)


def tiles(count: int, tpus: int) -> Problem:
    """A layer in tiles that are joined: each fills most of a TPU."""
    join = count + 1
    tensors = [Tensor(0, tuple(range(1, join)), False, 1.0, 1.0)]
    tensors += [Tensor(n, (join,), False, 0.1, 0.1) for n in range(1, join)]
    tensors.append(Tensor(join, (), True, 0.1, 0.1))
    edges = [(0, n) for n in range(1, join)] + [(n, join) for n in range(1, join)]
    return Problem(
        tpu=[1.0] * (join + 1),
        host=[INFINITE] * (join + 1),
        edges=sorted(edges),
        tensors=tensors,
        sizes=[0, *[60] * count, 0],
        stream=[0.0, *[9.0] * count, 0.0],
        capacities=[100] * (join + 1),
        tpus=tpus,
        invoke=0.5,
    )


def test_tiles_of_a_layer_change_places_freely() -> None:
    """Forty tiles have 2^40 subsets, of which those with the same number are the same."""
    found = planner.by_ideals(tiles(40, 3))
    assert found is not None
    assert found.cost == pytest.approx(planner.by_ideals(tiles(40, 3)).cost)  # type: ignore[union-attr]
    small = tiles(4, 3)
    assert planner.by_ideals(small).cost == pytest.approx(least(small))  # type: ignore[union-attr]


def test_wide_graphs_are_left_to_the_solver() -> None:
    """Layers of different sizes beside each other have too many subsets."""
    problem = tiles(16, 2)
    uneven = replace(problem, sizes=[n % 18 for n in range(18)])
    assert planner.by_ideals(uneven) is None
    found = planner.solve(uneven, 0.3)
    check_contract(uneven, found)


def test_the_host_in_between() -> None:
    """What the host takes is the same in every plan, and counts."""
    stages: Stages = ((0, (0,)), (HOST, (1,)), (1, (2,)))
    problem = Problem(
        tpu=[1.0, INFINITE, 1.0],
        host=[INFINITE, 5.0, INFINITE],
        edges=[(0, 1), (1, 2)],
        tensors=[Tensor(0, (1,), False, 1.0, 1.0), Tensor(1, (2,), False, 1.0, 1.0)],
        sizes=[0] * 3,
        stream=[0.0] * 3,
        capacities=[1] * 3,
        tpus=2,
        objective="throughput",
    )
    found = planner.by_ideals(problem)
    assert found is not None and found.stages == stages
    assert found.cost == pytest.approx(5.0)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("seed", range(10))
def test_merged_nodes_stay_together(seed: int, objective: str) -> None:
    """Fewer plans are looked at, and what is found is one of the whole problem's."""
    problem = packed(draw(random.Random(seed), 14, 0.1, False, (3, objective)))
    whole, merged = planner.by_ideals(problem), by_merging(problem)
    if whole is None:
        assert merged is None
        return
    if merged is not None:
        check_contract(replace(problem, streaming=None), merged_by_bytes(problem, merged))
        assert merged.cost >= whole.cost * (1 - 1e-9)


def merged_by_bytes(problem: Problem, plan: planner.Solution) -> planner.Solution:
    by_bytes = replace(problem, streaming=None)
    return replace(plan, cost=planner.cost(by_bytes, plan.stages))


def test_tiles_that_are_added_up() -> None:
    """Four sums of four tiles each have too many ideals, until each sum stays with its last
    tile."""
    rng = random.Random(0)
    edges, tensors, sizes = [], [Tensor(0, (), False, 1.0, 1.0)], [0]
    sums = []
    for _ in range(4):
        last = None
        for _ in range(4):
            tile = len(sizes)
            sizes.append(rng.randint(50, 70))
            edges.append((0, tile))
            if last is not None:
                edges += [(last, tile + 1), (tile, tile + 1)]
                sizes.append(0)
            last = len(sizes) - 1
        sums.append(last)
    join = len(sizes)
    sizes.append(0)
    edges += [(last, join) for last in sums]
    for n in range(join + 1):
        readers = tuple(v for u, v in edges if u == n)
        tensors.append(Tensor(n, readers, n == join, 0.5, 0.5))
    count = join + 1
    problem = Problem(
        tpu=[1.0] * count,
        host=[INFINITE] * count,
        edges=sorted(edges),
        tensors=tensors[1:],
        sizes=sizes,
        stream=[0.2 * size for size in sizes],
        capacities=[200] * count,
        tpus=4,
        invoke=0.5,
    )
    assert planner.by_ideals(problem) is None
    found = by_merging(problem)
    assert found is not None
    check_contract(problem, found)
    assert found.cost <= planner.heuristic(problem, 0.5).cost


def shared_out(plan: Stages, tpus: int) -> Iterator[dict[int, int]]:
    """Every way to hold the stages of a plan on up to `tpus` TPUs."""
    devices = sorted({device for device, _ in plan if device != HOST})
    for counts in itertools.product(range(1, tpus + 1), repeat=len(devices)):
        if sum(counts) <= tpus:
            yield dict(zip(devices, counts, strict=True))


def least_with_replicas(problem: Problem) -> float:
    best = INFINITE
    for plan in every_plan(problem):
        for copies in shared_out(plan, problem.tpus):
            best = min(best, planner.cost(problem, plan, copies))
    return best


@pytest.mark.parametrize("seed", range(30))
def test_replicas_are_as_good_as_brute_force(seed: int) -> None:
    """First the best pace, then at nearly that pace the least latency."""
    rng = random.Random(seed)
    problem = packed(draw(rng, 6, rng.choice([0, 0, 0.2]), False, (3, "throughput")))
    problem = replace(problem, replicas=True)
    pace = least_with_replicas(problem)
    found = planner.by_ideals(problem)
    if pace == INFINITE:
        assert found is None
        return
    assert found is not None and found.bound is not None
    assert pace * (1 - 1e-9) <= found.cost <= pace * 1.0002
    assert found.bound <= pace * (1 + 1e-9)
    limited = replace(problem, objective="latency", limit=1.1 * pace)
    quick = planner.by_ideals(limited)
    assert quick is not None and quick.bound is not None
    assert quick.cost == pytest.approx(least_with_replicas(limited), rel=1e-6)
    used = [quick.copies.get(device, 1) for device, _ in quick.stages if device != HOST]
    assert sum(used) <= problem.tpus


def test_a_plan_that_cannot_be_cut_is_there_several_times() -> None:
    """One node on four TPUs, until the host cannot keep up."""
    problem = replace(
        tiles(1, 4), tpu=[INFINITE, 8.0, INFINITE], host=[1.0, INFINITE, 0.5], replicas=True
    )
    problem = replace(problem, objective="throughput")
    one = planner.solve(replace(problem, tpus=1))
    four = planner.solve(problem)
    assert four.cost == pytest.approx(one.cost / 4)
    assert four.copies == {0: 4}
    many = planner.solve(replace(problem, tpus=32))
    assert many.cost == pytest.approx(1.5) and many.cost == pytest.approx(many.bound)


def test_wide_graphs_are_there_several_times() -> None:
    """Whole pipelines, where the stages cannot be searched for."""
    problem = tiles(16, 4)
    uneven = replace(problem, sizes=[n % 18 for n in range(18)], objective="throughput")
    several = planner.solve(replace(uneven, replicas=True), 0.5)
    one = planner.solve(replace(uneven, tpus=1), 0.5)
    assert several.cost <= one.cost / 4 * 1.001
    assert several.bound is not None and several.bound <= several.cost
