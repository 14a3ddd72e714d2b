"""Runs the segments of a bundle, each on the device that a fleet gives it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from compiler.runtime.bundle import Bundle, RuntimeBundleError
from compiler.runtime.conversion import convert
from compiler.runtime.dataflow import Flow, Span
from compiler.runtime.devices import Cpu, Device, DeviceError, Executable
from compiler.runtime.fleet import Fleet, tpu_numbers
from compiler.runtime.inputs import Arrays, Inputs
from compiler.runtime.lazy import LazySegments
from compiler.runtime.manifest import ProgramEntry, SegmentEntry, TensorEntry
from compiler.runtime.remote import Feed, RemoteExecutable, Tensor, TensorLostError

__all__ = ["Arrays", "Pipeline", "SegmentError"]

# A device that fails now and then, and is forgiven each time, may lose the tensors of a request
# again and again.
_MOST_ATTEMPTS = 100


class SegmentError(Exception):
    """A segment that failed where no other device can help."""


class Pipeline:
    """The segments of a bundle, loaded on devices, to be run one by one; an `Executor` runs at once
    what may run at once.

    Arrays have the model's own types and shapes at its inputs and outputs. Between segments they
    are as the segment gave them, int8 from an Edge TPU, and are converted when the next one reads
    them. Several threads may run segments; each device runs as many at a time as it has slots.

    program  the manifest itself, or one of the programs of a language model in it
    limit    bytes that the weights may take in memory; beyond it segments are loaded as they run,
             on the CPU (`LazySegments`). None loads all
    fleet    the devices; without one everything runs on `threads` threads of the CPU

    Raises RuntimeBundleError for a segment that cannot be loaded, SegmentError where no device of
    the fleet can take it.
    """

    def __init__(
        self,
        bundle: Bundle,
        threads: int = 2,
        program: ProgramEntry | None = None,
        limit: int | None = None,
        fleet: Fleet | None = None,
    ) -> None:
        if program is None:
            program = bundle.manifest
        self.bundle = bundle
        self.inputs = program["inputs"]
        self.outputs = program["outputs"]
        self.segments = program["segments"]
        self.flow = Flow(program)
        self.in_place = _in_place(self.segments)
        self._model_inputs = Inputs(self.inputs)
        self._output_names = [_names(segment["outputs"]) for segment in self.segments]
        self._written_int8 = _written_int8(self.segments)
        self._last_reads = _last_reads(self.segments, self.outputs)

        total = sum(segment["parameter_bytes"] for segment in self.segments)
        if limit is not None and total <= limit:
            limit = None
        if fleet is None or limit is not None:
            # What is loaded as it runs stays on the CPU: an Edge TPU would be opened at each run.
            # Where there is no other segment, idle threads may spin.
            fleet = Fleet([], Cpu(threads, spin=len(self.segments) == 1))
        self.fleet = fleet
        # By segment what is loaded, by device. An entry is written under the `loading` lock of its
        # device; only `_close_all` has none, and what it drops is loaded again.
        self._opened: list[dict[Device, Executable]] = [{} for _ in self.segments]
        if limit is not None:
            self._open_lazily(limit)
        # What is wrong with a segment that stays loaded is said now, before anything runs.
        for index, segment in enumerate(self.segments):
            for turn in range(max(1, len(tpu_numbers(segment)))):
                self._use(index, turn, None)

    @property
    def may_lose_tensors(self) -> bool:
        """Whether tensors stay on devices of other machines, and are lost with them."""
        return any(device.holds_tensors for device in self.fleet.tpus)

    def device(self, index: int, request: int = 0) -> Device:
        """The device that runs a segment of the request of this number now; after a device is lost,
        another one."""
        return self.fleet.device(self.segments[index], request)

    def run(self, arrays: Arrays, request: int = 0) -> dict[str, np.ndarray]:
        """The model's outputs for one sample; `request` says which replicas take it.

        Raises ValueError for arrays that do not fit the inputs or hold NaN, SegmentError for a
        segment that fails, RuntimeBundleError where one has to be loaded and the bundle was
        replaced since it was opened.
        """
        return self.run_checked(self.check_inputs(arrays), request)

    def run_checked(
        self, values: Arrays, request: int = 0, spans: list[Span] | None = None
    ) -> dict[str, np.ndarray]:
        """As `run`, of what `check_inputs` gave; `spans` gets when each segment ran."""
        attempt = 0
        while True:
            try:
                return self._run_once(dict(values), request, spans)
            except TensorLostError as error:
                attempt += 1
                self.lost(error, attempt)

    def _run_once(
        self, values: dict[str, Tensor], request: int, spans: list[Span] | None
    ) -> dict[str, np.ndarray]:
        for index in range(len(self.segments)):
            begin = time.perf_counter()
            values.update(self.execute(index, values, request))
            self._drop(index, values)
            if spans is not None:
                device = self.device(index, request)
                spans.append(Span(index, device.name, begin, time.perf_counter()))
        return self.results(values)

    def check_inputs(self, arrays: Arrays) -> dict[str, np.ndarray]:
        """One sample in the model's types, which a run starts from.

        Raises ValueError for arrays that do not fit the inputs, and for NaN.
        """
        return self._model_inputs.checked(arrays)

    def samples(self, arrays: Arrays) -> list[dict[str, np.ndarray]]:
        """Samples that are stacked along the first axis, one by one, as `check_inputs` gives them.

        Raises ValueError for what does not fit the inputs.
        """
        return self._model_inputs.samples(arrays)

    def advance(self, index: int, values: dict[str, np.ndarray], request: int = 0) -> None:
        """Run a segment on `values` and put its outputs there; what no later segment reads is
        dropped.

        Raises SegmentError and RuntimeBundleError as `run` does, and then `values` is as it was.
        """
        # What the segment read is dropped only once it has run, so a failed run can be repeated.
        values.update(self.run_segment(index, values, request))
        self._drop(index, values)

    def _drop(self, index: int, values: dict[str, Any]) -> None:
        for name in self._last_reads.get(index, ()):
            del values[name]

    def run_segment(self, index: int, values: Arrays, request: int = 0) -> dict[str, np.ndarray]:
        """The outputs of one segment as it gives them: int8 from an Edge TPU, the model's own types
        from the host. `values` is not changed. Raises as `advance` does."""
        attempt = 0
        while True:
            try:
                results = self.execute(index, values, request)
                return {name: _here(tensor) for name, tensor in results.items()}
            except TensorLostError as error:
                attempt += 1
                self.lost(error, attempt)

    def execute(
        self, index: int, values: Mapping[str, Tensor], request: int = 0
    ) -> dict[str, Tensor]:
        """As `run_segment`, of tensors that may lie on other machines; so may the results.

        Raises TensorLostError besides, where one of `values` is gone with the device that held it.
        """
        tensors = self.segments[index]["inputs"]
        feeds = [self._feed(values[tensor["name"]], tensor, index) for tensor in tensors]
        results = self._use(index, request, feeds)
        return dict(zip(self._output_names[index], results, strict=True))

    def lost(self, error: TensorLostError, attempt: int) -> None:
        """Tell the fleet that a device went away with tensors, so that their request begins again.

        Raises SegmentError where it began again too often, or nobody may take over.
        """
        if attempt > _MOST_ATTEMPTS:
            raise SegmentError(f"{error}; the request began again {attempt - 1} times") from error
        self._close_all(error.holder)
        try:
            self.fleet.failed(error.holder, error)
        except DeviceError as last:
            raise SegmentError(str(last)) from last

    def results(self, values: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """The model's outputs, in its own types, among the values behind the last segment.

        Raises TensorLostError as `execute` does.
        """
        found = {}
        for tensor in self.outputs:
            name = tensor["name"]
            found[name] = convert(_here(values[name]), tensor, self._written_int8.get(name))
        return found

    def _feed(self, tensor: Tensor, entry: TensorEntry, index: int) -> np.ndarray | Feed:
        """A tensor as a segment reads it; one that lies elsewhere is converted where it goes to."""
        if isinstance(tensor, np.ndarray):
            return self._converted(tensor, entry, index)
        return Feed(tensor, entry, self._written_int8.get(entry["name"]))

    def _converted(self, array: np.ndarray, tensor: TensorEntry, index: int) -> np.ndarray:
        """An array as a segment reads it. Raises SegmentError for NaN that would become int8."""
        name = tensor["name"]
        try:
            return convert(array, tensor, self._written_int8.get(name))
        except ValueError as error:
            raise SegmentError(f"segment {index}: tensor '{name}' {error}") from error

    def _use(
        self, index: int, request: int, feeds: list[np.ndarray | Feed] | None
    ) -> Sequence[Tensor]:
        """Run a segment where it is loaded; where its device fails, load it elsewhere and repeat.
        Without feeds it is only loaded.

        A run either returns or raises, and its arrays are not changed by it. So a run that failed
        begins again from the same inputs, nothing is lost, and nothing is answered twice. The loop
        ends: a device may fail twice until the fleet gives its segments to another, or raises.
        """
        while True:
            device = self.device(index, request)
            try:
                results = self._run_on(device, index, feeds)
            except TensorLostError:
                raise  # not the fault of this device
            except DeviceError as error:
                self._close_all(device)
                self._report(index, device, error)
            except (RuntimeBundleError, SegmentError):
                raise
            except Exception as error:
                raise SegmentError(f"segment {index} failed on {device.name}: {error}") from error
            else:
                self.fleet.worked(device)
                return results

    def _run_on(
        self, device: Device, index: int, feeds: list[np.ndarray | Feed] | None
    ) -> Sequence[Tensor]:
        if feeds is None:
            with device.lock:
                self._loaded(index, device)
            return []
        if device.holds_tensors:
            # The device may be lost while this waits: then the run fails, and goes elsewhere.
            with device.lock:
                remote = cast(RemoteExecutable, self._loaded(index, device))
                return remote.run_there(feeds)
        # Before the device is taken, so that it is not idle while tensors are on their way.
        arrays = [self._brought(feed, index) for feed in feeds]
        with device.lock:
            return self._loaded(index, device).run(arrays)

    def _brought(self, feed: np.ndarray | Feed, index: int) -> np.ndarray:
        if isinstance(feed, Feed):
            return self._converted(feed.tensor.fetch(), feed.entry, index)
        return feed

    def _loaded(self, index: int, device: Device) -> Executable:
        """A segment on a device, loaded if need be."""
        executable = self._opened[index].get(device)
        if executable is not None:
            return executable
        with device.loading:
            executable = self._opened[index].get(device)
            if executable is None:
                executable = self._open(index, device)
                self._opened[index][device] = executable
        return executable

    def _open(self, index: int, device: Device) -> Executable:
        """Load a segment of the bundle that was opened. Raises RuntimeBundleError where another one
        is in its place, or none."""
        try:
            executable = device.open(self.bundle.path, self.segments[index])
        except Exception as error:
            # The old files may be gone already: then nothing is wrong with device or segment.
            self._check_folder(error)
            raise
        # Only now is it certain that what was read came from the same folder.
        self._check_folder()
        return executable

    def _open_lazily(self, limit: int) -> None:
        """Let `limit` bytes of weights be in memory; the rest is loaded when it is run."""
        cpu = self.fleet.cpu
        sizes = [segment["parameter_bytes"] for segment in self.segments]
        segments = LazySegments(lambda index: self._open(index, cpu), sizes, limit)
        self._opened = [{cpu: segments.segment(index)} for index in range(len(sizes))]

    def _check_folder(self, cause: Exception | None = None) -> None:
        folder = self.bundle.folder
        if folder is not None and folder.was_replaced():
            raise RuntimeBundleError(
                f"{self.bundle.path}: was replaced or removed since it was opened: "
                "open it again, or restart the program that runs it"
            ) from cause

    def _close_all(self, device: Device) -> None:
        """Forget all segments on a device that failed: it is opened anew, or another one is."""
        for opened in self._opened:
            opened.pop(device, None)

    def _report(self, index: int, device: Device, error: DeviceError) -> None:
        """Tell the fleet of a failure. Raises SegmentError where nobody may take over."""
        try:
            self.fleet.failed(device, error)
        except DeviceError as last:
            raise SegmentError(f"segment {index}: {last}") from last


def _here(tensor: Tensor) -> np.ndarray:
    # A sequence of ONNX is a list.
    return tensor if isinstance(tensor, np.ndarray | list) else tensor.fetch()


def _names(tensors: Sequence[TensorEntry]) -> list[str]:
    return [tensor["name"] for tensor in tensors]


def _in_place(segments: Sequence[SegmentEntry]) -> dict[str, str]:
    """By output the input whose memory it may take (`onnx_segment.Cache`)."""
    sources: dict[str, str] = {}
    for segment in segments:
        sources.update(segment.get("in_place", {}))
    return sources


def _written_int8(segments: Sequence[SegmentEntry]) -> dict[str, TensorEntry]:
    """By name the entries, with scales, of all tensors that segments give as int8."""
    entries = {}
    for segment in segments:
        for tensor in segment["outputs"]:
            if tensor["dtype"] == "int8":
                entries[tensor["name"]] = tensor
    return entries


def _last_reads(
    segments: Sequence[SegmentEntry], outputs: Sequence[TensorEntry]
) -> dict[int, list[str]]:
    """By segment the tensors that no later one reads, and that are no output of the model."""
    last_reader: dict[str, int] = {}
    for index, segment in enumerate(segments):
        for name in _names(segment["inputs"]):
            last_reader[name] = index
    for name in _names(outputs):
        last_reader.pop(name, None)
    last_reads: dict[int, list[str]] = {}
    for name, index in last_reader.items():
        last_reads.setdefault(index, []).append(name)
    return last_reads
