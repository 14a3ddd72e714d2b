"""Runs a bundle: one inference at a time, or as a pipeline over its devices.

In the pipeline each device has a thread that takes the oldest request that waits for it, so that
while one Edge TPU works on the third segment of one request, another works on the first segment of
the next. Between results passes as long as the busiest device takes for one request.
"""

from __future__ import annotations

import asyncio
import heapq
import os
import threading
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np

from compiler.runtime.bundle import Bundle
from compiler.runtime.devices import Device
from compiler.runtime.fleet import Fleet
from compiler.runtime.pipeline import Arrays, Pipeline, SegmentError

Results = dict[str, np.ndarray]


@dataclass(order=True)
class _Request:
    """An inference on its way: the next segment to run, and what that and later ones read."""

    number: int
    index: int = field(compare=False)
    values: dict[str, np.ndarray] = field(compare=False)
    future: Future[Results] = field(compare=False)


class Runner:
    """A bundle ready to run. Use it as a context manager, or call `close`.

    `devices`: "auto" takes all Edge TPUs that libedgetpu finds, "cpu" none; names such as
    "usb:0,pci:0"; "sim:2" for simulated ones; or Device objects. `threads` are for the CPU, which
    runs one segment at a time with all of them. `on_loss` says who takes over from an Edge TPU that
    is lost: "move" the others, "cpu" the CPU, "stop" nobody. `depth` bounds how many requests of a
    stream are on their way.
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
        self.depth = depth or len(self.fleet.devices) + 2
        self._waiting: dict[Device, list[_Request]] = {device: [] for device in self.fleet.devices}
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._count, self._closed, self._process = 0, False, 0

    @property
    def notices(self) -> list[str]:
        """What a user would not expect of where segments run: no Edge TPU, one that was lost."""
        return self.fleet.notices

    def run(self, inputs: Arrays) -> Results:
        """The model's outputs for one sample. Raises ValueError for arrays that do not fit,
        SegmentError."""
        self._check_open()
        return self.pipeline.run(inputs)

    def submit(self, inputs: Arrays) -> Future[Results]:
        """Send a sample into the pipeline; the future has its outputs. Cancelling it stops it
        before its next segment.

        Raises ValueError for arrays that do not fit the inputs.
        """
        request = _Request(0, 0, self.pipeline.check_inputs(inputs), Future())
        if not self.pipeline.segments:
            request.future.set_result(self.pipeline.run(inputs))
            return request.future
        with self._changed:
            self._check_open()
            if not self._threads:
                self._start()
            if os.getpid() != self._process:
                raise RuntimeError(
                    "the runner's threads are in the process that this one was forked from: open another"
                )
            request.number = self._count
            self._count += 1
            self._push(request)
        return request.future

    def stream(self, inputs: Iterable[Arrays]) -> Iterator[Results]:
        """Outputs in the order of the inputs, which are taken as there is room. A failure ends the
        stream."""
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
        """Let each device finish its segment, cancel what is on its way, end the threads."""
        with self._changed:
            self._closed = True
            left = [request for waiting in self._waiting.values() for request in waiting]
            for waiting in self._waiting.values():
                waiting.clear()
            self._changed.notify_all()
        for request in left:
            request.future.cancel()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the runner is closed")

    def _start(self) -> None:
        self._process = os.getpid()
        for device in self.fleet.devices:
            thread = threading.Thread(
                target=self._work, args=(device,), name=f"runner {device.name}", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def _push(self, request: _Request) -> None:
        """Queue a request at the device of its next segment; `_changed` is held."""
        heapq.heappush(self._waiting[self.pipeline.device(request.index)], request)
        self._changed.notify_all()

    def _take(self, device: Device) -> _Request | None:
        """The oldest request that waits for a device; None when the runner is closed."""
        with self._changed:
            while not self._closed and not self._waiting[device]:
                self._changed.wait()
            return None if self._closed else heapq.heappop(self._waiting[device])

    def _work(self, device: Device) -> None:
        while (request := self._take(device)) is not None:
            if request.future.cancelled():
                continue
            try:
                # Where the device was lost meanwhile, this runs on its heir, which has a lock of
                # its own.
                self.pipeline.advance(request.index, request.values)
            except BaseException as error:
                _finish(request.future, error=_named(error, request.number))
                continue
            request.index += 1
            if request.index < len(self.pipeline.segments):
                with self._changed:
                    if self._closed:
                        request.future.cancel()
                    else:
                        self._push(request)
            else:
                _finish(request.future, self.pipeline.results(request.values))


def _named(error: BaseException, number: int) -> BaseException:
    if not isinstance(error, SegmentError):
        return error
    named = SegmentError(f"request {number}: {error}")
    named.__cause__ = error.__cause__
    return named


def _finish(
    future: Future[Results], results: Results | None = None, error: BaseException | None = None
) -> None:
    """Answer a request, unless it was cancelled."""
    if not future.set_running_or_notify_cancel():
        return
    if error is not None:
        future.set_exception(error)
    else:
        assert results is not None
        future.set_result(results)
