"""What `import compiler` offers. The command line calls only this and the runtime.

Every function raises CompilerError, or one of its kinds in compiler/errors.py, for what its caller
can mend: the message says what is wrong, where, and what to do. Paths may be text or Path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast, get_args

from compiler.device import legality
from compiler.device import measure as measuring
from compiler.device.legality import Subgraphs
from compiler.driver import build as building
from compiler.driver import inspect as inspecting
from compiler.driver import language
from compiler.driver import plan as planning
from compiler.driver.inspect import CompiledFile, FileKind, Inspection
from compiler.driver.options import BuildOptions
from compiler.driver.plan import Forecast
from compiler.driver.stages import Timings
from compiler.emit import compilation, report
from compiler.errors import OptionError
from compiler.export import forms
from compiler.export.forms import Export
from compiler.partition import PartitionOptions
from compiler.progress import Progress, silent
from compiler.runtime import Bundle
from compiler.runtime.manifest import FrontierEntry
from compiler.targets import Target
from compiler.validation import require_choice
from compiler.vendor import edgetpu_compiler, onnx_tf
from compiler.vendor.audit import Audit
from compiler.vendor.edgetpu_compiler import Tool

AnyPath = str | Path


@dataclass(frozen=True)
class CheckedOperator:
    """An operator of a TFLite file.

    operator: its TFLite name
    output:   name and number of its first output
    reason:   why edgetpu_compiler would leave it on the CPU; None where it would map it
    """

    operator: str
    output: str
    reason: str | None


def build(
    model: AnyPath,
    options: BuildOptions | None = None,
    output: AnyPath | None = None,
    *,
    progress: Progress = silent,
    timings: Timings | None = None,
) -> Bundle:
    """Build a bundle and measure it against the float model.

    model:    an ONNX file; or a language model: a GGUF file, a Hugging Face folder, an exported
              decoder
    options:  what to do otherwise than by default
    output:   the bundle's folder; by default the model's path with the suffix .bundle
    progress: is called with the name of each stage and its number of steps, and returns what to
              call after each step
    timings:  is filled in with the seconds of each stage and pass

    What passes match, and nearly match, is logged at level INFO under "compiler.driver".

    Returns the bundle, opened. Its `manifest["quality"]` holds what verification measured on
    samples that it was not calibrated on: SQNR in dB for each output and segment, or perplexity for
    a language model, and `warnings` where that is bad.

    Raises OptionError, ModelError, CalibrationError, ToolchainError; OutputError where the folder
    cannot be written, or holds a bundle and `force` is not set; QualityError for less than
    `min_sqnr`. What stood at `output` is then as it was.
    """
    source = Path(model)
    folder = source.with_suffix(".bundle") if output is None else Path(output)
    options = options or BuildOptions()
    if kind_of(source) == "language":
        language.build(source, folder, options, progress, timings)
    else:
        building.build(source, folder, options, progress, timings)
    return Bundle.open(folder, check=False)


def plan(
    model: AnyPath,
    options: BuildOptions | None = None,
    tpus: Sequence[int] = (),
    *,
    progress: Progress = silent,
) -> Sequence[Forecast]:
    """Predict latency, throughput and memory, without samples.

    model:   an ONNX file or a language model
    options: by default those of a pipeline: objective "throughput"
    tpus:    numbers of Edge TPUs; by default 1 to 8, and 1 for a language model

    Returns a Forecast for each number of Edge TPUs. For a language model, on the first of these
    numbers, a LanguageForecast of prefill and of decode for each way to place their layers.

    Raises OptionError and ModelError.
    """
    source = Path(model)
    options = options or BuildOptions(partitioning=PartitionOptions(objective="throughput"))
    if kind_of(source) != "language":
        return planning.forecasts(source, options, tpus or planning.DEFAULT_TPUS, progress)
    count = tpus[0] if tpus else 1
    partitioning = replace(options.partitioning, tpus=count, objective="latency", rate=None)
    options = replace(options, partitioning=partitioning)
    return planning.language_forecasts(source, options, progress)


def frontier(
    model: AnyPath, options: BuildOptions | None = None, *, progress: Progress = silent
) -> Sequence[FrontierEntry]:
    """Plans from the fastest to the most accurate one, none of which another one beats in both; the
    host alone is the last one.

    options: with `calibration`, on whose samples errors are measured; of a language model it may be
             left out

    Returns for each plan what docs/manifest.md says of `quality.frontier`; `BuildOptions.pick`
    builds one of them. Raises OptionError, ModelError, CalibrationError.
    """
    source = Path(model)
    looked_for = language.frontier if kind_of(source) == "language" else building.frontier
    return looked_for(source, options or BuildOptions(), progress)


def check(path: AnyPath, target: str = "usb3", subgraphs: str = "one") -> list[CheckedOperator]:
    """Predict which operators of a quantized TFLite file edgetpu_compiler would map, in order.

    target: name or .toml file of the Edge TPU
    subgraphs: "one", or "many" as with edgetpu_compiler's option -a: more than the first part

    Raises ModelError for what is not a TFLite file, OptionError for an unknown target.
    """
    require_choice("subgraphs", subgraphs, get_args(Subgraphs))
    rows = legality.check(Path(path), Target.load(target), cast("Subgraphs", subgraphs))
    found = []
    for row in rows:
        operator, output = str(row["operator"]), str(row["output"])
        found.append(CheckedOperator(operator, output, row["reason"]))
    return found


def inspect(
    path: AnyPath, options: BuildOptions | None = None, *, progress: Progress = silent
) -> Inspection:
    """The plan of a bundle, or the one that an ONNX file would get.

    options: for an ONNX file; a bundle has its plan

    Raises BundleError, ModelError, OptionError.
    """
    return inspecting.inspect(Path(path), options or BuildOptions(), progress)


def inspect_compiled(path: AnyPath, options: BuildOptions | None = None) -> CompiledFile:
    """What edgetpu_compiler made of a .tflite file: executables, what is cached and streamed.

    Raises ModelError for a file that it did not write.
    """
    return inspecting.inspect_compiled(Path(path), options or BuildOptions())


def audit(path: AnyPath, against: AnyPath, options: BuildOptions | None = None) -> Audit:
    """Whether what edgetpu_compiler wrote holds the parameters of the file that it compiled.

    path:    the compiled file
    against: the plain .tflite file

    Compares weights, biases, effective scales and zero points of each layer, and the scales of
    inputs and outputs. Instructions are not read. `status` of what is returned is "equal" where
    every layer was found, "differs", or "not judged" where some are stored in a way that is not
    known.

    Raises ModelError for files that are not of these kinds.
    """
    return inspecting.audit(Path(path), Path(against), options or BuildOptions())


def kind_of(path: AnyPath) -> FileKind:
    """What `path` is taken for: "onnx", "language", "bundle" or "tflite"."""
    return inspecting.kind_of(Path(path))


def compile_bundle(path: AnyPath, tool: Tool, *, progress: Progress = silent) -> Bundle:
    """Run edgetpu_compiler on the segments of a bundle that was built without it.

    Returns the bundle, opened again. Raises BundleError, ToolchainError, OutputError; the bundle is
    whole at any time.
    """
    compilation.compile_bundle(Path(path), tool, progress)
    return Bundle.open(path, check=False)


def export_bundle(bundle: Bundle, form: str, folder: AnyPath, *, force: bool = False) -> Export:
    """Write the TPU segments of a bundle as files for other software, once they were run.

    form:   "tflite", one file with metadata and labels; "frigate", that file with a labelmap and
            the configuration; "pycoral" or "libcoral", a file for each Edge TPU
    folder: where the files go; others in it stay
    force:  replace files of the same names

    Raises OptionError where the bundle does not fit the form, for example as the host computes
    between its segments; OutputError where files cannot be written; ToolchainError where an
    exported file does not give the bundle's bytes.
    """
    return forms.export(bundle, form, Path(folder), force)


def find_edgetpu_compiler(
    path: AnyPath | None = None,
    docker: str | None = None,
    timeout: int = edgetpu_compiler.TIMEOUT,
    trusted: bool = False,
) -> Tool | None:
    """edgetpu_compiler at `path`, else at $EDGETPU_COMPILER, else on PATH; or in the docker image
    `docker`.

    timeout: seconds that it may take for a segment
    trusted: keep compiled files whose parameters are not found to be those of their segment

    None where none is installed. Raises ToolchainError for one that was named and is not there.
    """
    named = None if path is None else str(path)
    return edgetpu_compiler.find(named, docker, timeout, trusted)


def measure_host(threads: int = 2) -> str:
    """Measure this machine's CPU with onnxruntime: the text of a .toml file for
    `PartitionOptions.host`."""
    return measuring.measure(threads)


def install_onnx_tf(python: str = "python3.11") -> Path:
    """Make the environment that `lowering=("onnx-tf",)` uses, with a Python 3.11; returns its
    folder. Raises ToolchainError."""
    return onnx_tf.install(python)


def report_page(inspection: Inspection) -> str:
    """The plan, and of a bundle its quality, as one HTML page that needs no network."""
    return report.page(inspection.plan)


def save_graph(inspection: Inspection, path: AnyPath) -> None:
    """Save the rewritten graph of an ONNX file as ONNX, its weights beside it in PATH.data.

    Raises OptionError for a bundle, which has no such graph, and OutputError.
    """
    if inspection.program is None:
        raise OptionError(f"{inspection.path}: a bundle has no graph to save: give an .onnx file")
    inspecting.save_graph(inspection.program, Path(path), inspection.sources)
