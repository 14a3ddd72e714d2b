"""Stages that do not gain what their transfers cost go, against the definition on drawn plans."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from compiler import planner
from compiler.planner.problem import Problem, Stages, Tensor

HOST = planner.HOST


def chain(tpu: list[float], host: list[float], way: float, invoke: float) -> Problem:
    """Nodes in a row, each of which hands one tensor on."""
    count = len(tpu)
    tensors = [Tensor(n, (n + 1,), False, way, way) for n in range(count - 1)]
    return Problem(
        tpu=tpu,
        host=host,
        edges=list(pairwise(range(count))),
        tensors=tensors,
        sizes=[0] * count,
        stream=[0.0] * count,
        capacities=[1] * count,
        tpus=1,
        invoke=invoke,
    )


def test_a_stage_that_gains_little_joins_its_neighbours() -> None:
    """The host is faster in the middle by 0.5 of 10, less than a transfer is worth."""
    problem = chain([3.0, 2.5, 3.0], [9.0, 1.0, 9.0], way=0.25, invoke=0.5)
    apart: Stages = ((0, (0,)), (HOST, (1,)), (0, (2,)))
    assert planner.cost(problem, apart) == 8.5
    together = ((0, (0, 1, 2)),)
    assert planner.cost(problem, together) == 9.0
    assert (planner.transfers(problem, apart), planner.transfers(problem, together)) == (2, 0)
    assert planner.fewer(problem, apart, limit=8.9) == apart
    assert planner.fewer(problem, apart, limit=9.0) == together


def test_what_does_not_pay_goes_to_the_host() -> None:
    problem = chain([3.0, 1.0, 3.0], [1.0, 9.0, 1.0], way=0.25, invoke=0.5)
    everything: Stages = ((0, (0, 1, 2)),)
    # One stage stays, even where the host would be faster with all of it.
    assert planner.paying(problem, everything) == everything
    split: Stages = ((0, (0,)), (HOST, (1,)), (0, (2,)))
    assert planner.on_tpus(planner.paying(problem, split)) == 1


@pytest.mark.parametrize("seed", range(20))
def test_plans_stay_plans_within_their_limit(seed: int) -> None:
    """Every node once and in order, one stage on a TPU, and never two in a row on one device."""
    drawn = random.Random(seed)
    count = drawn.randint(2, 9)
    never = planner.INFINITE
    tpu = [drawn.choice([drawn.random(), never]) for _ in range(count)]
    tpu[drawn.randrange(count)] = 0.1
    host = [drawn.choice([drawn.random(), never]) if t < never else 1.0 for t in tpu]
    problem = chain(tpu, host, way=0.1 * drawn.random(), invoke=0.1)
    sides = [t < never for t in tpu]
    turns = planner.alternate(problem, range(count), sides)
    start: Stages = tuple((0 if on_tpu else HOST, tuple(nodes)) for on_tpu, nodes in turns if nodes)
    limit = 1.05 * planner.cost(problem, start)
    for made in (planner.fewer(problem, start, limit), planner.paying(problem, start)):
        nodes = [node for _, members in made for node in members]
        assert nodes == list(range(count))
        assert all(one[0] != other[0] for one, other in pairwise(made))
        assert len(made) <= len(start) and planner.on_tpus(made) >= 1
        assert planner.cost(problem, made) <= limit
