"""Puts what edgetpu_compiler made of segments into a bundle: into one that is being built, or into
one that stands."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from compiler import files
from compiler.emit import bundle, contents
from compiler.emit import manifest as manifests
from compiler.errors import ModelError, ToolchainError
from compiler.runtime import folders
from compiler.runtime.bundle import sha256
from compiler.runtime.manifest import FileEntry, Manifest, SegmentEntry
from compiler.vendor.audit import Audit, audit
from compiler.vendor.edgetpu_compiler import Compiled, Outcome, Refused, Session, Tool, groups


def enter(
    segments: Iterable[SegmentEntry],
    outcomes: Mapping[Path, Outcome],
    folder: Path,
    trusted: bool = False,
) -> None:
    """Put compiled files beside the segments' own and say in their entries what came of them.

    Raises ToolchainError for one whose parameters are not those of its segment, unless the compiler
    is `trusted`.
    """
    for segment in segments:
        if segment["tpu"] is None:
            continue
        outcome = outcomes[folder / segment["files"][0]["path"]]
        if isinstance(outcome, Refused):
            manifests.enter_refused(segment, outcome)
        else:
            found = _audit(segment, outcome, folder, trusted)
            file = _copy(segment, outcome, folder)
            manifests.enter_compiled(segment, file, outcome, found)


def _audit(segment: SegmentEntry, outcome: Compiled, folder: Path, trusted: bool) -> Audit:
    """Compare a compiled file with the segment's own. Raises ToolchainError where they differ, or
    the compiled one cannot be read."""
    path = segment["files"][0]["path"]
    try:
        found = audit(outcome.file, folder / path)
    except ModelError as error:
        raise ToolchainError(
            f"segment {segment['index']} ({path}): what edgetpu_compiler gave cannot be read: "
            f"{error}"
        ) from error
    if found.status == "differs" and not trusted:
        raise ToolchainError(
            f"segment {segment['index']} ({path}): what edgetpu_compiler gave is not made of it: "
            f"{found.first_difference}; compile once more, and use another version or image of the "
            "compiler if that stays; --trust-compiler keeps such files"
        )
    return found


def _copy(segment: SegmentEntry, outcome: Compiled, folder: Path) -> FileEntry:
    """Copy a compiled file into the bundle, in one step.

    It is named by its content, as the manifest that stands may name that of an earlier compilation.
    """
    digest = sha256(outcome.file)
    own = segment["files"][0]["path"].removesuffix(".tflite")
    path = f"{own}-{digest[:8]}_edgetpu.tflite"
    made = folder / f"{path}.tmp"
    shutil.copyfile(outcome.file, made)
    made.replace(folder / path)
    return {"path": path, "sha256": digest, "bytes": outcome.file.stat().st_size}


def compile_bundle(
    path: Path, tool: Tool, report: Callable[[str, int], Callable[[], None]]
) -> Manifest:
    """Compile the segments of a bundle in its place; returns its new manifest. Raises BundleError,
    OutputError.

    Compiled files come beside the others first and the manifest names them last, so that the bundle
    is whole at any time. What is not the bundle's stays as it is.
    """
    bundle.load(path, check=False)  # what is no bundle is told before anything is locked
    with bundle.changing(path):
        found = bundle.load(path)
        programs = [program["segments"] for program in found.programs().values()]
        for segments in programs:
            for segment in segments:
                manifests.forget_compiled(segment)
        parts = groups(programs, path)
        try:
            with files.writing(path), Session(tool) as session:
                outcomes = session.compile(parts, report("edgetpu_compiler", len(parts)))
                for segments in programs:
                    enter(segments, outcomes, path, tool.trusted)
                folders.synchronise(path)
                manifests.write(path, found.manifest, is_last=True)
        finally:
            # Those of this compilation if it failed, else of earlier ones.
            contents.remove_leftovers(path)
    return found.manifest
