"""Writes a bundle: manifest.json and segments/, in a folder of its own that takes its place when
all is there."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import onnx_ir as ir

from compiler import files
from compiler.emit import contents, host_segment, tflite
from compiler.emit.store import Store
from compiler.errors import BundleError, InternalError, OptionError, OutputError
from compiler.graph import consumers_of, operator_name, origin_of
from compiler.ops import Moves, operator_of
from compiler.partition import Program, Segment
from compiler.quant import Quant
from compiler.runtime import Bundle, RuntimeBundleError, confined, folders, schema
from compiler.runtime import bundle as runtime_bundle
from compiler.runtime.bundle import MANIFEST_VERSION, sha256
from compiler.runtime.confined import ConfinedError
from compiler.vendor.onnx_tf import Lowered

TOOLS = ("onnx", "onnx-ir", "onnxscript", "onnxruntime", "ai-edge-litert", "numpy")


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
            f"{path}: cannot be renamed, as what lies in a layer of a container's image: remove it or name another"
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
    if not force:
        raise OutputError(f"{path}: exists already; --force replaces it")
    try:
        manifest = contents.manifest_of(place)
    except ValueError as error:
        raise OutputError(
            f"{path}: is not a bundle: {error}; --force replaces bundles only"
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
                f"{path}: --force would delete {source}, which the build reads: move it elsewhere"
            )
    strange = contents.strangers(place, manifest)
    if strange:
        more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
        raise OutputError(
            f"{path}: --force would delete '{strange[0]}'{more}, which no build put there: move it elsewhere"
        )


def write_segments(
    programs: Mapping[str, Program], path: Path, lowered: Mapping[int, Lowered] | None = None
) -> dict[str, list[dict[str, Any]]]:
    """Write every segment of the programs under `path`/segments; returns their entries in the
    manifest, by program.

    `lowered` are segments of a single program that were written elsewhere, by index. Those for the
    Edge TPU come first, so that those for the host find weights that they share in their files.
    """
    folder = path / "segments"
    folder.mkdir()
    store = Store(folder)
    files: dict[tuple[str, int], list[Path]] = {}
    for name, program in programs.items():
        for segment in program.plan.segments:
            if segment.device == "tpu":
                file = folder / f"{name}{segment.index:02d}.tflite"
                other = lowered.get(segment.index) if lowered else None
                file.write_bytes(
                    tflite.write(
                        segment.nodes,
                        segment.inputs,
                        segment.outputs,
                        program.quants,
                        program.means,
                    )
                    if other is None
                    else other.file
                )
                store.register(file)
                files[name, segment.index] = [file]
    for name, program in programs.items():
        for segment in program.plan.segments:
            if segment.device == "host":
                file = folder / f"{name}{segment.index:02d}.onnx"
                files[name, segment.index] = host_segment.write(program, segment, file, store)
    entries = {file: file_entry(file, path) for written in files.values() for file in written}
    return {
        name: [
            {
                **segment_entry(program, segment),
                **_lowering(lowered.get(segment.index) if lowered else None),
                "compiled": None,
                "files": [entries[f] for f in files[name, segment.index]],
            }
            for segment in program.plan.segments
        ]
        for name, program in programs.items()
    }


def _lowering(lowered: Lowered | None) -> dict[str, Any]:
    """What the entry of a segment says of where it was written."""
    if lowered is None:
        return {"lowering": "direct"}
    return {"lowering": "onnx-tf", "inputs": lowered.inputs, "outputs": lowered.outputs}


def copy_tokenizer(source: Path, path: Path) -> dict[str, Any]:
    """Put a tokenizer.json into the bundle in `path`; returns its entry. Raises OptionError for
    what is none."""
    try:
        definition = confined.read_definition(source)
        confined.tokenizer(definition)
    except ConfinedError as error:
        raise OptionError(
            f"--tokenizer {source}: not a tokenizer.json of the tokenizers library: {error}"
        ) from error
    copy = path / "tokenizer.json"
    copy.write_text(definition, encoding="utf-8")
    return file_entry(copy, path)


def file_entry(file: Path, path: Path) -> dict[str, Any]:
    """How the manifest names a file of the bundle in `path`."""
    return {
        "path": file.relative_to(path).as_posix(),
        "sha256": sha256(file),
        "bytes": file.stat().st_size,
    }


def segment_entry(program: Program, segment: Segment) -> dict[str, Any]:
    """What the manifest says of a segment, but for its files."""
    tpu, quants = segment.device == "tpu", program.quants
    return {
        "index": segment.index,
        "device": segment.device,
        "inputs": [
            tensor_entry(
                v, quants, tpu or v in program.dequantized_inside, v in program.made_on_tpu
            )
            for v in segment.inputs
        ],
        "outputs": [
            tensor_entry(v, quants, tpu or v in program.quantized_inside) for v in segment.outputs
        ],
        "tpu": segment.tpu,
        "parameter_bytes": segment.parameter_bytes,
        "cached_bytes": segment.cached,
        "streamed_bytes": segment.streamed,
        "macs": segment.macs,
        "predicted_ms": {what: milliseconds(seconds) for what, seconds in segment.times.items()},
        "operators": [_operator_entry(program, node, segment.device) for node in segment.nodes],
    }


def _operator_entry(program: Program, node: ir.Node, device: str) -> dict[str, Any]:
    cost, placement = program.plan.costs[node], program.plan.placements[node]
    return {
        "node": origin_of(node),
        "operator": operator_name(node),
        "reason": placement.reason,
        "parameter_bytes": sum(p.bytes for p in cost.parameters) if device == "tpu" else 0,
        "macs": cost.macs,
        "ms": milliseconds(cost.tpu if device == "tpu" else cost.host),
    }


def milliseconds(seconds: float) -> float:
    return round(seconds * 1e3, 6)


def tensor_entry(
    value: ir.Value, quants: Mapping[str, Quant], quantized: bool, dequantized: bool = False
) -> dict[str, Any]:
    """How a reader takes a tensor: as int8 of its scale, or, `dequantized`, as float made from
    that."""
    shape = (
        [int(d) if isinstance(d, int) else None for d in value.shape]
        if value.shape is not None
        else None
    )
    entry: dict[str, Any] = {
        "name": str(value.name),
        "dtype": "int8" if quantized and str(value.name) in quants else numpy_name(value),
        "shape": shape,
        "layout": "NHWC"
        if str(value.name) in quants and shape is not None and len(shape) == 4
        else None,
    }
    if (quantized or dequantized) and str(value.name) in quants:
        quant = quants[str(value.name)]
        entry |= {"scale": quant.scale, "zero_point": quant.zero_point}
    return entry


def input_entry(value: ir.Value) -> dict[str, Any]:
    """How the manifest says what a model takes; `nan` where the model itself looks for NaN there."""
    entry = tensor_entry(value, {}, False)
    return entry | ({"nan": True} if _looks_for_nan(value) else {})


def _looks_for_nan(value: ir.Value) -> bool:
    for reader in consumers_of(value):
        if operator_of(reader).reads_nan:
            return True
        moves = operator_of(reader).moves >= Moves.VALUES
        if moves and any(map(_looks_for_nan, reader.outputs)):
            return True
    return False


def numpy_name(value: ir.Value) -> str:
    return "unknown" if value.dtype is None else str(value.dtype.numpy().name)


def tool_versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in TOOLS}


def write_manifest(path: Path, manifest: dict[str, Any], last: bool = False) -> None:
    """Check a manifest against the schema and write it. Raises InternalError for one that does not
    hold.

    The `last` one of a bundle that stands must survive a loss of power; new bundles are
    synchronised as a whole.
    """
    manifest = {"manifest_version": MANIFEST_VERSION, **manifest}
    wrong = schema.complaint(manifest)
    if wrong is not None:
        raise InternalError("manifest", wrong)
    made = path / ".manifest.json"
    text = json.dumps(manifest, indent=1, ensure_ascii=False, allow_nan=False)
    try:
        made.write_text(text + "\n", encoding="utf-8")
        if last:
            folders.sync(made)
        made.replace(path / "manifest.json")
        if last:
            folders.sync(path)
    except BaseException:
        made.unlink(missing_ok=True)
        raise


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
