"""Writes a bundle: manifest.json and segments/, in a temporary folder that is renamed when all is
there."""

from __future__ import annotations

import glob
import importlib.metadata
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx_ir as ir

from compiler.emit import host_segment, tflite
from compiler.emit.store import Store
from compiler.errors import BundleError, InternalError, OptionError, OutputError
from compiler.graph import operator_name, origin_of
from compiler.partition import Program, Segment
from compiler.quant import Quant
from compiler.runtime import Bundle, RuntimeBundleError, schema
from compiler.runtime.bundle import MANIFEST_VERSION, sha256
from compiler.vendor.onnx_tf import Lowered

TOOLS = ("onnx", "onnx-ir", "onnxscript", "onnxruntime", "ai-edge-litert", "numpy")


@contextmanager
def folder(path: Path, force: bool) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its place when the block ends well. Raises
    OutputError."""
    if path.exists() and not force:
        raise OutputError(f"{path}: exists already; --force replaces it")
    if path.exists() and not (path / "manifest.json").is_file():
        raise OutputError(f"{path}: is not a bundle; --force replaces bundles only")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        made = Path(
            tempfile.mkdtemp(prefix=f".{path.name}.building-{os.getpid()}-", dir=path.parent)
        )
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from error
    try:
        yield made
        made.chmod(0o755)
        _swap(made, path)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _sweep(path: Path) -> None:
    """Remove what builds of this bundle left behind that were killed outright."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.building-*"):
        process = left.name.split(".building-")[1].split("-")[0]
        if process.isdecimal() and not Path(f"/proc/{process}").exists() and Path("/proc").exists():
            shutil.rmtree(left, ignore_errors=True)


def _swap(made: Path, path: Path) -> None:
    """Put the new folder in the place of the old one, which is lost only when the new one stands."""
    old = None
    try:
        if path.exists():
            old = Path(
                tempfile.mkdtemp(prefix=f".{path.name}.building-{os.getpid()}-", dir=path.parent)
            )
            os.rename(path, old / "bundle")
        os.rename(made, path)
    except OSError as error:
        if old is not None and (old / "bundle").exists() and not path.exists():
            os.rename(old / "bundle", path)
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)


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
    from tokenizers import Tokenizer

    try:
        definition = source.read_text("utf-8")
        Tokenizer.from_str(definition)
    except Exception as error:
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


def numpy_name(value: ir.Value) -> str:
    return "unknown" if value.dtype is None else str(value.dtype.numpy().name)


def tool_versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in TOOLS}


def write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Check a manifest against the schema and write it. Raises InternalError for one that does not
    hold."""
    manifest = {"manifest_version": MANIFEST_VERSION, **manifest}
    wrong = schema.complaint(manifest)
    if wrong is not None:
        raise InternalError("manifest", wrong)
    made = path / ".manifest.json"
    text = json.dumps(manifest, indent=1, ensure_ascii=False, allow_nan=False)
    made.write_text(text + "\n", encoding="utf-8")
    made.replace(path / "manifest.json")


def load(path: Path) -> Bundle:
    """A bundle whose manifest holds to the schema and whose files are unchanged. Raises
    BundleError."""
    try:
        return Bundle.open(path)
    except RuntimeBundleError as error:
        raise BundleError(str(error)) from error
