"""Plans with fewer stages: what a stage gains must be worth its transfers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from compiler.planner.problem import HOST, INFINITE, Problem, Stages, cost

Copies = Mapping[int, int]


def fewer(problem: Problem, stages: Stages, limit: float, copies: Copies | None = None) -> Stages:
    """A plan of fewer stages that costs no more than `limit`: one after the other goes to the other
    side, those first that cost least. One stage stays on a TPU."""

    def is_better(before: Stages, after: Stages) -> bool:
        return len(after) < len(before) and cost(problem, after, copies) <= limit

    return _changed(problem, stages, copies, is_better)


def paying(problem: Problem, stages: Stages, copies: Copies | None = None) -> Stages:
    """The plan without the stages that cost more than they gain. One stage stays on a TPU."""

    def is_better(before: Stages, after: Stages) -> bool:
        return cost(problem, after, copies) < cost(problem, before, copies)

    return _changed(problem, stages, copies, is_better)


def on_tpus(stages: Stages) -> int:
    """How many stages are on TPUs."""
    return sum(device != HOST for device, _ in stages)


def transfers(problem: Problem, stages: Stages) -> int:
    """How many tensors go to stages on TPUs and back."""
    count = 0
    for device, nodes in stages:
        if device == HOST:
            continue
        inside = set(nodes)
        for tensor in problem.tensors:
            is_own = tensor.source in inside
            readers_inside = inside.intersection(tensor.readers)
            if is_own:
                count += tensor.leaves or len(readers_inside) < len(tensor.readers)
            else:
                count += bool(readers_inside)
    return count


def _changed(
    problem: Problem,
    stages: Stages,
    copies: Copies | None,
    is_better: Callable[[Stages, Stages], bool],
) -> Stages:
    """Moves stages to the other side, the cheapest first, as long as that is better."""
    changed = True
    while changed:
        changed = False
        ranked = []
        for nodes, after in _moves(problem, stages):
            ranked.append((cost(problem, after, copies), nodes))
        for _, nodes in sorted(ranked):
            # Stages beside one that has moved are others by now; the next round has them.
            moved = dict(_moves(problem, stages, only=nodes)).get(nodes)
            if moved is not None and is_better(stages, moved):
                stages = moved
                changed = True
    return stages


def _moves(
    problem: Problem, stages: Stages, only: tuple[int, ...] | None = None
) -> Iterator[tuple[tuple[int, ...], Stages]]:
    """(nodes of a stage, the plan with that stage on the other side), for `only` those or all."""
    for place, (device, nodes) in enumerate(stages):
        if only is not None and nodes != only:
            continue
        other = _nearest_tpu(stages, place) if device == HOST else HOST
        times = problem.host if other == HOST else problem.tpu
        is_last = device != HOST and on_tpus(stages) == 1
        if other is None or is_last or any(times[node] == INFINITE for node in nodes):
            continue
        yield nodes, _joined([*stages[:place], (other, nodes), *stages[place + 1 :]])


def _nearest_tpu(stages: Stages, place: int) -> int | None:
    """The TPU of a stage beside a stage of the host."""
    for beside in (place - 1, place + 1):
        if 0 <= beside < len(stages) and stages[beside][0] != HOST:
            return stages[beside][0]
    return None


def _joined(stages: list[tuple[int, tuple[int, ...]]]) -> Stages:
    """The stages, those in a row on one device as one."""
    joined: list[tuple[int, tuple[int, ...]]] = []
    for device, nodes in stages:
        if joined and joined[-1][0] == device:
            joined[-1] = (device, tuple(sorted((*joined[-1][1], *nodes))))
        else:
            joined.append((device, nodes))
    return tuple(joined)
