"""Runs requests over the devices of a fleet by the flow of their data: a segment starts when its
inputs are there and its device is free.

Each slot of a device has a thread. So segments of one request that do not depend on each other run
at once, and while one Edge TPU works on the third segment of one request, another works on the
first segment of the next: results come as fast as the busiest device works on its part of one.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from concurrent.futures import CancelledError, Future
from queue import SimpleQueue

import numpy as np

from compiler.runtime.dataflow import Flight, Span
from compiler.runtime.devices import Device
from compiler.runtime.dispatch import Dispatcher, Task
from compiler.runtime.fleet import Fleet
from compiler.runtime.inputs import Arrays
from compiler.runtime.pipeline import Pipeline, SegmentError
from compiler.runtime.remote import TensorLostError

Results = dict[str, np.ndarray]


class _Request(Flight):
    """A request, and what it is answered by. `spans` is where its segments note when they ran."""

    def __init__(
        self, pipeline: Pipeline, values: Arrays, number: int, spans: list[Span] | None = None
    ) -> None:
        super().__init__(pipeline.flow, values, number, pipeline.may_lose_tensors)
        self.pipeline = pipeline
        self.future: Future[Results] = Future()
        self.spans = spans


class Executor:
    """Runs requests of some pipelines of one fleet. Any thread may ask.

    `depth` is how many requests should be on their way for the devices to be busy.
    """

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        slots = sum(device.slots for device in fleet.devices)
        # One request for each slot to work on, and two that wait, so that none is ever idle.
        self.depth = slots + 2
        self._has_one_slot = slots == 1
        # A token for each task that was queued for a device, and at the end one for each thread. A
        # token whose task is gone wakes a thread for nothing. A queue wakes a thread faster than a
        # condition does.
        tokens: dict[Device, SimpleQueue[None]] = {}
        for device in fleet.devices:
            tokens[device] = SimpleQueue()
        self._tokens = tokens
        # All of the following is read and written under this lock.
        self._lock = threading.Lock()
        # What it calls does not refer to the executor: the devices are let go with the last one
        # that does.
        self._dispatcher = Dispatcher(
            fleet.devices, _device_of, lambda device: tokens[device].put(None)
        )
        self._threads: list[threading.Thread] = []
        self._requests: set[_Request] = set()
        self._numbers = itertools.count()
        self._closed = False
        self._process = 0

    def run(self, pipeline: Pipeline, values: Arrays, spans: list[Span] | None = None) -> Results:
        """The model's outputs for one sample, as `Pipeline.check_inputs` gives it.

        Where no two segments may run at once, all runs in the calling thread. Raises SegmentError
        for a segment that fails, RuntimeBundleError where one has to be loaded again and the bundle
        was replaced, RuntimeError where the executor is closed.
        """
        self.check_open()
        if self._runs_in_turn(pipeline):
            return pipeline.run_checked(values, next(self._numbers), spans)
        future = self.submit(pipeline, values, spans)
        try:
            return future.result()
        except CancelledError:
            raise RuntimeError("the runner was closed meanwhile") from None
        except BaseException:
            future.cancel()  # where the wait was interrupted
            raise

    def _runs_in_turn(self, pipeline: Pipeline) -> bool:
        """Whether no two segments of a request may run at once."""
        if self._has_one_slot or pipeline.flow.is_chain:
            return True
        # A pipeline that loads its segments as they run has devices of its own.
        return pipeline.fleet is not self.fleet or self._is_in_a_fork

    def submit(
        self, pipeline: Pipeline, values: Arrays, spans: list[Span] | None = None
    ) -> Future[Results]:
        """As `run`, without waiting. Cancelling the future stops the request before its next
        segment.

        Raises RuntimeError where the executor is closed, and in a fork of the process that began to
        submit.
        """
        with self._lock:
            self.check_open()
            request = _Request(pipeline, values, next(self._numbers), spans)
            if pipeline.segments:
                if not self._threads:
                    self._start()
                if self._is_in_a_fork:
                    raise RuntimeError(
                        "the runner's threads are in the process that this one was forked from: "
                        "open another"
                    )
                self._requests.add(request)
                self._dispatcher.begin(request)
        if not pipeline.segments:
            # A model whose outputs are its inputs.
            request.future.set_result(pipeline.results(values))
        return request.future

    def close(self) -> None:
        """Let each device finish its segment, cancel all requests on their way, end the threads."""
        with self._lock:
            self._closed = True
            left = list(self._requests)
            for request in left:
                request.over = True
            self._requests.clear()
            for device in self.fleet.devices:
                for _ in range(device.slots):
                    self._tokens[device].put(None)
        # Without the lock: cancelling runs callbacks of the caller.
        for request in left:
            request.future.cancel()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    @property
    def _is_in_a_fork(self) -> bool:
        """Whether the threads are in the process that this one was forked from."""
        return bool(self._threads) and os.getpid() != self._process

    def check_open(self) -> None:
        """Raises RuntimeError where the executor is closed."""
        if self._closed:
            raise RuntimeError("the runner is closed")

    def _start(self) -> None:
        """Start the threads; the lock is held. Chains in the caller's thread need none, so only a
        first request does."""
        self._process = os.getpid()
        for device in self.fleet.devices:
            for _ in range(device.slots):
                name = f"runner {device.name}"
                # A program that forgets to close the runner can end all the same.
                thread = threading.Thread(target=self._work, args=(device,), name=name, daemon=True)
                self._threads.append(thread)
                thread.start()

    def _work(self, device: Device) -> None:
        """What a thread of a device does: one segment of one request after the other."""
        task = self._take(device)
        while task is not None:
            self._run(device, task)
            # Nobody may hold the request while this waits for the next one.
            task = None
            task = self._take(device)

    def _take(self, device: Device) -> Task | None:
        """The next task of a device; None when the executor is closed."""
        while True:
            self._tokens[device].get()
            with self._lock:
                if self._closed:
                    return None
                task = self._dispatcher.take(device)
                while task is not None and self._was_cancelled(task):
                    task = self._dispatcher.take(device)
            if task is not None:
                return task

    def _was_cancelled(self, task: Task) -> bool:
        request = _request(task)
        if not request.future.cancelled():
            return False
        self._end(request)
        return True

    def _end(self, request: _Request) -> None:
        """Nothing more is to be run for a request; the lock is held."""
        request.over = True
        self._requests.discard(request)

    def _run(self, device: Device, task: Task) -> None:
        """Run a segment, then answer its request or queue what waited for it."""
        request = _request(task)
        begin = time.perf_counter()
        try:
            results = request.pipeline.execute(task.segment, request.values, request.number)
        except TensorLostError as error:
            self._begin_again(task, error)
            return
        except BaseException as error:
            self._fail(task, error)
            return
        if request.spans is not None:
            request.spans.append(Span(task.segment, device.name, begin, time.perf_counter()))
        with self._lock:
            self._dispatcher.finish(task, results)
            is_last = not task.is_stale and request.left == 0
        if is_last:
            self._answer(task)

    def _answer(self, task: Task) -> None:
        """All segments have run, and only the thread that ran the last one is here."""
        request = _request(task)
        try:
            results = request.pipeline.results(request.values)
        except TensorLostError as error:
            self._begin_again(task, error)
            return
        with self._lock:
            if task.is_stale:
                return  # `close` cancelled it
            self._end(request)
        if request.future.set_running_or_notify_cancel():  # False where it was cancelled
            request.future.set_result(results)

    def _begin_again(self, task: Task, error: TensorLostError) -> None:
        """A node went away with tensors that the request still needs."""
        request = _request(task)
        with self._lock:
            # Of several segments that miss tensors, the first begins again.
            if task.is_stale:
                return
            request.restart()
        try:
            request.pipeline.lost(error, request.attempt)
        except BaseException as last:
            self._fail(task._replace(attempt=request.attempt), last)
            return
        with self._lock:
            if not request.over:
                self._dispatcher.begin(request)

    def _fail(self, task: Task, error: BaseException) -> None:
        request = _request(task)
        with self._lock:
            # Its other segments that run now may fail as well: one failure is told.
            if task.is_stale:
                return
            self._end(request)
        if isinstance(error, SegmentError):
            # Which of the many requests on their way it was.
            named = SegmentError(f"request {request.number}: {error}")
            named.__cause__ = error.__cause__
            error = named
        if request.future.set_running_or_notify_cancel():
            request.future.set_exception(error)


def _request(task: Task) -> _Request:
    assert isinstance(task.flight, _Request)
    return task.flight


def _device_of(flight: Flight, index: int) -> Device:
    assert isinstance(flight, _Request)
    return flight.pipeline.device(index, flight.number)
