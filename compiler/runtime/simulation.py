"""Runs requests over simulated devices on a clock of its own: each segment takes as long as was
predicted, however busy this machine is.

The queues are those of the executor, and the segments compute. So what is seen is what the runtime
would do with these devices, to be compared with what was planned.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from compiler.runtime.dataflow import Flight, Span
from compiler.runtime.devices import Device, Link, Simulated
from compiler.runtime.dispatch import Dispatcher, Task
from compiler.runtime.inputs import Arrays
from compiler.runtime.pipeline import Pipeline

# What of the predicted time a segment's link is busy, in front of computing and behind it.
_BEFORE = ("in", "stream")
_BEHIND = ("out",)


@dataclass
class Simulation:
    """A request that was simulated: seconds of the clock, and its outputs where they are kept."""

    arrived: float
    ended: float = 0.0
    spans: list[Span] = field(default_factory=list)
    results: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return self.ended - self.arrived


def simulate(
    pipeline: Pipeline,
    samples: Iterable[Arrays],
    depth: int = 1,
    keep: bool = False,
    arrivals: Iterable[float] | None = None,
) -> list[Simulation]:
    """Send samples, as `Pipeline.check_inputs` gives them, through the devices of a pipeline, up to
    `depth` on their way at a time, or each at its time of `arrivals` in seconds, in order, however
    many are; in the order of the samples. With `keep` their outputs are kept.

    The Edge TPUs are `Simulated` ones with a slowdown of 0, so that they do not wait by themselves.
    A segment takes its device for the predicted time. Of that, transfers take the link, one at a
    time where devices share it. The host is slower at each of several segments at once, as the plan
    took it to be (`host_gain`). A run that fails is repeated in no time. Raises as `Pipeline.run`
    does.
    """
    clock = _Clock(pipeline, samples, depth, keep)
    if arrivals is not None:
        return clock.run_at(arrivals)
    return clock.run()


class _Request(Flight):
    def __init__(self, pipeline: Pipeline, values: Arrays, number: int, now: float) -> None:
        super().__init__(pipeline.flow, values, number)
        self.told = Simulation(now)


class _Clock:
    """The time, and what happens when."""

    def __init__(
        self, pipeline: Pipeline, samples: Iterable[Arrays], depth: int, keep: bool
    ) -> None:
        self._pipeline = pipeline
        self._samples = iter(samples)
        self._depth = depth
        self._keep = keep
        # Whether a request that is answered lets the next one in.
        self._is_stream = True
        self._devices = pipeline.fleet.devices
        self._dispatcher = Dispatcher(self._devices, self._device_of)
        self._idle = {device: device.slots for device in self._devices}
        # Of the host's slots, which the Edge TPUs have not.
        self._gain = _host_gain(pipeline)
        # When the last transfer that was asked for ends.
        self._link_free: dict[Link, float] = {}
        self._requests: list[Simulation] = []
        self._now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._event_numbers = itertools.count()

    def run(self) -> list[Simulation]:
        for _ in range(self._depth):
            self._admit()
        self._start_tasks()
        return self._run_events()

    def run_at(self, arrivals: Iterable[float]) -> list[Simulation]:
        self._is_stream = False
        for arrival in arrivals:
            self._after(arrival, self._admit)
        return self._run_events()

    def _run_events(self) -> list[Simulation]:
        while self._events:
            self._now, _, event = heapq.heappop(self._events)
            event()
            # All that ends at this moment, before anything starts.
            if not self._events or self._events[0][0] > self._now:
                self._start_tasks()
        return self._requests

    def _device_of(self, flight: Flight, index: int) -> Device:
        return self._pipeline.device(index, flight.number)

    def _admit(self) -> None:
        """Take the next sample, if there is one."""
        values = next(self._samples, None)
        if values is None:
            return
        request = _Request(self._pipeline, values, len(self._requests), self._now)
        self._requests.append(request.told)
        if self._pipeline.segments:
            self._dispatcher.begin(request)
        else:
            self._after(0.0, lambda: self._answer(request))

    def _after(self, seconds: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self._now + seconds, next(self._event_numbers), event))

    def _start_tasks(self) -> None:
        for device in self._devices:
            while self._idle[device]:
                task = self._dispatcher.take(device)
                if task is None:
                    break
                self._idle[device] -= 1
                times = self._pipeline.segments[task.segment]["predicted_ms"]
                steps = deque(_steps(device, times, self._slowdown(device)))
                self._next_step(device, task, steps, self._now)

    def _slowdown(self, device: Device) -> float:
        """How many times as long a segment takes that starts now, beside others on the device."""
        others = device.slots - self._idle[device] - 1
        if not others:
            return 1.0
        # Between one segment at a time and all slots in use.
        gained = 1.0 + (self._gain - 1.0) * others / (device.slots - 1)
        return (others + 1) / gained

    def _next_step(
        self, device: Device, task: Task, steps: deque[tuple[Link | None, float]], begin: float
    ) -> None:
        """Spend the time of a step, then of those behind it; behind the last one the run ends."""
        if not steps:
            self._finish(device, task, begin)
            return
        link, seconds = steps.popleft()
        start = self._now
        if link is not None:
            start = max(start, self._link_free.get(link, 0.0))
            self._link_free[link] = start + seconds
        end = start + seconds - self._now
        self._after(end, lambda: self._next_step(device, task, steps, begin))

    def _finish(self, device: Device, task: Task, begin: float) -> None:
        request = task.flight
        assert isinstance(request, _Request)
        results = self._pipeline.execute(task.segment, request.values, request.number)
        self._idle[device] += 1
        request.told.spans.append(Span(task.segment, device.name, begin, self._now))
        self._dispatcher.finish(task, results)
        if request.left == 0:
            self._answer(request)

    def _answer(self, request: _Request) -> None:
        request.told.ended = self._now
        results = self._pipeline.results(request.values)
        if self._keep:
            request.told.results = results
        if self._is_stream:
            self._admit()


def _host_gain(pipeline: Pipeline) -> float:
    """How many times as much the host gets done with all slots in use as with one; of slots that
    were not planned nothing is known, and none is taken to slow the others."""
    slots = pipeline.fleet.cpu.slots
    prediction = pipeline.bundle.manifest["prediction"]
    if prediction.get("host_slots", 1) != slots:
        return float(slots)
    return prediction.get("host_gain", float(slots))


def _steps(
    device: Device, times: Mapping[str, float], slowdown: float
) -> list[tuple[Link | None, float]]:
    """The links, and seconds, that a run takes one after the other; None for the device alone.
    `times` are those of the manifest, in milliseconds."""
    if not isinstance(device, Simulated):
        return [(None, slowdown * sum(times.values()) / 1e3)]
    before = sum(times.get(what, 0.0) for what in _BEFORE)
    behind = sum(times.get(what, 0.0) for what in _BEHIND)
    alone = sum(times.values()) - before - behind
    steps = (device.link, before), (None, alone), (device.link, behind)
    return [(link, ms / 1e3) for link, ms in steps]
