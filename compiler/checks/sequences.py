"""Runs models with state over sequences, their own outputs as the state of the next step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from compiler.checks import baseline
from compiler.checks.agreement import readings
from compiler.checks.readings import Classes, Decisions
from compiler.errors import CompilerError
from compiler.graph.reference import Reference
from compiler.importer import state
from compiler.quantize.samples import Sample, Samples
from compiler.quantize.sequences import Sequences, unrolled
from compiler.runtime import Bundle, Pipeline
from compiler.runtime.state import State


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


@dataclass(frozen=True)
class Drift:
    """How many of how many steps a bundle decides otherwise than the float model."""

    differing: int
    steps: int

    @property
    def share(self) -> float:
        return self.differing / max(self.steps, 1)


def drift(trial: Bundle, model: ir.Model, samples: Samples) -> Drift | None:
    """How a bundle decides beside its float model, both on their own state; the output that
    differs most. None where no output is a decision or a class.

    `samples` are steps of sequences with the float model's state.
    """
    steps = list(samples)
    with Reference(model) as reference:
        expected = [reference.run(step) for step in steps]
    found = readings({}, expected, steps, in_steps=True)
    judged = [reading for reading in found if isinstance(reading, Classes | Decisions)]
    carried = State.of(trial.manifest)
    pipeline = Pipeline(trial)
    for number, (step, wanted) in enumerate(zip(steps, expected, strict=True)):
        if not judged:
            break
        given = step if number in samples.starts else carried.following(step)
        results = pipeline.run(given)
        carried.take(results)
        for reading in judged:
            reading.add(results, wanted, step)
    drifts = [_drift(reading) for reading in judged]
    return max(drifts, key=lambda found: found.share, default=None)


def _drift(reading: Classes | Decisions) -> Drift:
    if isinstance(reading, Decisions):
        return Drift(reading.differing, reading.steps)
    return Drift(reading.rows - reading.same, reading.rows)
