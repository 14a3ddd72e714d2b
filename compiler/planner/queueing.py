"""How long requests take that come at a given rate, where they wait for devices."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from heapq import heappop, heappush

from compiler.planner.schedule import Tasks, remaining

# So many requests are simulated, unless that are more steps than this.
_REQUESTS = 2000
_STEPS = 60_000
_LEAST_REQUESTS = 400


def arrivals(rate: float, tasks: int) -> list[float]:
    """When requests come that do not know of each other, `rate` in a unit of time: the same numbers
    each time. Fewer of a request with many tasks."""
    count = max(_LEAST_REQUESTS, min(_REQUESTS, _STEPS // max(tasks, 1)))
    rng = random.Random(0)
    now = 0.0
    found = []
    for _ in range(count):
        now += rng.expovariate(rate)
        found.append(now)
    return found


def latencies(
    tasks: Tasks, turns: Mapping[int, Sequence[int]], slots: Mapping[int, int], at: Sequence[float]
) -> list[float]:
    """How long each request takes that comes at one of the times `at`, waiting included.

    Request n runs what `tasks` plan for a device on that of its `turns` whose turn it is. A device
    runs as many tasks at once as it has `slots`, one where nothing is said; of those that wait the
    oldest request goes first, and of it the task with the longest way to the end.
    """
    return _Queues(tasks, turns, slots, at).run()


class _Queues:
    def __init__(
        self,
        tasks: Tasks,
        turns: Mapping[int, Sequence[int]],
        slots: Mapping[int, int],
        at: Sequence[float],
    ) -> None:
        self.tasks, self.turns, self.at = tasks, turns, at
        self.ranks = remaining(tasks)
        self.behind: list[list[int]] = [[] for _ in tasks.seconds]
        for task, others in enumerate(tasks.needs):
            for other in others:
                self.behind[other].append(task)
        self.waits: dict[int, list[int]] = {}
        self.left = [len(tasks.seconds)] * len(at)
        self.queues: dict[int, list[tuple[int, float, int]]] = {}
        self.free: dict[int, int] = {}
        for device in tasks.devices:
            for own in turns.get(device, [device]):
                self.free[own] = slots.get(own, 1)
                self.queues[own] = []
        # (when, request, task that ends then or -1 where the request comes)
        self.events = [(time, request, -1) for request, time in enumerate(at)]

    def run(self) -> list[float]:
        taken = [0.0] * len(self.at)
        while self.events:
            now, request, task = heappop(self.events)
            if task < 0:
                self.waits[request] = [len(others) for others in self.tasks.needs]
                ready = [i for i, count in enumerate(self.waits[request]) if not count]
            else:
                ready = self._ended(request, task)
                if not self.left[request]:
                    taken[request] = now - self.at[request]
                    del self.waits[request]
            for other in ready:
                device = self._device(request, other)
                heappush(self.queues[device], (request, -self.ranks[other], other))
                self._start(device, now)
            if task >= 0:
                self._start(self._device(request, task), now)
        return taken

    def _device(self, request: int, task: int) -> int:
        planned = self.tasks.devices[task]
        turns = self.turns.get(planned, [planned])
        return turns[request % len(turns)]

    def _ended(self, request: int, task: int) -> list[int]:
        """The tasks that may run now."""
        self.left[request] -= 1
        self.free[self._device(request, task)] += 1
        waits = self.waits[request]
        ready = []
        for other in self.behind[task]:
            waits[other] -= 1
            if not waits[other]:
                ready.append(other)
        return ready

    def _start(self, device: int, now: float) -> None:
        queue = self.queues[device]
        while queue and self.free[device]:
            request, _, task = heappop(queue)
            self.free[device] -= 1
            heappush(self.events, (now + self.tasks.seconds[task], request, task))


def percentile(values: Sequence[float], share: float) -> float:
    """The least value that so large a share of the values does not exceed."""
    place = math.ceil(share * len(values)) - 1
    return sorted(values)[max(place, 0)]
