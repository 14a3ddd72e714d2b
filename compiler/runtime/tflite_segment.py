"""The TFLite interpreter: ai_edge_litert, tflite_runtime or tensorflow, whichever is installed."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_MODULES = ("ai_edge_litert.interpreter", "tflite_runtime.interpreter", "tensorflow.lite")


def interpreter_module() -> Any:
    for name in _MODULES:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise ImportError(
        "no TFLite interpreter: install one of ai-edge-litert, tflite-runtime, tensorflow"
    )


def load_delegate() -> Callable[..., Any]:
    """What loads a delegate from a shared library; tensorflow has it elsewhere."""
    module = interpreter_module()
    return getattr(module, "load_delegate", None) or module.experimental.load_delegate


class TFLiteSegment:
    """An int8 segment on the CPU kernels of TFLite, or on a delegate."""

    def __init__(self, path: Path, threads: int, delegate: Any = None) -> None:
        delegates = None if delegate is None else [delegate]
        self._interpreter = interpreter_module().Interpreter(
            model_path=str(path), num_threads=threads, experimental_delegates=delegates
        )
        self._interpreter.allocate_tensors()
        self._inputs = [d["index"] for d in self._interpreter.get_input_details()]
        self._outputs = [d["index"] for d in self._interpreter.get_output_details()]

    def run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """int8 arrays in the order of the manifest, in and out."""
        for index, array in zip(self._inputs, arrays, strict=True):
            self._interpreter.set_tensor(index, array)
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(index) for index in self._outputs]
