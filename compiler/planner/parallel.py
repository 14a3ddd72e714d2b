"""Plans whose stages run at once: branches of a graph on several TPUs, for the least makespan.

It begins from a plan whose stages follow each other, spreads sections of the graph over the TPUs,
all of them or one after the other, and then moves, joins and exchanges stages as long as the last
stage ends earlier. Work is counted, as everywhere in the planner.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from heapq import heapify, heappop, heappush

from compiler.planner.budget import Budget
from compiler.planner.problem import (
    HOST,
    INFINITE,
    Problem,
    Solution,
    Stages,
    stage_time,
    streaming_of_each,
)
from compiler.planner.schedule import Tasks, makespan, remaining, schedule
from compiler.planner.sections import Section, sections

Draft = tuple[tuple[int, frozenset[int]], ...]
"""Stages in any order."""

Score = tuple[float, float]
"""When the last stage ends, and how long all of them take."""

_NEVER: Score = (INFINITE, INFINITE)
# A move must help by so much, as a share: rounding must not decide.
_GAIN = 1 - 1e-9
# The best of the drafts that sections give are improved.
_IMPROVED = 3


def finish(problem: Problem, stages: Sequence[tuple[int, Iterable[int]]]) -> float:
    """When the last stage of a single request ends; infinite where stages need each other."""
    draft = tuple((device, frozenset(nodes)) for device, nodes in stages)
    return _Clock(problem, Budget(INFINITE)).score(draft)[0]


def in_order(problem: Problem, stages: Stages) -> Stages:
    """Stages so that none comes before what it needs."""
    draft = tuple((device, frozenset(nodes)) for device, nodes in stages)
    return _in_order(_Clock(problem, Budget(INFINITE)), draft)


def _in_order(clock: _Clock, draft: Draft) -> Stages:
    order = clock.order(draft)
    assert order is not None, "stages need each other"
    return tuple((draft[stage][0], tuple(sorted(draft[stage][1]))) for stage in order)


def parallel(problem: Problem, start: Stages, seconds: float) -> Solution:
    """The plan with the least makespan that is found from `start`; as good at least."""
    budget = Budget(seconds)
    clock = _Clock(problem, budget)
    first = tuple((device, frozenset(nodes)) for device, nodes in start)
    drafts = {first: clock.score(first)}
    found = sections(problem)
    for draft in _spread(problem, first, found, clock):
        drafts[draft] = clock.score(draft)
    possible = [draft for draft, score in drafts.items() if score < _NEVER]
    best = sorted(possible, key=drafts.__getitem__)[:_IMPROVED]
    improved = [_descend(clock, draft, found) for draft in best]
    draft = min([*improved, first], key=clock.score)
    return Solution(_in_order(clock, draft), clock.score(draft)[0])


class _Clock:
    """Tells when drafts end; what was found of stages that were seen is known."""

    def __init__(self, problem: Problem, budget: Budget) -> None:
        self.problem, self.budget = problem, budget
        self._times: dict[tuple[bool, frozenset[int]], float] = {}
        self._late: dict[frozenset[int], dict[int, float]] = {}
        self._read: dict[frozenset[int], tuple[int, frozenset[int]]] = {}
        self._scores: dict[Draft, Score] = {}

    def score(self, draft: Draft) -> Score:
        known = self._scores.get(draft)
        if known is None:
            order = self.order(draft)
            known = _NEVER
            if order is not None:
                tasks = self._tasks(draft, order)
                known = makespan(tasks), sum(tasks.seconds)
            self._scores[draft] = known
        return known

    def order(self, draft: Draft) -> list[int] | None:
        """An order of the stages in which none comes before what it needs; of those that may come
        next, the one with the first node. None where stages need each other."""
        needs = self._needs(draft)
        waiting = [len(others) for others in needs]
        behind: list[list[int]] = [[] for _ in draft]
        for stage, others in enumerate(needs):
            for other in others:
                behind[other].append(stage)
        ready = []
        for stage, count in enumerate(waiting):
            if not count:
                ready.append((self._read[draft[stage][1]][0], stage))
        heapify(ready)
        order: list[int] = []
        while ready:
            _, stage = heappop(ready)
            order.append(stage)
            for other in behind[stage]:
                waiting[other] -= 1
                if not waiting[other]:
                    heappush(ready, (self._read[draft[other][1]][0], other))
        return order if len(order) == len(draft) else None

    def critical(self, draft: Draft) -> list[int]:
        """The stages without which the last one would end earlier."""
        order = self.order(draft)
        assert order is not None
        tasks = self._tasks(draft, order)
        enough = self.score(draft)[0] * _GAIN
        ways = zip(schedule(tasks), remaining(tasks), order, strict=True)
        return sorted(stage for interval, way, stage in ways if interval.start + way >= enough)

    def _tasks(self, draft: Draft, order: Sequence[int]) -> Tasks:
        seconds = self._seconds(draft)
        needs = self._needs(draft)
        place = {stage: index for index, stage in enumerate(order)}
        return Tasks(
            [seconds[stage] for stage in order],
            [draft[stage][0] for stage in order],
            [[place[other] for other in needs[stage]] for stage in order],
        )

    def _needs(self, draft: Draft) -> list[set[int]]:
        """The stages that make what each stage reads."""
        stage_of: dict[int, int] = {}
        for stage, (_, nodes) in enumerate(draft):
            stage_of |= dict.fromkeys(nodes, stage)
        found = []
        steps = 15 * len(draft) + self.problem.count // 20
        for _, nodes in draft:
            read = self._read_from_outside(nodes)
            steps += len(read)
            found.append({stage_of[n] for n in read})
        self.budget.spend(steps)
        return found

    def _read_from_outside(self, nodes: frozenset[int]) -> frozenset[int]:
        known = self._read.get(nodes)
        if known is None:
            self.budget.spend(3 * len(nodes))
            before = {p for n in nodes for p in self.problem.predecessors[n]}
            known = self._read[nodes] = (min(nodes), frozenset(before - nodes))
        return known[1]

    def _seconds(self, draft: Draft) -> list[float]:
        whole: dict[int, frozenset[int]] = {}
        for device, nodes in draft:
            whole[device] = whole[device] | nodes if device in whole else nodes
        found = []
        for device, nodes in draft:
            seconds = self._time(device, nodes)
            late = {} if device == HOST else self._streaming(whole[device])
            if late:
                seconds += sum(late[n] for n in sorted(nodes & late.keys()))
            found.append(seconds)
        return found

    def _time(self, device: int, nodes: frozenset[int]) -> float:
        key = device == HOST, nodes
        if key not in self._times:
            self.budget.spend(5 * len(nodes))
            self._times[key] = stage_time(self.problem, device, sorted(nodes))
        return self._times[key]

    def _streaming(self, nodes: frozenset[int]) -> dict[int, float]:
        if nodes not in self._late:
            held = sorted(nodes)
            self.budget.spend(50 * len(held))
            self._late[nodes] = streaming_of_each(self.problem, held)
        return self._late[nodes]


# Drafts that spread sections.


def _spread(
    problem: Problem, start: Draft, found: Sequence[Section], clock: _Clock
) -> Iterator[Draft]:
    """Drafts in which sections are spread over two and more TPUs: all of them at once, then each
    where it helps."""
    if not found:
        return
    widths = sorted({problem.tpus, -(-problem.tpus // 2), 2}, reverse=True)
    for width in widths:
        draft = start
        for section in found:
            draft = fan_out(problem, draft, section, width)
        yield draft
    for width in widths:
        yield _where_it_helps(clock, start, found, width)


def _where_it_helps(clock: _Clock, start: Draft, found: Sequence[Section], width: int) -> Draft:
    """The start with each section spread that makes it end earlier, in their order."""
    best = start
    for section in found:
        if clock.budget.spent:
            break
        draft = fan_out(clock.problem, best, section, width)
        if clock.score(draft) < clock.score(best):
            best = draft
    return best


def fan_out(problem: Problem, draft: Draft, section: Section, width: int) -> Draft:
    """The draft with the branches of a section on `width` TPUs.

    Stages that had nodes of the section are divided in what comes before it and behind it.
    """
    spread = section.nodes
    behind = _descendants(problem, spread)
    found: list[tuple[int, frozenset[int]]] = []
    held: dict[int, int] = dict.fromkeys(range(problem.tpus), 0)
    for device, nodes in draft:
        if not nodes & spread:
            parts = [nodes]
        else:
            rest = nodes - spread
            parts = [rest - behind, rest & behind]
        for part in parts:
            if part:
                # No TPU is invoked for what only joins other parts.
                is_light = len(parts) > 1 and _may_run(problem, HOST, part)
                found.append((HOST if is_light else device, part))
                if device != HOST:
                    held[device] += sum(problem.sizes[n] for n in part)
    for device, branches in _shares(problem, section, width, held):
        nodes = frozenset().union(*branches)
        found += [(device, layer) for layer in _layers(problem, nodes)]
    return tuple(found)


def _descendants(problem: Problem, nodes: Iterable[int]) -> set[int]:
    found: set[int] = set()
    todo = [*nodes]
    while todo:
        for reader in problem.successors[todo.pop()]:
            if reader not in found:
                found.add(reader)
                todo.append(reader)
    return found


def _shares(
    problem: Problem, section: Section, width: int, held: dict[int, int]
) -> list[tuple[int, list[frozenset[int]]]]:
    """Branches for `width` TPUs that take about the same time; those that hold the least so far get
    them."""
    devices = sorted(held, key=lambda device: (held[device], device))[:width]
    shares: dict[int, list[frozenset[int]]] = {device: [] for device in devices}
    loads = dict.fromkeys(devices, 0.0)
    times = {branch: _branch_time(problem, branch) for branch in section.branches}
    for branch in sorted(section.branches, key=lambda b: (-times[b], min(b))):
        device = min(devices, key=lambda d: (loads[d], held[d], d))
        loads[device] += times[branch]
        held[device] += sum(problem.sizes[n] for n in branch)
        shares[device].append(branch)
    return [(device, branches) for device, branches in shares.items() if branches]


def _branch_time(problem: Problem, branch: frozenset[int]) -> float:
    """The time of a branch whose parameters may have to be streamed."""
    streams = [problem.stream[n] for n in branch if problem.sizes[n]]
    return sum(problem.tpu[n] for n in branch) + sum(s for s in streams if s < INFINITE)


def _layers(problem: Problem, nodes: frozenset[int]) -> list[frozenset[int]]:
    """Nodes in stages that do not need each other: where other nodes stand between, one comes
    behind the other."""
    level: dict[int, int] = {}
    for n in range(min(nodes), problem.count):
        steps = [
            level[p] + (p in nodes and n not in nodes)
            for p in problem.predecessors[n]
            if p in level
        ]
        if n in nodes or steps:
            level[n] = max(steps, default=0)
    found: dict[int, set[int]] = {}
    for n in sorted(nodes):
        found.setdefault(level[n], set()).add(n)
    return [frozenset(found[key]) for key in sorted(found)]


# Moves.


def _descend(clock: _Clock, draft: Draft, found: Sequence[Section]) -> Draft:
    """Take every move that helps until none does, first of the stages that make others late."""
    for only_critical in (True, False):
        moved: Draft | None = draft
        while moved is not None:
            draft = moved
            stages = clock.critical(draft) if only_critical else range(len(draft))
            moved = _first_better(clock, draft, stages, found)
    return draft


def _first_better(
    clock: _Clock, draft: Draft, stages: Iterable[int], found: Sequence[Section]
) -> Draft | None:
    best = clock.score(draft)
    for stage in stages:
        for moved in _moves(clock.problem, draft, stage, found):
            if clock.budget.spent:
                return None
            if _is_less(clock.score(moved), best):
                return moved
    return None


def _is_less(score: Score, other: Score) -> bool:
    if score[0] < other[0] * _GAIN:
        return True
    return score[0] <= other[0] and score[1] < other[1] * _GAIN


def _moves(problem: Problem, draft: Draft, stage: int, found: Sequence[Section]) -> Iterator[Draft]:
    """Drafts in which one stage stands elsewhere: on another device, within another stage, in
    exchange with another, or with a branch less."""
    device, nodes = draft[stage]
    others = draft[:stage] + draft[stage + 1 :]
    for other in _devices(problem, nodes):
        if other != device:
            yield (*others, (other, nodes))
    near = _neighbours(problem, nodes)
    for place, (own, members) in enumerate(others):
        joins = own == device or bool(near & members)
        if joins and _may_run(problem, own, nodes):
            rest = others[:place] + others[place + 1 :]
            yield (*rest, (own, members | nodes))
        if own not in (device, HOST) and device != HOST and place >= stage:
            rest = others[:place] + others[place + 1 :]
            yield (*rest, (own, nodes), (device, members))
    for branch in _branches_in(nodes, found):
        yield from _branch_moves(problem, others, (device, nodes), branch)


def _branches_in(nodes: frozenset[int], found: Sequence[Section]) -> Iterator[frozenset[int]]:
    for section in found:
        if nodes & section.nodes:
            for branch in section.branches:
                part = branch & nodes
                if part and part != nodes:
                    yield part


def _branch_moves(
    problem: Problem, others: Draft, own: tuple[int, frozenset[int]], branch: frozenset[int]
) -> Iterator[Draft]:
    """A branch leaves its stage for one of its own, or for one that is there."""
    device, nodes = own
    rest = (device, nodes - branch)
    for other in _devices(problem, branch):
        if other != device:
            yield (*others, rest, (other, branch))
    for place, (other, members) in enumerate(others):
        if other != device and _may_run(problem, other, branch):
            yield (*others[:place], *others[place + 1 :], rest, (other, members | branch))


def _devices(problem: Problem, nodes: Iterable[int]) -> Iterator[int]:
    nodes = [*nodes]
    for device in range(-1, problem.tpus):
        if _may_run(problem, device, nodes):
            yield device


def _may_run(problem: Problem, device: int, nodes: Iterable[int]) -> bool:
    times = problem.host if device == HOST else problem.tpu
    return all(times[n] < INFINITE for n in nodes)


def _neighbours(problem: Problem, nodes: Iterable[int]) -> set[int]:
    """Nodes that make or read what these do."""
    found: set[int] = set()
    for n in nodes:
        found.update(problem.predecessors[n], problem.successors[n])
    return found
