"""Runs a bundle: one inference at a time, or many at once in a pipeline over its devices."""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

from compiler.runtime.bundle import Bundle
from compiler.runtime.devices import Device
from compiler.runtime.executor import Executor, Results
from compiler.runtime.fleet import Fleet, HostThreads
from compiler.runtime.inputs import Arrays
from compiler.runtime.pipeline import Pipeline
from compiler.runtime.state import Session, State
from compiler.runtime.vision import Prediction, Vision

if TYPE_CHECKING:
    from compiler.runtime.pictures import Source


class Runner:
    """A bundle ready to run. Use it as a context manager, or call `close`.

        with Runner(Bundle.open("model.bundle")) as runner:
            outputs = runner.run({"images": image})

    Samples and results are dicts of arrays by the model's own names. Each input has the model's
    shape and kind of number (float64 is taken for float32), and each output the model's shape and
    type, whatever segments compute with inside.

    devices  "auto" takes all Edge TPUs that libedgetpu finds, "cpu" none, "usb:0,pci:0" these,
             "sim:2" two simulated ones, "ray" those of a Ray cluster; or Device objects
    threads  of the CPU, or `HostThreads` where segments are to share it otherwise than by default
    on_loss  who takes over from an Edge TPU that is lost: "move" the others, "cpu" the CPU, "stop"
             nobody, so that the run raises SegmentError
    depth    how many requests of a stream are on their way at most; by default two more than there
             are devices and host workers

    Methods may be called by several threads. Raises RuntimeBundleError for a segment that cannot be
    loaded, DeviceChoiceError for devices that are not there, ValueError for an unknown `on_loss`.
    """

    def __init__(
        self,
        bundle: Bundle,
        devices: str | Sequence[Device] = "auto",
        threads: int | HostThreads = 2,
        on_loss: str = "move",
        depth: int | None = None,
    ) -> None:
        self.fleet = Fleet.of(devices, threads, bundle.manifest, on_loss=on_loss)
        self.bundle = bundle
        self.pipeline = Pipeline(bundle, fleet=self.fleet)
        self.executor = Executor(self.fleet)
        self.depth = depth or self.executor.depth

    @property
    def notices(self) -> list[str]:
        """What a user would not expect of where segments run, in one line each: no Edge TPU, one
        that was lost."""
        return self.fleet.notices

    def run(self, inputs: Arrays) -> Results:
        """The model's outputs for one sample.

        Raises ValueError for arrays that do not fit the inputs or hold NaN, SegmentError for a
        segment that fails, RuntimeBundleError where a lost device's segment has to be loaded again
        and the bundle was replaced since it was opened, RuntimeError where the runner is closed.
        """
        self.executor.check_open()
        try:
            return self.executor.run(self.pipeline, self.pipeline.check_inputs(inputs))
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
        return self.executor.submit(self.pipeline, self.pipeline.check_inputs(inputs))

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
        self.executor.close()

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
