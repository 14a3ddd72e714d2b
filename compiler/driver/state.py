"""Models with state: which outputs go back into which inputs, and samples of whole sequences."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from pathlib import Path
from typing import cast

import onnx_ir as ir

from compiler import files
from compiler.checks import sensitivity
from compiler.checks import sequences as checking
from compiler.checks.segments import tpu_segments
from compiler.checks.verdict import exceeds
from compiler.driver import picture
from compiler.driver.options import BuildOptions
from compiler.driver.stages import stage
from compiler.emit import bundle
from compiler.emit import manifest as manifests
from compiler.graph import origin_of
from compiler.importer import state
from compiler.partition import Program
from compiler.progress import Progress, notes, silent
from compiler.quantize import samples as sampling
from compiler.quantize import sequences
from compiler.quantize.samples import Samples
from compiler.runtime import Bundle
from compiler.runtime.manifest import Manifest, StateEntry

# The share of steps that a bundle may decide otherwise than the float model.
MOST_DIFFERING = 0.005
# Calibration steps, of the first sequences, that tell it.
TRIED_STEPS = 2000
# Shares of the error whose segments go to the host, one after the other.
SHARES = (0.8, 1.0)
# Steps on which single segments are looked at.
SENSITIVITY_STEPS = 16

# Makes a quantized program in which nodes of these names are in float.
Make = Callable[[tuple[str, ...]], Program]


def settle(model: ir.Model, options: BuildOptions) -> None:
    """Note the state of an imported model, and say what was recognised. Raises OptionError."""
    pairs = state.settle(model, options.state)
    if pairs and options.state is None:
        told = ", ".join(f"'{output}' goes back into '{name}'" for output, name in pairs.items())
        notes.info("state, by names and shapes: %s; --state none takes steps one by one", told)


def samples(
    path: Path, model: ir.Model, options: BuildOptions, progress: Progress = silent
) -> Samples:
    """The samples of a model. Of one with state they are the steps of sequences, each with the
    state that the file in `path` has reached there by itself.

    Raises CalibrationError, and what running the file raises.
    """
    source = options.calibration_path
    inputs = model.graph.inputs
    form = picture.form_of(model)
    pairs = state.of(model)
    if not pairs:
        return sampling.load(source, inputs, form, options.seed)
    given = sequences.load(source, inputs, list(pairs.values()), form, options.seed)
    with stage("float model"):
        step = progress("running the float model over sequences", given.steps)
        return checking.unroll(path, model, given, step)


def enter(manifest: Manifest, model: ir.Model) -> None:
    """Say in a manifest what a runtime carries."""
    entries: list[StateEntry] = []
    for output, name in state.of(model).items():
        entries.append({"output": output, "input": name, "initial": "zeros"})
    if entries:
        manifest["state"] = entries


def without_drift(make: Make, calibration: Samples, options: BuildOptions) -> Program:
    """A program that decides as the float model does over calibration sequences.

    `make` quantizes a program with some nodes kept in float. Segments that lose most stay on the
    host, at last all of them, until at most MOST_DIFFERING of the steps are decided otherwise;
    nodes that a user pins to an Edge TPU stay there.
    """
    program = make(())
    few = calibration.first_sequences(TRIED_STEPS)
    kept: list[str] = []
    for most in SHARES:
        with stage("sequences"), files.temporary("sequences") as folder:
            trial = _trial(program, folder.path)
            drift = checking.drift(trial, program.model, few)
            if drift is None or not exceeds(drift.differing, drift.steps, MOST_DIFFERING):
                return program
            names = _worst(program, trial, few, most)
        names = [name for name in names if not _is_pinned(name, options)]
        if not names:
            return program
        notes.info(
            "over %d steps in a closed loop, %.1f%% are decided otherwise than in float, more than "
            "%.1f%%: %d nodes stay on the host (--pin 'NODE=tpu' keeps one on the Edge TPU)",
            len(few),
            100 * drift.share,
            100 * MOST_DIFFERING,
            len(names),
        )
        kept += names
        program = make(tuple(kept))
    return program


def _trial(program: Program, folder: Path) -> Bundle:
    """A program as a bundle that can run and is nothing else."""
    segments = bundle.write_segments({"": program}, folder)[""]
    manifest = cast(Manifest, manifests.program_entry(program, segments))
    enter(manifest, program.model)
    return Bundle(folder, manifest)


def _worst(program: Program, trial: Bundle, few: Samples, most: float) -> list[str]:
    """Names of the nodes of the segments that make up a share `most` of the error at the end."""
    contributions = sensitivity.shares(trial, program, list(few)[:SENSITIVITY_STEPS])
    segments = tpu_segments(program)
    segments.sort(key=lambda segment: -contributions[segment.index])
    names: dict[str, None] = {}
    total = 0.0
    for segment in segments:
        if total < most or most == 1:
            names |= dict.fromkeys(origin_of(node) for node in segment.nodes)
        total += contributions[segment.index]
    return list(names)


def _is_pinned(name: str, options: BuildOptions) -> bool:
    pins = options.partitioning.pins.items()
    return any(device == "tpu" and fnmatch.fnmatchcase(name, pattern) for pattern, device in pins)
