"""Runs a bundle's segments one after the other on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from compiler.runtime.bundle import Bundle, RuntimeBundleError
from compiler.runtime.interpreter import TFLiteSegment

Arrays = Mapping[str, np.ndarray]
CACHE, PRESENT = "cache.", "present."


def quantize(array: np.ndarray, scale: float, zero_point: int) -> np.ndarray:
    """real = scale * (int8 - zero_point), rounded to the nearest, ties to even, and saturated."""
    steps = np.empty(array.shape, np.float32)
    np.multiply(array, np.float32(1 / scale), out=steps, casting="same_kind")
    np.rint(steps, out=steps)
    steps += np.float32(zero_point)
    np.minimum(steps, np.float32(127), out=steps)
    np.maximum(steps, np.float32(-128), out=steps)
    return steps.astype(np.int8)


def dequantize(array: np.ndarray, scale: float, zero_point: int) -> np.ndarray:
    real = array.astype(np.float32)
    real -= np.float32(zero_point)
    real *= np.float32(scale)
    return real


class HostSegment:
    """A segment in onnxruntime: float inside, with int8 borders to the Edge TPU.

    Inputs whose name begins with "cache." are memory that the caller owns and that the segment writes in place: output
    "present.X" goes to where "cache.X" lies.
    """

    def __init__(self, path: Path, threads: int, alone: bool = False) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # Each session would keep its own; together they hold more than the weights.
        options.enable_cpu_mem_arena = False
        # Idle threads of one session would take the cores from the segment that runs next, if there is one.
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(alone)))
        # Parts of a product as small as that even out what the cores do besides: decode of SmolLM2 gains a fifth.
        options.add_session_config_entry("session.dynamic_block_base", "4")
        # Borders are int8; onnxruntime would move them inwards and compute what is float in int8.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._inputs = [i.name for i in self._session.get_inputs()]
        self._outputs = [o.name for o in self._session.get_outputs()]
        self._cached = any(name.startswith(CACHE) for name in self._inputs)

    def run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        if self._cached:
            return self._run_in_place(dict(zip(self._inputs, arrays, strict=True)))
        return list(self._session.run(self._outputs, dict(zip(self._inputs, arrays, strict=True))))

    def _run_in_place(self, arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        binding = self._session.io_binding()
        for name, array in arrays.items():
            if name.startswith(CACHE):
                binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
            else:
                binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name in self._outputs:
            cache = arrays.get(CACHE + name.removeprefix(PRESENT)) if name.startswith(PRESENT) else None
            if cache is None:
                binding.bind_output(name)
            else:
                binding.bind_output(name, "cpu", 0, cache.dtype.type, cache.shape, cache.ctypes.data)
        self._session.run_with_iobinding(binding)
        return [
            arrays[CACHE + name.removeprefix(PRESENT)] if name.startswith(PRESENT) else value.numpy()
            for name, value in zip(self._outputs, binding.get_outputs(), strict=True)
        ]


Runner = TFLiteSegment | HostSegment


class Streamed:
    """Segments of which only some are loaded at a time, so that they take at most about `limit` bytes for weights.

    Runs go through all segments again and again: the first ones stay, as many as leave room for two others; each of
    the rest is loaded while the one before it runs, and released behind its own run.
    """

    def __init__(self, open_: Callable[[int], Runner], sizes: Sequence[int], limit: int) -> None:
        self._open = open_
        room, first = limit - 2 * max(sizes), 0
        while first < len(sizes) and sizes[first] <= room:
            room -= sizes[first]
            first += 1
        self._kept = {index: open_(index) for index in range(first)}
        self._later = list(range(first, len(sizes)))
        self._ahead: dict[int, Future[Runner]] = {}
        self._loader = ThreadPoolExecutor(1, "loader")

    def run(self, index: int, arrays: list[np.ndarray]) -> list[np.ndarray]:
        if index in self._kept:
            return self._kept[index].run(arrays)
        ahead = self._ahead.pop(index, None)
        runner = ahead.result() if ahead is not None else self._open(index)
        following = self._later[(self._later.index(index) + 1) % len(self._later)]
        if following not in self._ahead and following != index:
            self._ahead[following] = self._loader.submit(self._open, following)
        return runner.run(arrays)


class _Part:
    """One of streamed segments."""

    def __init__(self, streamed: Streamed, index: int) -> None:
        self._streamed, self._index = streamed, index

    def run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        return self._streamed.run(self._index, arrays)


class Pipeline:
    """A loaded bundle. TPU segments take and give int8; host segments and the user see the model's own types.

    `program` is the manifest itself, or one of the programs of a language model in it. `limit` are bytes that weights
    may take (`Streamed`), None for all.
    """

    def __init__(
        self, bundle: Bundle, threads: int = 2, program: Mapping[str, Any] | None = None, limit: int | None = None
    ) -> None:
        self.bundle = bundle
        program = bundle.manifest if program is None else program
        self.inputs: list[dict[str, Any]] = program["inputs"]
        self.outputs: list[dict[str, Any]] = program["outputs"]
        reader = {t["name"]: i for i, s in enumerate(program["segments"]) for t in s["inputs"]}
        kept = {o["name"] for o in self.outputs}
        self._last: dict[int, list[str]] = {}
        for name, last in reader.items():
            if name not in kept:
                self._last.setdefault(last, []).append(name)
        alone = len(program["segments"]) == 1
        entries: list[dict[str, Any]] = program["segments"]
        sizes = [s["parameter_bytes"] for s in entries]
        runners: list[Runner | _Part]
        if limit is None or sum(sizes) <= limit:
            runners = [self._open(s, threads, alone) for s in entries]
        else:
            streamed = Streamed(lambda index: self._open(entries[index], threads, alone), sizes, limit)
            runners = [_Part(streamed, index) for index in range(len(entries))]
        self.segments = list(zip(entries, runners, strict=True))

    def _open(self, segment: dict[str, Any], threads: int, alone: bool) -> TFLiteSegment | HostSegment:
        path = self.bundle.path / segment["files"][0]["path"]
        try:
            if segment["device"] == "tpu":
                return TFLiteSegment(path, threads)
            return HostSegment(path, threads, alone)
        except (ValueError, RuntimeError) as error:
            raise RuntimeBundleError(f"{path}: cannot be loaded: {error}") from error

    def run(self, arrays: Arrays) -> dict[str, np.ndarray]:
        """The model's outputs for one sample. Raises ValueError for arrays that do not fit the inputs."""
        values = self.check_inputs(arrays)
        for index in range(len(self.segments)):
            self.advance(index, values)
        return {o["name"]: convert(values[o["name"]], o) for o in self.outputs}

    def advance(self, index: int, values: dict[str, np.ndarray]) -> None:
        """Run a segment on `values` and put its outputs there; what no later segment reads is dropped."""
        values.update(self.run_segment(index, values))
        for name in self._last.get(index, ()):
            del values[name]

    def samples(self, arrays: Arrays) -> list[dict[str, np.ndarray]]:
        """Samples stacked along the first axis, one by one. Raises ValueError for what does not fit the inputs."""
        shapes = {i["name"]: tuple(i["shape"]) for i in self.inputs}
        stacks = {n: stacked(a, shapes[n]) if n in shapes else a[None] for n, a in arrays.items()}
        counts = {len(a) for a in stacks.values() if a is not None}
        if any(a is None for a in stacks.values()) or len(counts) != 1:
            return [self.check_inputs(arrays)]  # which says what is wrong, if anything is
        return [self.check_inputs({n: a[i] for n, a in stacks.items() if a is not None}) for i in range(counts.pop())]

    def run_segment(self, index: int, values: Arrays) -> dict[str, np.ndarray]:
        """The outputs of one segment, as it gives them: int8 from the TPU, whatever the model has from the host."""
        segment, runner = self.segments[index]
        results = runner.run([convert(values[t["name"]], t) for t in segment["inputs"]])
        return {t["name"]: array for t, array in zip(segment["outputs"], results, strict=True)}

    def check_inputs(self, arrays: Arrays) -> dict[str, np.ndarray]:
        """The arrays with the model's types. Raises ValueError for what does not fit."""
        names = {i["name"] for i in self.inputs}
        for name in arrays:
            if name not in names:
                raise ValueError(f"array '{name}' is no input of the model; it has {', '.join(sorted(names))}")
        values = {}
        for tensor in self.inputs:
            name, shape, dtype = tensor["name"], tuple(tensor["shape"]), np.dtype(tensor["dtype"])
            if name not in arrays:
                raise ValueError(f"input '{name}' {list(shape)} is missing")
            array = np.asarray(arrays[name])
            if array.shape != shape or array.dtype.kind != dtype.kind:
                raise ValueError(
                    f"input '{name}' is {list(array.shape)} {array.dtype}; the model takes {list(shape)} {dtype}"
                )
            values[name] = array.astype(dtype, copy=False)
        return values


def stacked(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """One sample of `shape`, or several stacked along the first axis, as [samples, *shape]; None for anything else.

    Where the shape begins with a batch of 1, samples may be stacked along the batch.
    """
    if array.shape == shape:
        return array[None]
    if shape[:1] == (1,) and array.shape[1:] == shape[1:]:
        return array[:, None]
    return array if array.shape[1:] == shape else None


def convert(array: np.ndarray, tensor: Mapping[str, Any]) -> np.ndarray:
    """An array as its reader takes it: the reader's dtype and scale decide between int8 and float."""
    if "scale" not in tensor:
        return array  # sequences and other non-tensors between host segments too
    if tensor["dtype"] == "int8":
        return array if array.dtype == np.int8 else quantize(array, tensor["scale"], tensor["zero_point"])
    return dequantize(array, tensor["scale"], tensor["zero_point"]) if array.dtype == np.int8 else array
