"""Models with state: which outputs go back into which inputs, and samples of whole sequences."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from compiler.checks import sequences as checking
from compiler.driver import picture
from compiler.driver.options import BuildOptions
from compiler.driver.stages import stage
from compiler.importer import state
from compiler.progress import Progress, notes, silent
from compiler.quantize import samples as sampling
from compiler.quantize import sequences
from compiler.quantize.samples import Samples
from compiler.runtime.manifest import Manifest, StateEntry


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
