"""Runs a bundle: one inference at a time, or many at once in a pipeline over its devices.

In the pipeline each device has a thread that takes the oldest request that waits for it. So while
one Edge TPU works on the third segment of one request, another works on the first segment of the
next, and results come as fast as the busiest device works on its part of one request.
"""

from __future__ import annotations

import asyncio
import functools
import heapq
import itertools
import os
import threading
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from compiler.runtime.bundle import Bundle
from compiler.runtime.devices import Device
from compiler.runtime.fleet import Fleet
from compiler.runtime.inputs import Arrays
from compiler.runtime.pipeline import Pipeline, SegmentError
from compiler.runtime.state import Session, State
from compiler.runtime.vision import Prediction, Vision

if TYPE_CHECKING:
    from compiler.runtime.pictures import Source

Results = dict[str, np.ndarray]


@dataclass(order=True)
class _Request:
    """An inference on its way: `index` is the segment that it runs next, and `values` holds what
    that one and later ones read. Requests are ordered by `number`, the oldest first."""

    number: int
    index: int = field(compare=False)
    values: dict[str, np.ndarray] = field(compare=False)
    future: Future[Results] = field(compare=False)


class Runner:
    """A bundle ready to run. Use it as a context manager, or call `close`.

        with Runner(Bundle.open("model.bundle")) as runner:
            outputs = runner.run({"images": image})

    Samples and results are dicts of arrays by the model's own names. Each input has the model's
    shape and kind of number (float64 is taken for float32), and each output the model's shape and
    type, whatever segments compute with inside.

    devices  "auto" takes all Edge TPUs that libedgetpu finds, "cpu" none, "usb:0,pci:0" these,
             "sim:2" two simulated ones, "ray" those of a Ray cluster; or Device objects
    threads  of the CPU, which runs one segment at a time with all of them
    on_loss  who takes over from an Edge TPU that is lost: "move" the others, "cpu" the CPU, "stop"
             nobody, so that the run raises SegmentError
    depth    how many requests of a stream are on their way at most; by default two more than there
             are devices

    Methods may be called by several threads. Raises RuntimeBundleError for a segment that cannot be
    loaded, DeviceChoiceError for devices that are not there, ValueError for an unknown `on_loss`.
    """

    def __init__(
        self,
        bundle: Bundle,
        devices: str | Sequence[Device] = "auto",
        threads: int = 2,
        on_loss: str = "move",
        depth: int | None = None,
    ) -> None:
        self.fleet = Fleet.of(devices, threads, bundle.manifest["segments"], on_loss=on_loss)
        self.bundle = bundle
        self.pipeline = Pipeline(bundle, threads, fleet=self.fleet)
        # One request for each device to work on, and two that wait, so that none is ever idle.
        self.depth = depth or len(self.fleet.devices) + 2
        # All of the following is read and written under the lock of this condition.
        self._changed = threading.Condition()
        self._waiting: dict[Device, list[_Request]] = {device: [] for device in self.fleet.devices}
        self._threads: list[threading.Thread] = []
        self._submitted = 0
        # Calls of `run` take turns on replicas too, on their own.
        self._runs = itertools.count()
        self._closed = False
        self._process = 0

    @property
    def notices(self) -> list[str]:
        """What a user would not expect of where segments run, in one line each: no Edge TPU, one
        that was lost."""
        return self.fleet.notices

    def run(self, inputs: Arrays) -> Results:
        """The model's outputs for one sample, in the calling thread.

        Raises ValueError for arrays that do not fit the inputs or hold NaN, SegmentError for a
        segment that fails, RuntimeBundleError where a lost device's segment has to be loaded again
        and the bundle was replaced since it was opened, RuntimeError where the runner is closed.
        """
        self._check_open()
        try:
            return self.pipeline.run(inputs, next(self._runs))
        except ValueError as error:
            state = self.bundle.manifest.get("state", [])
            if any(entry["input"] not in inputs for entry in state):
                raise ValueError(f"{error}: `session` carries the state of a sequence") from error
            raise

    def session(self) -> Session:
        """A sequence of a model with state, such as a recording for a voice detector.

            with runner.session() as session:
                for frame in frames:
                    outputs = session.run({"input": frame})

        Raises ValueError for a model without state.
        """
        if "state" not in self.bundle.manifest:
            raise ValueError(
                f"{self.bundle.path}: the model has no state: `run` takes its samples; --state "
                "names one when it is built"
            )
        return Session(self.run, State.of(self.bundle.manifest))

    def first_step(self, inputs: Arrays) -> Arrays:
        """Inputs of a sequence's first step, as a picture alone is one: a state is zeros there."""
        return State.of(self.bundle.manifest).with_state(inputs)

    @functools.cached_property
    def vision(self) -> Vision:
        """How pictures become inputs, and outputs predictions. Raises VisionError where the bundle
        does not say."""
        return Vision(self.bundle.manifest)

    def look(self, picture: Source, least: float | None = None) -> list[Prediction]:
        """What a classifier or a detector says of a picture: a Pillow image, the path of a file, or
        a file's bytes. Best first, objects that score `least` or more.

        Raises PictureError for what is no picture, VisionError for a bundle that does not say how
        pictures become inputs or what its outputs mean, and what `run` raises.
        """
        prepared = self.vision.prepare(picture)
        outputs = self.run(self.first_step(self.vision.inputs(prepared)))
        return self.vision.read(outputs, prepared, least)

    def watch(
        self, pictures: Iterable[Source], least: float | None = None
    ) -> Iterator[list[Prediction]]:
        """As `look`, for many pictures or the frames of a video, at the rate of `stream`."""
        for prepared, outputs in self.vision.looks(pictures, self.stream):
            yield self.vision.read(outputs, prepared, least)

    def submit(self, inputs: Arrays) -> Future[Results]:
        """Send a sample into the pipeline; the future gets its outputs, or SegmentError or
        RuntimeBundleError as `run` raises them. Cancelling it stops the request before its next
        segment.

        Raises ValueError and RuntimeError as `run` does, and RuntimeError in a fork of the process
        that began to submit.
        """
        values = self.pipeline.check_inputs(inputs)
        request = _Request(0, 0, values, Future())
        if not self.pipeline.segments:
            # A model whose outputs are its inputs.
            request.future.set_result(self.pipeline.results(values))
            return request.future
        with self._changed:
            self._check_open()
            if not self._threads:
                self._start()
            if os.getpid() != self._process:
                raise RuntimeError(
                    "the runner's threads are in the process that this one was forked from: "
                    "open another"
                )
            request.number = self._submitted
            self._submitted += 1
            self._push(request)
        return request.future

    def stream(self, inputs: Iterable[Arrays]) -> Iterator[Results]:
        """The outputs of many samples, in their order, at the pipeline's full rate.

        Samples are taken from `inputs` as results are taken from here, at most `depth` ahead. The
        first failure ends the stream, with the errors of `submit`. Of a model with state they are
        the steps of one sequence, which wait for each other.
        """
        if "state" in self.bundle.manifest:
            yield from self.session().stream(inputs)
            return
        pending: deque[Future[Results]] = deque()
        try:
            for sample in inputs:
                pending.append(self.submit(sample))
                if len(pending) >= self.depth:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()

    async def run_async(self, inputs: Arrays) -> Results:
        """As `run`, without blocking the event loop."""
        return await asyncio.wrap_future(self.submit(inputs))

    async def stream_async(self, inputs: AsyncIterable[Arrays]) -> AsyncIterator[Results]:
        """As `stream`, without blocking the event loop."""
        pending: deque[asyncio.Future[Results]] = deque()
        try:
            async for sample in inputs:
                pending.append(asyncio.wrap_future(self.submit(sample)))
                if len(pending) >= self.depth:
                    yield await pending.popleft()
            while pending:
                yield await pending.popleft()
        finally:
            for future in pending:
                future.cancel()

    def close(self) -> None:
        """Let each device finish its segment, cancel all requests on their way, end the threads."""
        with self._changed:
            self._closed = True
            left: list[_Request] = []
            for waiting in self._waiting.values():
                left += waiting
                waiting.clear()
            self._changed.notify_all()
        # Without the lock: cancelling runs callbacks of the caller.
        for request in left:
            request.future.cancel()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the runner is closed")

    def _start(self) -> None:
        """Start the threads; `_changed` is held. `run` needs none, so only a first request does."""
        self._process = os.getpid()
        for device in self.fleet.devices:
            name = f"runner {device.name}"
            # A program that forgets to close the runner can end all the same.
            thread = threading.Thread(target=self._work, args=(device,), name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def _push(self, request: _Request) -> None:
        """Queue a request at the device of its next segment; `_changed` is held."""
        device = self.pipeline.device(request.index, request.number)
        heapq.heappush(self._waiting[device], request)
        self._changed.notify_all()

    def _take(self, device: Device) -> _Request | None:
        """The oldest request that waits for a device; None when the runner is closed."""
        with self._changed:
            while not self._closed and not self._waiting[device]:
                self._changed.wait()
            if self._closed:
                return None
            return heapq.heappop(self._waiting[device])

    def _work(self, device: Device) -> None:
        """What a device's thread does: one segment of one request after the other."""
        while (request := self._take(device)) is not None:
            if not request.future.cancelled():
                self._advance(request)

    def _advance(self, request: _Request) -> None:
        """Run a request's next segment, then answer it or send it on.

        A request is in one queue or with one thread, never in two places, so it is answered once.
        """
        try:
            # If the device was lost since the request was queued, this thread runs the segment on
            # the device that took over, under that one's lock.
            self.pipeline.advance(request.index, request.values, request.number)
        except BaseException as error:
            _fail(request, error)
            return
        request.index += 1
        if request.index == len(self.pipeline.segments):
            _answer(request.future, self.pipeline.results(request.values))
            return
        with self._changed:
            if not self._closed:
                self._push(request)
                return
        # `close` found it in no queue.
        request.future.cancel()


def _answer(future: Future[Results], results: Results) -> None:
    if future.set_running_or_notify_cancel():  # False where it was cancelled
        future.set_result(results)


def _fail(request: _Request, error: BaseException) -> None:
    if isinstance(error, SegmentError):
        # Which of the many requests on their way it was.
        named = SegmentError(f"request {request.number}: {error}")
        named.__cause__ = error.__cause__
        error = named
    if request.future.set_running_or_notify_cancel():
        request.future.set_exception(error)
