"""Runs the float IR on onnxruntime: the reference for checks, calibration and verification."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from compiler import files
from compiler.errors import OutputError

Arrays = Mapping[str, np.ndarray]


class Reference:
    """A float model in onnxruntime, with some of its inner tensors as extra outputs.

    Weights go through a temporary file, which onnxruntime maps into memory, so that they are not
    held twice. Use it as a context manager.
    """

    def __init__(
        self,
        model: ir.Model,
        extra: Sequence[ir.Value] = (),
        options: ort.SessionOptions | None = None,
    ) -> None:
        self._folder = files.temporary("reference")
        path = self._folder.path / "model.onnx"
        graph = model.graph
        known = set(graph.outputs)
        added = [value for value in extra if value not in known and not value.is_graph_input()]
        count = len(graph.outputs)
        graph.outputs.extend(added)
        try:
            save(model, path)
        finally:
            while len(graph.outputs) > count:
                # One by one: a deleted slice would leave the values marked as outputs.
                graph.outputs.pop()
        self.session = open_session(path, options)
        self.names = [output.name for output in self.session.get_outputs()]
        self.inputs = [value.name for value in self.session.get_inputs()]

    def run(self, sample: Arrays, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """The outputs for one sample: all, or those in `names`."""
        if names is None:
            names = self.names
        if not names:
            return {}
        feeds = {name: sample[name] for name in self.inputs}
        results = self.session.run(names, feeds)
        return dict(zip(names, results, strict=True))

    def __enter__(self) -> Reference:
        return self

    def __exit__(self, *_: object) -> None:
        del self.session
        self._folder.close()


def open_session(
    model: Path | bytes, options: ort.SessionOptions | None = None
) -> ort.InferenceSession:
    """A session of onnxruntime on the CPU, of a file or of a serialized model.

    Options are those of `session_options`, unless others are given.
    """
    if options is None:
        options = session_options()
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def quiet_options() -> ort.SessionOptions:
    """onnxruntime's own options. Errors are raised; its log does not write to the terminal too."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return options


def session_options() -> ort.SessionOptions:
    """How float models run: as the graph says, with weights in memory once."""
    options = quiet_options()
    # Layout optimizations would copy the weights of every convolution.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.enable_cpu_mem_arena = False
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    options.add_session_config_entry("session.disable_prepacking", "1")
    # The float model is what the graph says, not what onnxruntime would make int8 of it.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return options


def shared_options() -> ort.SessionOptions:
    """For models that run in turns: none waits for work on a core that the next one wants."""
    options = quiet_options()
    options.enable_cpu_mem_arena = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return options


def save(model: ir.Model, path: Path) -> None:
    """Write a model with its larger weights in a file beside it, one after the other.

    Raises OutputError.
    """
    # Saving replaces tensors by references to the file.
    kept = {value: value.const_value for value in model.graph.initializers.values()}
    try:
        ir.save(model, path, external_data=f"{path.name}.data", max_workers=1)
    except OSError as error:
        # numpy gives no errno where a file takes a part only.
        why = error.strerror or str(error)
        raise OutputError(
            f"{path.parent}: cannot be written: {why}: free some room or set $TMPDIR"
        ) from error
    finally:
        for value, tensor in kept.items():
            value.const_value = tensor
