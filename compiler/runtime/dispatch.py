"""Who runs next: the queues of segments whose inputs are there, one for each device.

It knows neither threads nor clocks, so that the executor (executor.py) and the simulation
(simulation.py) go by the same rules.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from compiler.runtime.dataflow import Flight
from compiler.runtime.devices import Device
from compiler.runtime.remote import Tensor


class Task(NamedTuple):
    """A segment of a request; the least of a queue runs first: of the oldest request, the one with
    the longest remaining path.

    Of requests that follow each other, the first segments have the longest paths. Were these to go
    first, requests would go through the devices side by side, and leave the last devices without
    work while the first ones are busy: half the pace for BERT on two Edge TPUs.
    """

    number: int
    negated_rank: float
    segment: int
    attempt: int
    flight: Flight

    @property
    def is_stale(self) -> bool:
        """Whether its request has ended or begun again."""
        return self.flight.over or self.attempt != self.flight.attempt


class Dispatcher:
    """The queues of some devices. One thread at a time may use it.

    device_of  which device runs a segment of a request now
    wake       is called with a device for each task that is queued for it
    """

    def __init__(
        self,
        devices: Iterable[Device],
        device_of: Callable[[Flight, int], Device],
        wake: Callable[[Device], object] = lambda device: None,
    ) -> None:
        self._queues: dict[Device, list[Task]] = {device: [] for device in devices}
        self._device_of = device_of
        self._wake = wake

    def begin(self, flight: Flight) -> None:
        """Queue what a request begins with, for the first time or again."""
        for index in flight.first():
            self._push(self._task(flight, index))

    def finish(self, task: Task, results: Mapping[str, Tensor]) -> None:
        """Take what a segment gave, and queue what waited for it; nothing of a stale task."""
        if task.is_stale:
            return
        for index in task.flight.finish(task.segment, results):
            self._push(self._task(task.flight, index))

    def take(self, device: Device) -> Task | None:
        """What a device is to run next, if anything."""
        queue = self._queues[device]
        while queue:
            task = heapq.heappop(queue)
            if task.is_stale:
                continue
            if self._device_of(task.flight, task.segment) is device:
                return task
            # The device was lost since the task was queued.
            self._push(task)
        return None

    def _task(self, flight: Flight, index: int) -> Task:
        return Task(flight.number, -flight.flow.ranks[index], index, flight.attempt, flight)

    def _push(self, task: Task) -> None:
        device = self._device_of(task.flight, task.segment)
        heapq.heappush(self._queues[device], task)
        self._wake(device)
