"""Runs the float model over sequences, its own outputs as the state of the next step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from compiler.checks import baseline
from compiler.errors import CompilerError
from compiler.importer import state
from compiler.quantize.samples import Sample, Samples
from compiler.quantize.sequences import Sequences, unrolled


def unroll(
    path: Path, model: ir.Model, given: Sequences, progress: Callable[[], None] = lambda: None
) -> Samples:
    """The steps of sequences as samples, each with the state that the user's file in `path`, which
    was imported as `model`, has reached there.

    `progress` is called after each step. Raises what `baseline.baseline` raises.
    """
    recording = given.recordings[0]
    sample = {**recording.steps[0](), **recording.first}
    kind = baseline.kind_of(path, model, sample)
    with baseline.running(path, model, kind) as run:

        def one(step: Sample) -> Mapping[str, np.ndarray]:
            try:
                return run(step)
            except CompilerError:
                raise
            except Exception as error:
                raise baseline.failure(given.random, error) from error

        return unrolled(given, state.of(model), one, progress)
