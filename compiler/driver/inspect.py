"""What is known of a model, a bundle or a compiled file, without building anything."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from compiler import files, frontends
from compiler.driver import build as building
from compiler.driver import picture
from compiler.driver.options import BuildOptions
from compiler.emit import bundle
from compiler.emit import manifest as manifests
from compiler.errors import OptionError, OutputError
from compiler.graph import reference
from compiler.partition import Program
from compiler.progress import Progress, silent
from compiler.runtime.manifest import PictureEntry, PlanEntry, QualityEntry, VisionEntry
from compiler.vendor import audit as auditing
from compiler.vendor import darwinn
from compiler.vendor.audit import Audit
from compiler.vendor.darwinn import Package

FileKind = Literal["onnx", "language", "bundle", "tflite"]


@dataclass(frozen=True)
class Inspection:
    """The plan of a model, or of a bundle.

    path:    the file or folder
    plan:    the segments in the order to run, in the words of docs/manifest.md; of a bundle the
             whole manifest, with its quality
    program: the rewritten graph with its segments; None for a bundle
    sources: the files that were read
    """

    path: Path
    plan: PlanEntry
    program: Program | None
    sources: Sequence[Path]

    @property
    def picture(self) -> PictureEntry | None:
        """How pictures go in; None where nothing says that they do."""
        if self.program is not None:
            return picture.of(self.program.model)
        seen = cast(Mapping[str, VisionEntry], self.plan).get("vision")
        return None if seen is None else seen["picture"]

    @property
    def quality(self) -> QualityEntry | None:
        """What verification measured of a bundle; None for a model."""
        return cast(Mapping[str, QualityEntry], self.plan).get("quality")


@dataclass(frozen=True)
class CompiledFile:
    """What edgetpu_compiler wrote: its packages of executables, and how many operators of each kind
    it left on the CPU."""

    path: Path
    packages: Sequence[Package]
    on_cpu: Mapping[str, int]


def kind_of(path: Path) -> FileKind:
    """What `path` is taken for. A folder that is no language model's is taken for a bundle, and a
    file of unknown kind for an ONNX file."""
    if frontends.recognises(path):
        return "language"
    if path.is_dir():
        return "bundle"
    return "tflite" if path.suffix == ".tflite" else "onnx"


def inspect(path: Path, options: BuildOptions, progress: Progress = silent) -> Inspection:
    """The plan of the bundle in `path`, or the one that the ONNX file `path` would get.

    Raises OptionError for options of the plan where there is one already.
    """
    bundle.restore(path)
    kind = kind_of(path)
    if kind == "language":
        raise OptionError(
            f"{path}: is a language model: `plan` predicts its speed, `inspect` takes its bundle"
        )
    if kind == "onnx":
        suited = options.suited_to("onnx", path)
        model = building.read(path, suited, progress)
        program = building.plan_program(model, suited, progress)
        return Inspection(path, manifests.summary(program, path), program, [path])
    _require_no_options(path, options)
    found = bundle.load(path)
    return Inspection(path, found.manifest, None, found.paths())


def inspect_compiled(path: Path, options: BuildOptions) -> CompiledFile:
    """What edgetpu_compiler made of a .tflite file. Raises ModelError for one that it did not
    write."""
    _require_no_options(path, options)
    packages, on_cpu = darwinn.read(path)
    return CompiledFile(path, packages, on_cpu)


def audit(path: Path, against: Path, options: BuildOptions) -> Audit:
    """Compare the parameters of a compiled file with those of a plain one. Raises ModelError for
    what is neither."""
    _require_no_options(path, options)
    return auditing.audit(path, against)


def save_graph(program: Program, path: Path, sources: Sequence[Path] = ()) -> None:
    """Save the rewritten graph as ONNX, its weights beside it in PATH.data.

    `sources` are files that are still needed. Raises OutputError.
    """
    weights = path.with_name(f"{path.name}.data")
    if path.exists() and not path.is_file():
        raise OutputError(f"{path}: weights come in a file beside the graph: name a regular file")
    if weights.exists() and not path.exists():
        raise OutputError(
            f"{weights}: is there, without a graph that it could be of: name another file"
        )
    with files.temporary("graph") as folder, files.output(path, sources) as file:
        made = folder.path / path.name
        reference.save(program.model, made)
        made_weights = made.with_name(weights.name)
        if made_weights.exists():
            with files.output(weights, sources) as weights_file, made_weights.open("rb") as source:
                shutil.copyfileobj(source, weights_file)
        file.write(made.read_bytes())


def _require_no_options(path: Path, options: BuildOptions) -> None:
    if options != BuildOptions():
        raise OptionError(f"{path}: is planned already; options of the plan are for .onnx files")
