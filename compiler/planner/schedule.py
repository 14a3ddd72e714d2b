"""When each stage of one request runs: as soon as its inputs are there and its device is free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import NamedTuple


class Interval(NamedTuple):
    """When a task runs, in the unit of its time."""

    start: float
    end: float


@dataclass(frozen=True)
class Tasks:
    """What is to run, in an order in which nothing comes before what it needs.

    seconds: of each task
    devices: the device of each; a device runs one task at a time
    needs:   indices of the tasks that must have ended before each
    """

    seconds: Sequence[float]
    devices: Sequence[int]
    needs: Sequence[Sequence[int]]


def remaining(tasks: Tasks) -> list[float]:
    """The time of each task with the longest way of tasks behind it."""
    longest = [0.0] * len(tasks.seconds)
    for task in reversed(range(len(tasks.seconds))):
        longest[task] += tasks.seconds[task]
        for other in tasks.needs[task]:
            longest[other] = max(longest[other], longest[task])
    return longest


def schedule(tasks: Tasks) -> list[Interval]:
    """The start and end of each task, as the runtime queues them: of those that are ready for a
    device, the one with the longest way to the end goes first."""
    longest = remaining(tasks)
    waiting = [len(others) for others in tasks.needs]
    behind: list[list[int]] = [[] for _ in waiting]
    for task, others in enumerate(tasks.needs):
        for other in others:
            behind[other].append(task)
    ready: dict[int, list[tuple[float, int]]] = {device: [] for device in tasks.devices}
    for task, count in enumerate(waiting):
        if not count:
            ready[tasks.devices[task]].append((-longest[task], task))
    for queue in ready.values():
        heapify(queue)
    intervals = [Interval(0.0, 0.0)] * len(waiting)
    running: list[tuple[float, int]] = []
    free = dict.fromkeys(ready)
    now = 0.0
    while True:
        for device in [device for device in free if ready[device]]:
            _, task = heappop(ready[device])
            intervals[task] = Interval(now, now + tasks.seconds[task])
            heappush(running, (intervals[task].end, task))
            del free[device]
        if not running:
            return intervals
        now = running[0][0]
        while running and running[0][0] <= now:
            _, task = heappop(running)
            free[tasks.devices[task]] = None
            for other in behind[task]:
                waiting[other] -= 1
                if not waiting[other]:
                    heappush(ready[tasks.devices[other]], (-longest[other], other))


def makespan(tasks: Tasks) -> float:
    """When the last task ends."""
    return max((interval.end for interval in schedule(tasks)), default=0.0)
