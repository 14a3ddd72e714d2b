"""Writes a bundle in a folder beside its destination, and puts it there in one step once it is
complete."""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from compiler import files
from compiler.emit import contents, host_segment, tflite
from compiler.emit import manifest as manifests
from compiler.emit.store import Store
from compiler.errors import BundleError, OptionError, OutputError
from compiler.partition import Program, Segment
from compiler.runtime import Bundle, RuntimeBundleError, confined, folders
from compiler.runtime import bundle as runtime_bundle
from compiler.runtime.confined import ConfinedError
from compiler.runtime.manifest import FileEntry, SegmentEntry
from compiler.vendor.onnx_tf import ConvertedSegment


@contextmanager
def folder(path: Path, force: bool, sources: Iterable[Path] = ()) -> Iterator[Path]:
    """A new folder that takes the place of `path` once the block has ended well.

    With `force` a bundle at `path` is replaced, in one step; `sources` are what the build reads.
    Raises OutputError where something else would be lost, where another build is at `path`, and
    where nothing can be written.
    """
    place = _place(path)
    folders.sweep()
    with files.writing(path):
        folders.restore(place)
    _refuse(path, place, force, sources)
    with _parents(path, place), _claimed(path, place) as work:
        _refuse(path, place, force, sources)  # what came there just now
        made = work / folders.NEW
        with files.writing(path):
            made.mkdir()
        yield made
        with files.writing(path):
            folders.synchronise(made)
            if place.is_dir():
                made.chmod(stat.S_IMODE(place.stat().st_mode))
            _refuse(path, place, force, sources)  # what came there while we built
            _replace(path, made, place)


def _replace(path: Path, made: Path, place: Path) -> None:
    try:
        folders.replace(made, place)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        raise OutputError(
            f"{path}: cannot be renamed, as what lies in a layer of a container's image: remove it "
            "or name another"
        ) from error


@contextmanager
def changing(path: Path) -> Iterator[None]:
    """While the block lasts, no other process builds or compiles the bundle at `path`. Raises
    OutputError."""
    folders.sweep()
    with _claimed(path, _place(path)):
        yield


def _place(path: Path) -> Path:
    """Where `path` leads, links followed. Raises OutputError for a link that leads nowhere."""
    with files.writing(path):
        if path.is_symlink() and not os.path.exists(path):
            raise OutputError(f"{path}: is a link to {os.readlink(path)}, which is not there")
        place = os.path.realpath(path)
    try:
        place.encode()
    except UnicodeEncodeError as error:
        raise OutputError(
            f"{path}: is not UTF-8, which onnxruntime needs of names: name another folder"
        ) from error
    return Path(place)


@contextmanager
def _claimed(path: Path, place: Path) -> Iterator[Path]:
    with files.writing(path):
        work = folders.claim(place)
    with work:
        yield work.path


@contextmanager
def _parents(path: Path, place: Path) -> Iterator[None]:
    """Make the folders above; those that were not there go again where nothing comes into them."""
    missing = [parent for parent in place.parents if not parent.exists()]
    try:
        with files.writing(path):
            place.parent.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for parent in missing:
            with suppress(OSError):
                parent.rmdir()


def _refuse(path: Path, place: Path, force: bool, sources: Iterable[Path]) -> None:
    """Raises OutputError where the bundle must not take the place of what is there."""
    with files.writing(path):
        try:
            place.lstat()
        except FileNotFoundError:
            return
    with files.writing(path):
        is_empty = folders.is_empty(place)
    manifest = None
    if not is_empty:
        try:
            manifest = contents.manifest_of(place)
        except ValueError as error:
            raise OutputError(
                f"{path}: exists already, and is not a bundle that can be replaced: {error}"
            ) from error
    if os.path.ismount(place):
        raise OutputError(
            f"{path}: is a mount point, which cannot be replaced: name a folder in it"
        )
    with suppress(FileNotFoundError):
        if Path.cwd().is_relative_to(place):
            raise OutputError(f"{path}: the current folder lies in it: go elsewhere to replace it")
    for source in sources:
        if Path(os.path.realpath(source)).is_relative_to(place):
            raise OutputError(
                f"{path}: replacing it would delete {source}, which the build reads: move it "
                "elsewhere"
            )
    if manifest is None:
        return
    strange = contents.strangers(place, manifest)
    if strange:
        more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
        raise OutputError(
            f"{path}: replacing it would delete '{strange[0]}'{more}, which no build put there: "
            "move it elsewhere"
        )
    if not force:
        raise OutputError(f"{path}: exists already; the option force replaces it")


def write_segments(
    programs: Mapping[str, Program],
    path: Path,
    converted: Mapping[int, ConvertedSegment] | None = None,
) -> dict[str, list[SegmentEntry]]:
    """Write every segment of the programs under `path`/segments; returns their entries in the
    manifest, by program.

    `converted` are TPU segments of a single program that onnx-tf wrote, by index.
    """
    folder = path / "segments"
    folder.mkdir()
    converted = converted or {}
    written = _write_files(programs, folder, converted)
    # Several segments may read weights.bin; it is complete, and hashed once, when all are written.
    written_files = sorted(set(itertools.chain.from_iterable(written.values())))
    entries = {file: manifests.file_entry(file, path) for file in written_files}
    found: dict[str, list[SegmentEntry]] = {}
    for name, program in programs.items():
        found[name] = []
        for segment in program.plan.segments:
            own = [entries[file] for file in written[name, segment.index]]
            other = converted.get(segment.index)
            found[name].append(manifests.segment_entry(program, segment, own, other))
    return found


def _write_files(
    programs: Mapping[str, Program], folder: Path, converted: Mapping[int, ConvertedSegment]
) -> dict[tuple[str, int], list[Path]]:
    """The files of each segment, its own first, by the names of programs and segments' indices."""
    store = Store(folder)
    written: dict[tuple[str, int], list[Path]] = {}
    # Segments for the Edge TPU come first, so that those for the host find weights that they share
    # in their files.
    for name, segment in _segments(programs, "tpu"):
        file = folder / f"{name}{segment.index:02d}.tflite"
        other = converted.get(segment.index)
        file.write_bytes(_tflite(programs[name], segment) if other is None else other.file)
        store.register(file)
        written[name, segment.index] = [file]
    for name, segment in _segments(programs, "host"):
        file = folder / f"{name}{segment.index:02d}.onnx"
        written[name, segment.index] = host_segment.write(programs[name], segment, file, store)
    return written


def _segments(programs: Mapping[str, Program], device: str) -> Iterator[tuple[str, Segment]]:
    """The segments of all programs for one kind of device, each with its program's name."""
    for name, program in programs.items():
        for segment in program.plan.segments:
            if segment.device == device:
                yield name, segment


def _tflite(program: Program, segment: Segment) -> bytes:
    return tflite.write(
        segment.nodes, segment.inputs, segment.outputs, program.quants, program.means
    )


def copy_tokenizer(source: Path, path: Path) -> FileEntry:
    """Put a tokenizer.json into the bundle in `path`; returns its entry. Raises OptionError for
    what is none."""
    try:
        definition = confined.read_definition(source)
        confined.tokenizer(definition)
    except ConfinedError as error:
        raise OptionError(
            f"{source}: not a tokenizer.json of the tokenizers library: {error}"
        ) from error
    copy = path / "tokenizer.json"
    copy.write_text(definition, encoding="utf-8")
    return manifests.file_entry(copy, path)


def restore(path: Path) -> None:
    """Put the old bundle back where a build was killed as it replaced it. Raises BundleError."""
    try:
        runtime_bundle.restore(path)
    except RuntimeBundleError as error:
        raise BundleError(str(error)) from error


def load(path: Path, check: bool = True) -> Bundle:
    """A bundle whose manifest holds to the schema and, with `check`, whose files are unchanged.
    Raises BundleError."""
    try:
        return Bundle.open(path, check)
    except RuntimeBundleError as error:
        raise BundleError(str(error)) from error
