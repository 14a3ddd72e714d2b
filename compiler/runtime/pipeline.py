"""Runs a bundle's segments one after the other, on the devices that a fleet gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from compiler.runtime.bundle import Bundle, RuntimeBundleError
from compiler.runtime.devices import Cpu, Device, DeviceError, Executable
from compiler.runtime.fleet import Fleet
from compiler.runtime.manifest import ProgramEntry, fixed_shape

Arrays = Mapping[str, np.ndarray]
T = TypeVar("T")


def quantize(array: np.ndarray, scale: float, zero_point: int) -> np.ndarray:
    """real = scale * (int8 - zero_point), rounded to the nearest, ties to even, and saturated.

    Raises ValueError for NaN, which no int8 stands for.
    """
    steps = np.empty(array.shape, np.float32)
    np.multiply(array, np.float32(1 / scale), out=steps, casting="same_kind")
    np.rint(steps, out=steps)
    steps += np.float32(zero_point)
    np.minimum(steps, np.float32(127), out=steps)
    np.maximum(steps, np.float32(-128), out=steps)
    if np.isnan(steps.min(initial=0)):
        raise ValueError("holds NaN, which int8 has not")
    return steps.astype(np.int8)


def dequantize(array: np.ndarray, scale: float, zero_point: int) -> np.ndarray:
    real = array.astype(np.float32)
    real -= np.float32(zero_point)
    real *= np.float32(scale)
    return real


class SegmentError(Exception):
    """A segment that failed where no other device can help."""


class Streamed:
    """Segments of which only some are loaded at a time, so that they take at most about `limit`
    bytes for weights.

    Runs go through all segments again and again: the first ones stay, as many as leave room for two
    others; each of the rest is loaded while the one before it runs, and released behind its own
    run.
    """

    def __init__(
        self, open_: Callable[[int], Executable], sizes: Sequence[int], limit: int
    ) -> None:
        self._open = open_
        room, first = limit - 2 * max(sizes), 0
        while first < len(sizes) and sizes[first] <= room:
            room -= sizes[first]
            first += 1
        self._kept = {index: open_(index) for index in range(first)}
        self._later = list(range(first, len(sizes)))
        self._ahead: dict[int, Future[Executable]] = {}
        self._loader = ThreadPoolExecutor(1, "loader")

    def run(self, index: int, arrays: list[np.ndarray]) -> list[np.ndarray]:
        if index in self._kept:
            return self._kept[index].run(arrays)
        ahead = self._ahead.pop(index, None)
        executable = ahead.result() if ahead is not None else self._open(index)
        following = self._later[(self._later.index(index) + 1) % len(self._later)]
        if following not in self._ahead and following != index:
            self._ahead[following] = self._loader.submit(self._open, following)
        return executable.run(arrays)


class _Part:
    """One of streamed segments."""

    def __init__(self, streamed: Streamed, index: int) -> None:
        self._streamed, self._index = streamed, index

    def run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        return self._streamed.run(self._index, arrays)


class Pipeline:
    """The segments of a bundle, loaded on a fleet's devices. TPU segments take and give int8; host
    segments and the user see the model's own types.

    `program` is the manifest itself, or one of the programs of a language model in it. `limit` are
    bytes that weights may take (`Streamed`), None for all. Without a `fleet` everything runs on the
    CPU.
    """

    def __init__(
        self,
        bundle: Bundle,
        threads: int = 2,
        program: ProgramEntry | None = None,
        limit: int | None = None,
        fleet: Fleet | None = None,
    ) -> None:
        self.bundle = bundle
        program = bundle.manifest if program is None else program
        self.inputs = program["inputs"]
        self.outputs = program["outputs"]
        self.segments = program["segments"]
        self._types = {i["name"]: (fixed_shape(i), np.dtype(i["dtype"])) for i in self.inputs}
        # By output the input whose memory it may take (`host.Cache`).
        self.in_place = {
            output: source
            for s in self.segments
            for output, source in s.get("in_place", {}).items()
        }
        self._nan_inputs = {i["name"] for i in self.inputs if i.get("nan")}
        self._gives = [[t["name"] for t in s["outputs"]] for s in self.segments]
        reader = {t["name"]: i for i, s in enumerate(self.segments) for t in s["inputs"]}
        kept = {o["name"] for o in self.outputs}
        self._last: dict[int, list[str]] = {}
        for name, last in reader.items():
            if name not in kept:
                self._last.setdefault(last, []).append(name)
        sizes = [s["parameter_bytes"] for s in self.segments]
        streams = limit is not None and sum(sizes) > limit
        if fleet is None or streams:
            fleet = Fleet([], Cpu(threads, alone=len(self.segments) == 1))
        self.fleet = fleet
        self._made = {
            t["name"]: t for s in self.segments for t in s["outputs"] if t["dtype"] == "int8"
        }
        self._opened: list[tuple[Device, Executable] | None] = [None] * len(self.segments)
        if streams:
            assert limit is not None
            streamed = Streamed(lambda index: self._open(index, fleet.cpu), sizes, limit)
            self._opened = [(fleet.cpu, _Part(streamed, index)) for index in range(len(sizes))]
        for index in range(len(self.segments)):
            self._use(index, lambda _: None)

    def device(self, index: int) -> Device:
        """Who runs a segment now."""
        return self.fleet.device(self.segments[index])

    def _open(self, index: int, device: Device) -> Executable:
        return device.open(self.bundle.path, self.segments[index])

    def _use(self, index: int, use: Callable[[Executable], T]) -> T:
        """Use a segment where it is loaded; where its device fails, on another. Raises
        SegmentError."""
        while True:
            device = self.device(index)
            try:
                with device.lock:
                    opened = self._opened[index]
                    if opened is None or opened[0] is not device:
                        opened = self._opened[index] = device, self._open(index, device)
                    result = use(opened[1])
            except DeviceError as error:
                self._drop(device)
                try:
                    self.fleet.failed(device, error)
                except DeviceError as last:
                    raise SegmentError(f"segment {index}: {last}") from last
            except RuntimeBundleError:
                raise
            except Exception as error:
                raise SegmentError(f"segment {index} failed on {device.name}: {error}") from error
            else:
                self.fleet.worked(device)
                return result

    def _drop(self, device: Device) -> None:
        for index, opened in enumerate(self._opened):
            if opened is not None and opened[0] is device:
                self._opened[index] = None

    def run(self, arrays: Arrays) -> dict[str, np.ndarray]:
        """The model's outputs for one sample. Raises ValueError for arrays that do not fit the
        inputs."""
        values = self.check_inputs(arrays)
        for index in range(len(self.segments)):
            self.advance(index, values)
        return self.results(values)

    def results(self, values: Arrays) -> dict[str, np.ndarray]:
        """The model's outputs among the values of a run."""
        return {
            o["name"]: convert(values[o["name"]], o, self._made.get(o["name"]))
            for o in self.outputs
        }

    def advance(self, index: int, values: dict[str, np.ndarray]) -> None:
        """Run a segment on `values` and put its outputs there; what no later segment reads is
        dropped."""
        values.update(self.run_segment(index, values))
        for name in self._last.get(index, ()):
            del values[name]

    def samples(self, arrays: Arrays) -> list[dict[str, np.ndarray]]:
        """Samples stacked along the first axis, one by one. Raises ValueError for what does not fit
        the inputs."""
        stacks = {
            n: stacked(a, self._types[n][0]) if n in self._types else a[None]
            for n, a in arrays.items()
        }
        counts = {len(a) for a in stacks.values() if a is not None}
        if any(a is None for a in stacks.values()) or len(counts) != 1:
            return [self.check_inputs(arrays)]  # which says what is wrong, if anything is
        return [
            self.check_inputs({n: a[i] for n, a in stacks.items() if a is not None})
            for i in range(counts.pop())
        ]

    def run_segment(self, index: int, values: Arrays) -> dict[str, np.ndarray]:
        """The outputs of one segment, as it gives them: int8 from the TPU, whatever the model has
        from the host."""
        segment = self.segments[index]
        arrays = [self._converted(values[t["name"]], t, index) for t in segment["inputs"]]
        results = self._use(index, lambda executable: executable.run(arrays))
        return dict(zip(self._gives[index], results, strict=True))

    def _converted(self, array: np.ndarray, tensor: Mapping[str, Any], index: int) -> np.ndarray:
        """An array as a segment takes it. Raises SegmentError."""
        try:
            return convert(array, tensor, self._made.get(tensor["name"]))
        except ValueError as error:
            raise SegmentError(f"segment {index}: tensor '{tensor['name']}' {error}") from error

    def check_inputs(self, arrays: Arrays) -> dict[str, np.ndarray]:
        """The arrays with the model's types. Raises ValueError for what does not fit, and for NaN,
        of which int8 and operators of the host may make finite numbers, where the model does not
        look for it itself."""
        for name in arrays:
            if name not in self._types:
                raise ValueError(
                    f"array '{name}' is no input of the model; it has {', '.join(sorted(self._types))}"
                )
        values = {}
        for name, (shape, dtype) in self._types.items():
            if name not in arrays:
                raise ValueError(f"input '{name}' {list(shape)} is missing")
            array = np.asarray(arrays[name])
            if array.shape != shape or array.dtype.kind != dtype.kind:
                raise ValueError(
                    f"input '{name}' is {list(array.shape)} {array.dtype}; the model takes {list(shape)} {dtype}"
                )
            with np.errstate(over="ignore"):  # infinity is taken as the largest number
                values[name] = array.astype(dtype, copy=False)
            if (
                dtype.kind == "f"
                and name not in self._nan_inputs
                and np.isnan(values[name].min(initial=0))
            ):
                raise ValueError(
                    f"input '{name}' {list(shape)} holds NaN; replace it before the model runs"
                )
        return values


def stacked(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """One sample of `shape`, or several stacked along the first axis, as [samples, *shape]; None
    for anything else.

    Where the shape begins with a batch of 1, samples may be stacked along the batch.
    """
    if array.shape == shape:
        return array[None]
    if shape[:1] == (1,) and array.shape[1:] == shape[1:]:
        return array[:, None]
    return array if array.shape[1:] == shape else None


def convert(
    array: np.ndarray, tensor: Mapping[str, Any], made: Mapping[str, Any] | None = None
) -> np.ndarray:
    """An array as its reader takes it: the reader's dtype and scale decide between int8 and float.

    `made` is the entry of the segment that it comes from; int8 of another scale than the reader's
    is changed to it.
    """
    if "scale" not in tensor:
        return array  # sequences and other non-tensors between host segments too
    if array.dtype == np.int8:
        source = tensor if made is None else made
        if tensor["dtype"] != "int8":
            return dequantize(array, source["scale"], source["zero_point"])
        if source["scale"] == tensor["scale"] and source["zero_point"] == tensor["zero_point"]:
            return array
        array = dequantize(array, source["scale"], source["zero_point"])
    return (
        quantize(array, tensor["scale"], tensor["zero_point"])
        if tensor["dtype"] == "int8"
        else array
    )
