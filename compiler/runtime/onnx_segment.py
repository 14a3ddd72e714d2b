"""Host segments in onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

CACHE, PRESENT = "cache.", "present."


class HostSegment:
    """A segment in onnxruntime: float inside, with int8 borders to the Edge TPU.

    Inputs whose name begins with "cache." are memory that the caller owns and that the segment
    writes in place: output "present.X" goes to where "cache.X" lies.
    """

    def __init__(self, path: Path, threads: int, alone: bool = False) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
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
            cache = (
                arrays.get(CACHE + name.removeprefix(PRESENT)) if name.startswith(PRESENT) else None
            )
            if cache is None:
                binding.bind_output(name)
            else:
                binding.bind_output(
                    name, "cpu", 0, cache.dtype.type, cache.shape, cache.ctypes.data
                )
        self._session.run_with_iobinding(binding)
        return [
            arrays[CACHE + name.removeprefix(PRESENT)]
            if name.startswith(PRESENT)
            else value.numpy()
            for name, value in zip(self._outputs, binding.get_outputs(), strict=True)
        ]
