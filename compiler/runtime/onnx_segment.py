"""One host segment on onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# A host segment that quantizes its own outputs has one more output for each, with this suffix,
# which is NaN where NaN became int8. The model's metadata says how many, under this key; they come
# last.
NAN_SUMS = "coral_bundle.nan_sums"
NAN_SUM = "/nan_sum"


class Cache(np.ndarray):
    """Memory that segments may write in place.

    Segments get bare pointers to it. So it is always a whole array that this module allocated, or
    rows of one, and never an array of a caller, which may be broadcast, strided or read-only.
    """

    @classmethod
    def zeros(cls, shape: Sequence[int]) -> Cache:
        return np.zeros(tuple(shape), np.float32).view(cls)


class HostSegment:
    """A segment on onnxruntime: float inside, int8 where it borders on the Edge TPU.

    `spin` lets idle threads wait for work without sleeping: right where no other segment wants the
    cores. `in_place` names, for some outputs, the input whose memory they take, if that input is a
    `Cache`; of any other array the output is memory of its own, and the input stays as it was.

    Raises ValueError where such a pair does not have one static float32 shape, and for a file that
    cannot be loaded what onnxruntime raises: classes of its own, derived from Exception.
    """

    def __init__(
        self,
        path: Path,
        threads: int,
        spin: bool = False,
        in_place: Mapping[str, str] | None = None,
    ) -> None:
        self._session = _session(path, threads, spin)
        inputs = self._session.get_inputs()
        outputs = self._session.get_outputs()
        self._inputs = [tensor.name for tensor in inputs]
        self._outputs = [tensor.name for tensor in outputs]
        self._shapes = {tensor.name: tuple(tensor.shape) for tensor in inputs}
        self._in_place = dict(in_place or {})
        _check_pairs(self._in_place, inputs, outputs)
        metadata = self._session.get_modelmeta().custom_metadata_map
        nan_sums = int(metadata.get(NAN_SUMS, "0"))
        self._result_count = len(self._outputs) - nan_sums

    def run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """Arrays in the manifest's order, in and out.

        Raises ValueError where an int8 output stands for NaN, or a `Cache` does not fit its input.
        """
        feeds = dict(zip(self._inputs, arrays, strict=True))
        caches = self._caches(feeds)
        if caches:
            results = self._run_in_place(feeds, caches)
        else:
            results = list(self._session.run(self._outputs, feeds))
        self._check_nan_sums(results)
        return results[: self._result_count]

    def _caches(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The inputs whose memory outputs may take."""
        caches = {}
        for name in self._in_place.values():
            if isinstance(feeds[name], Cache):
                caches[name] = feeds[name]
        return caches

    def _check_nan_sums(self, results: Sequence[np.ndarray]) -> None:
        names = self._outputs[self._result_count :]
        sums = results[self._result_count :]
        for name, total in zip(names, sums, strict=True):
            if np.isnan(total):
                tensor = name.removesuffix(NAN_SUM)
                raise ValueError(f"tensor '{tensor}' holds NaN, which int8 cannot represent")

    def _run_in_place(
        self, feeds: Mapping[str, np.ndarray], caches: Mapping[str, np.ndarray]
    ) -> list[np.ndarray]:
        binding = self._session.io_binding()
        for name, array in feeds.items():
            if name in caches:
                self._check_cache(name, array)
                binding.bind_input(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
            else:
                binding.bind_cpu_input(name, np.ascontiguousarray(array))
        taken: list[np.ndarray | None] = []
        for name in self._outputs:
            cache = caches.get(self._in_place.get(name, ""))
            taken.append(cache)
            if cache is None:
                binding.bind_output(name)
            else:
                # The address of the input: onnxruntime's GroupQueryAttention then adds rows to the
                # cache instead of copying all of it.
                binding.bind_output(name, "cpu", 0, np.float32, cache.shape, cache.ctypes.data)
        self._session.run_with_iobinding(binding)
        results = []
        for cache, value in zip(taken, binding.get_outputs(), strict=True):
            results.append(value.numpy() if cache is None else cache)
        return results

    def _check_cache(self, name: str, array: np.ndarray) -> None:
        """onnxruntime gets a pointer, and would read and write beyond a smaller array."""
        flags = array.flags
        is_whole = flags.c_contiguous and flags.writeable and flags.aligned
        shape = self._shapes[name]
        if not is_whole or array.dtype != np.float32 or array.shape != shape:
            raise ValueError(f"the memory of '{name}' is not a whole float32 array {list(shape)}")


def _session(path: Path, threads: int, spin: bool) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # errors are raised; its log would say them a second time
    # Each session would keep an arena of its own; together they hold more than the weights.
    options.enable_cpu_mem_arena = False
    # Idle threads of one session would take the cores from the segment that runs next.
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
    # Small blocks of a matrix product even out what the cores do besides: decode of SmolLM2 is a
    # fifth faster.
    options.add_session_config_entry("session.dynamic_block_base", "4")
    # onnxruntime would move the int8 at a segment's ends inwards and compute in int8 what is float.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    # An addition and a LayerNormalization take a fifth of the time of the operator for both.
    apart = ["SkipLayerNormFusion"]
    return onnxruntime.InferenceSession(
        path, options, providers=["CPUExecutionProvider"], disabled_optimizers=apart
    )


def _check_pairs(
    in_place: Mapping[str, str], inputs: Sequence[Any], outputs: Sequence[Any]
) -> None:
    """Raises ValueError for an output that cannot have the memory of its input."""
    read = {tensor.name: (tensor.type, tensor.shape) for tensor in inputs}
    written = {tensor.name: (tensor.type, tensor.shape) for tensor in outputs}
    for output, source in in_place.items():
        fits = source in read and written.get(output) == read[source]
        if not fits or not _is_static_float(*read[source]):
            raise ValueError(f"output '{output}' cannot be written to where input '{source}' lies")


def _is_static_float(kind: str, shape: Sequence[int | str | None]) -> bool:
    return kind == "tensor(float)" and all(isinstance(size, int) for size in shape)
