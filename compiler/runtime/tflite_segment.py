"""One segment on a TFLite interpreter: ai_edge_litert, tflite_runtime or tensorflow, whichever is
installed."""

from __future__ import annotations

import base64
import contextlib
import functools
import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

_MODULES = ("ai_edge_litert.interpreter", "tflite_runtime.interpreter", "tensorflow.lite")
_STDERR = 2
# A TFLite file of one operator, Relu of one number.
_SMALLEST_MODEL = base64.b64decode(
    "GAAAAFRGTDMAAA4AFAAQAAwACAAAAAQADgAAABAAAAAcAAAAtAAAAAMAAAABAAAACAAAAAQABAAEAAAAAQAAABAAAAAMABQA"
    "EAAMAAgABAAMAAAAEAAAADwAAABAAAAARAAAAAEAAAAQAAAAAAAKAAwAAAAIAAQACgAAAAgAAAAMAAAAAQAAAAEAAAABAAAA"
    "AAAAAAEAAAABAAAAAQAAAAAAAAACAAAAIAAAAAQAAADu////BAAAAAEAAAABAAAAAAAGAAgABAAGAAAABAAAAAEAAAABAAAA"
    "AQAAABAAAAAMAAwACwAAAAAABAAMAAAAEwAAAAAAABM="
)


def interpreter_module() -> Any:
    """The first of the three that can be imported. Raises ImportError where none can."""
    for name in _MODULES:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise ImportError(
        "no TFLite interpreter: install one of ai-edge-litert, tflite-runtime, tensorflow"
    )


@functools.cache
def _greet() -> None:
    """Let TFLite write its one line about XNNPACK, which tells users nothing, to nowhere.

    It comes with the first model of a process, and no setting keeps it away. So the first model is
    one that cannot fail, and errors of all others are still seen.
    """
    with _without_stderr(), contextlib.suppress(Exception):
        interpreter_module().Interpreter(model_content=_SMALLEST_MODEL).allocate_tensors()


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """Let what libraries write to standard error go nowhere."""
    try:
        kept = os.dup(_STDERR)
    except OSError:  # it is closed: nothing can be seen
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, _STDERR)
    os.close(nowhere)
    try:
        yield
    finally:
        os.dup2(kept, _STDERR)
        os.close(kept)


def load_delegate(library: str, options: dict[str, str]) -> Any:
    """A delegate from a shared library. Raises ValueError, RuntimeError or OSError."""
    module = interpreter_module()
    # tensorflow.lite has the function one module further down.
    where = module if hasattr(module, "load_delegate") else module.experimental
    return where.load_delegate(library, options)


class TFLiteSegment:
    """An int8 segment on TFLite's CPU kernels, or on a delegate.

    Raises ValueError or RuntimeError for a file that TFLite refuses.
    """

    def __init__(self, path: Path, threads: int, delegate: Any = None) -> None:
        _greet()
        delegates = None if delegate is None else [delegate]
        self._interpreter = interpreter_module().Interpreter(
            model_path=str(path), num_threads=threads, experimental_delegates=delegates
        )
        self._interpreter.allocate_tensors()
        self._inputs = [entry["index"] for entry in self._interpreter.get_input_details()]
        self._outputs = [entry["index"] for entry in self._interpreter.get_output_details()]

    def run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """int8 arrays in the manifest's order, in and out; the results are the caller's to keep."""
        for index, array in zip(self._inputs, arrays, strict=True):
            self._interpreter.set_tensor(index, array)
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(index) for index in self._outputs]
