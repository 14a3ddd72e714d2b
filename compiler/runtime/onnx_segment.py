"""Host segments in onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

# In the model's metadata: how many of its last outputs, of this suffix, are NaN where what leaves
# as int8 held NaN.
NAN_SUMS, NAN_SUM = "coral_bundle.nan_sums", "/nan_sum"


class Cache(np.ndarray):
    """Memory that segments may write in place.

    Segments get bare pointers to it, so it is always a whole array that this module allocated, or
    rows of one: an array of a caller, which may be broadcast, strided or read-only, never is.
    """

    @classmethod
    def zeros(cls, shape: Sequence[int]) -> Cache:
        return np.zeros(tuple(shape), np.float32).view(cls)


class HostSegment:
    """A segment in onnxruntime: float inside, with int8 borders to the Edge TPU.

    `in_place` names, for some outputs, the input whose memory they may take. They do where that
    input is a `Cache`; of any other array the output is memory of its own, and the input stays as
    it was. Raises ValueError where such a pair is not of one static shape in float32.
    """

    def __init__(
        self,
        path: Path,
        threads: int,
        alone: bool = False,
        in_place: Mapping[str, str] | None = None,
    ) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # errors are raised; its log would say them a second time
        # Each session would keep its own; together they hold more than the weights.
        options.enable_cpu_mem_arena = False
        # Idle threads of one session would take the cores from the segment that runs next, if there
        # is one.
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(alone)))
        # Parts of a product as small as that even out what the cores do besides: decode of SmolLM2
        # gains a fifth.
        options.add_session_config_entry("session.dynamic_block_base", "4")
        # Borders are int8; onnxruntime would move them inwards and compute what is float in int8.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        self._session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        self._inputs = [i.name for i in self._session.get_inputs()]
        self._outputs = [o.name for o in self._session.get_outputs()]
        self._in_place = dict(in_place or {})
        given = {i.name: (i.type, i.shape) for i in self._session.get_inputs()}
        made = {o.name: (o.type, o.shape) for o in self._session.get_outputs()}
        for output, source in self._in_place.items():
            if (
                source not in given
                or made.get(output) != given[source]
                or not _is_static_float(*given[source])
            ):
                raise ValueError(
                    f"output '{output}' cannot be written to where input '{source}' lies"
                )
        self._shapes = {name: tuple(shape) for name, (_, shape) in given.items()}

        sums = int(self._session.get_modelmeta().custom_metadata_map.get(NAN_SUMS, "0"))
        self._real = len(self._outputs) - sums

    def run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """Arrays in the order of the manifest, in and out. Raises ValueError where int8 would hide
        NaN."""
        feeds = dict(zip(self._inputs, arrays, strict=True))
        lent = {
            name: feeds[name] for name in self._in_place.values() if isinstance(feeds[name], Cache)
        }
        results = (
            self._run_in_place(feeds, lent)
            if lent
            else list(self._session.run(self._outputs, feeds))
        )
        for name, total in zip(self._outputs[self._real :], results[self._real :], strict=True):
            if np.isnan(total):
                raise ValueError(
                    f"tensor '{name.removesuffix(NAN_SUM)}' holds NaN, which int8 has not"
                )
        return results[: self._real]

    def _run_in_place(
        self, feeds: Mapping[str, np.ndarray], lent: Mapping[str, np.ndarray]
    ) -> list[np.ndarray]:
        binding = self._session.io_binding()
        for name, array in feeds.items():
            if name in lent:
                self._check(name, array)
                binding.bind_input(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
            else:
                binding.bind_cpu_input(name, np.ascontiguousarray(array))
        taken = {name: lent.get(self._in_place.get(name, "")) for name in self._outputs}
        for name, own in taken.items():
            if own is None:
                binding.bind_output(name)
            else:
                binding.bind_output(name, "cpu", 0, np.float32, own.shape, own.ctypes.data)
        self._session.run_with_iobinding(binding)
        values = zip(taken.values(), binding.get_outputs(), strict=True)
        return [value.numpy() if own is None else own for own, value in values]

    def _check(self, name: str, array: np.ndarray) -> None:
        """A pointer says nothing of what lies behind it."""
        whole = array.flags.c_contiguous and array.flags.writeable and array.flags.aligned
        if not whole or array.dtype != np.float32 or array.shape != self._shapes[name]:
            raise ValueError(
                f"the memory of '{name}' is not a whole float32 array {list(self._shapes[name])}"
            )


def _is_static_float(kind: str, shape: Sequence[int | str | None]) -> bool:
    return kind == "tensor(float)" and all(isinstance(d, int) for d in shape)
