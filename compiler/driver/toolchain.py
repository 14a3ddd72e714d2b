"""Writes the segments of programs, by the tools that the user chose."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from compiler.driver.options import BuildOptions
from compiler.driver.stages import stage
from compiler.emit import bundle, compilation
from compiler.errors import ToolchainError
from compiler.partition import Program, halved
from compiler.progress import Progress, silent
from compiler.quantize.samples import Samples
from compiler.runtime.manifest import SegmentEntry
from compiler.vendor import edgetpu_compiler, onnx_tf
from compiler.vendor.onnx_tf import ConvertedSegment


@dataclass(frozen=True)
class Written:
    """Programs by name, and the manifest's entries of their segments, whose files are written.

    `converted` are the TPU segments that onnx-tf wrote, by index.
    """

    programs: Mapping[str, Program]
    entries: dict[str, list[SegmentEntry]]
    converted: Mapping[int, ConvertedSegment]

    @property
    def segment_count(self) -> int:
        return sum(len(segments) for segments in self.entries.values())


def convert_with_onnx_tf(
    program: Program, samples: Samples, options: BuildOptions, progress: Progress = silent
) -> dict[int, ConvertedSegment]:
    """The TPU segments as onnx-tf and TensorFlow write them, by index, where options ask for it.

    Raises ToolchainError for one that they fail on, unless it may be written directly instead.
    """
    if options.lowering[0] == "direct":
        return {}
    with stage("onnx-tf"):
        done, failed = onnx_tf.lower(program, samples, progress)
    if failed and "direct" not in options.lowering:
        index, reason = min(failed.items())
        total = len(done) + len(failed)
        raise ToolchainError(
            f"onnx-tf: fails on {len(failed)} of {total} segments, first on {index}: {reason}; "
            "onnx-tf,direct writes these directly",
            "lowering",
        )
    return done


def emit(
    programs: Mapping[str, Program],
    folder: Path,
    progress: Progress = silent,
    converted: Mapping[int, ConvertedSegment] | None = None,
) -> Written:
    """Write every segment of the programs into the bundle at `folder`."""
    progress("writing segments", 1)
    with stage("emit"):
        entries = bundle.write_segments(programs, folder, converted)
    return Written(programs, entries, converted or {})


def compile_segments(
    written: Written,
    folder: Path,
    tool: edgetpu_compiler.Tool | None,
    progress: Progress = silent,
) -> Written:
    """Run edgetpu_compiler, where it is at hand, on the TPU segments in `folder`.

    A segment that it refuses is cut in two and written again, until only single operators are left
    that it refuses: these stay int8 TFLite for the CPU. What onnx-tf wrote is not cut, as its
    segments exist as a whole only.
    """
    if tool is None:
        return written
    with stage("edgetpu_compiler"), edgetpu_compiler.Session(tool) as session:
        while True:
            groups = edgetpu_compiler.groups(written.entries.values(), folder)
            outcomes = session.compile(groups, progress("edgetpu_compiler", len(groups)))
            if written.converted:
                break
            programs = _halve_refused(written, outcomes, folder)
            count = sum(len(program.plan.segments) for program in programs.values())
            if count == written.segment_count:
                written = replace(written, programs=programs)
                break
            shutil.rmtree(folder / "segments")
            entries = bundle.write_segments(programs, folder)
            written = Written(programs, entries, {})
        for segments in written.entries.values():
            compilation.enter(segments, outcomes, folder, tool.trusted)
    return written


def _halve_refused(
    written: Written, outcomes: Mapping[Path, edgetpu_compiler.Outcome], folder: Path
) -> dict[str, Program]:
    """The programs, each segment that edgetpu_compiler refuses cut in two where it can be."""
    found = {}
    for name, program in written.programs.items():
        refused = edgetpu_compiler.refused(written.entries[name], outcomes, folder)
        plan = halved(program.plan, program.model.graph, program.target, refused)
        found[name] = replace(program, plan=plan)
    return found
