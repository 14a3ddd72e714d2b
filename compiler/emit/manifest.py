"""Makes every entry of a manifest, puts what comes later into its place, and writes it.

A build writes the manifest twice: first so that the bundle can be loaded and verified, then with
what verification measured. The types are in compiler/runtime/manifest.py.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

import onnx_ir as ir

from compiler.errors import InternalError
from compiler.graph import consumers_of, operator_name, origin_of
from compiler.importer import pixels
from compiler.importer.pixels import PixelInput
from compiler.ops import Moves, operator_of
from compiler.partition import Program, Segment
from compiler.quant import Quant
from compiler.runtime import folders, schema
from compiler.runtime.bundle import sha256
from compiler.runtime.manifest import (
    FILE_NAME,
    MANIFEST_VERSION,
    WRITER,
    BaselineKind,
    Calibration,
    CompiledEntry,
    CpuOperatorEntry,
    FileEntry,
    FrontierEntry,
    Manifest,
    MeasuredEntry,
    ModelEntry,
    NotJudgedEntry,
    ObserverName,
    OperatorEntry,
    PlanEntry,
    PlannedSegmentEntry,
    PredictionEntry,
    ProgramEntry,
    QualityEntry,
    SegmentEntry,
    TargetEntry,
    TensorEntry,
)
from compiler.targets import Target
from compiler.vendor.audit import Audit
from compiler.vendor.edgetpu_compiler import Compiled, Refused
from compiler.vendor.onnx_tf import ConvertedSegment

# Packages that decide what a build gives; their versions are named beside our own.
TOOLS = ("onnx", "onnx-ir", "onnxscript", "onnxruntime", "ai-edge-litert", "numpy")


# The whole and its programs.


def summary(program: Program, path: Path) -> PlanEntry:
    """What is planned for the model in the file `path`, before anything is written."""
    planned = [planned_segment_entry(program, segment) for segment in program.plan.segments]
    # Who shows a plan takes both kinds of entry, and asks whether there are files.
    return plan_entry(program, path, cast(list[SegmentEntry], planned))


def plan_entry(program: Program, path: Path, segments: Sequence[SegmentEntry]) -> PlanEntry:
    """The program of the model in the file `path`; `segments` are the entries of its segments."""
    opset = program.model.graph.opset_imports.get("", 0)
    model = model_entry(path, sha256(path), opset)
    return plan_of_program(model, program.target, program_entry(program, segments))


def plan_of_program(model: ModelEntry, target: Target, program: ProgramEntry) -> PlanEntry:
    """A program with the model that it comes from and the device that it is for."""
    return {"model": model, "target": target_entry(target), **program}


def assembled(plan: PlanEntry, quality: QualityEntry) -> Manifest:
    """The manifest of a bundle that is written and not yet verified."""
    return {
        "manifest_version": MANIFEST_VERSION,
        "model": plan["model"],
        "target": plan["target"],
        "inputs": plan["inputs"],
        "outputs": plan["outputs"],
        "prediction": plan["prediction"],
        "segments": plan["segments"],
        "tools": tool_versions(),
        "quality": quality,
    }


def quality_entry(calibration: Calibration, samples: int, observer: str) -> QualityEntry:
    """What set the ranges: the kind of samples, how many, and the observer that looked at them."""
    return {
        "calibration": calibration,
        "calibration_samples": samples,
        "observer": cast(ObserverName, observer),
    }


def enter_baseline(quality: QualityEntry, kind: str, note: str) -> None:
    """Say what the bundle is compared with, and, in a note, why that is not the user's file."""
    quality["baseline"] = cast(BaselineKind, kind)
    if note:
        quality["baseline_note"] = note


def enter_frontier(quality: QualityEntry, frontier: Sequence[FrontierEntry]) -> None:
    """Put the plans that the search offers into the manifest, if any."""
    if frontier:
        quality["frontier"] = list(frontier)


def model_entry(path: Path, digest: str, opset: int) -> ModelEntry:
    """The source of a bundle; `digest` is the SHA-256 of what was read."""
    return {"file": path.name, "sha256": digest, "opset": opset}


def target_entry(target: Target) -> TargetEntry:
    """The device that a plan is for."""
    return {
        "name": target.name,
        "description": target.description,
        "sram_bytes": target.sram_bytes,
    }


def tool_versions() -> dict[str, str]:
    """Versions of what makes a bundle, ours first."""
    versions = {name: importlib.metadata.version(name) for name in TOOLS}
    try:
        return {WRITER: importlib.metadata.version(WRITER), **versions}
    except importlib.metadata.PackageNotFoundError:
        # A source tree that is not installed has no version.
        return versions


def program_entry(program: Program, segments: Sequence[SegmentEntry]) -> ProgramEntry:
    """What the manifest says of a program; `segments` are the entries of its segments."""
    graph = program.model.graph
    outputs = [
        tensor_entry(value, program.quants, False, value in program.made_on_tpu)
        for value in graph.outputs
    ]
    return {
        "inputs": [input_entry(value, pixels.of(program.model)) for value in graph.inputs],
        "outputs": outputs,
        "prediction": prediction_entry(program),
        "segments": list(segments),
    }


def prediction_entry(program: Program) -> PredictionEntry:
    """What the cost model says of the whole plan, and how far to trust it."""
    plan = program.plan
    entry: PredictionEntry = {
        "tpus": plan.options.tpus,
        "host": plan.options.host,
        "objective": plan.options.objective,
        "place": plan.options.place or "tpu",
        "latency_ms": milliseconds(plan.latency),
        "interval_ms": milliseconds(plan.interval),
        "bound_by": plan.bound_by,
        "gap_percent": None if plan.gap is None else round(100 * plan.gap, 2),
        "error_percent": program.target.error_percent,
    }
    if plan.p95 is not None and plan.options.rate is not None:
        entry["rate"] = plan.options.rate
        entry["p95_ms"] = milliseconds(plan.p95)
        entry["load"] = round(plan.options.rate * plan.interval, 4)
    if plan.host_slots > 1:
        entry["host_slots"] = plan.host_slots
        entry["host_gain"] = plan.host_gain
    if program.alone is not None:
        entry["host_float_ms"] = milliseconds(program.alone.in_float)
        entry["host_int8_ms"] = milliseconds(program.alone.in_int8)
    return entry


# Segments.


def segment_entry(
    program: Program,
    segment: Segment,
    files: Sequence[FileEntry],
    converted: ConvertedSegment | None = None,
) -> SegmentEntry:
    """What the manifest says of a segment that is written to `files`, its own first; `converted` is
    what onnx-tf made of it, if anything."""
    return {
        **planned_segment_entry(program, segment, converted),
        "lowering": "direct" if converted is None else "onnx-tf",
        "compiled": None,
        "files": list(files),
    }


def planned_segment_entry(
    program: Program, segment: Segment, converted: ConvertedSegment | None = None
) -> PlannedSegmentEntry:
    """What is known of a segment before it is written."""
    is_tpu = segment.device == "tpu"
    entry: PlannedSegmentEntry = {
        "index": segment.index,
        "device": segment.device,
        "inputs": _input_entries(program, segment, converted),
        "outputs": _output_entries(program, segment, converted),
        "tpu": segment.tpu,
        "parameter_bytes": segment.parameter_bytes,
        "cached_bytes": segment.cached,
        "streamed_bytes": segment.streamed,
        "macs": segment.macs,
        "predicted_ms": {what: milliseconds(seconds) for what, seconds in segment.times.items()},
        "start_ms": milliseconds(program.plan.schedule[segment.index].start),
        "operators": [operator_entry(program, node, is_tpu) for node in segment.nodes],
    }
    if segment.replicas:
        entry["replicas"] = list(segment.replicas)
    return entry


def _input_entries(
    program: Program, segment: Segment, converted: ConvertedSegment | None
) -> list[TensorEntry]:
    """What a segment reads: int8 on the TPU, and on the host where its file dequantizes."""
    if converted is not None:
        return _converted_entries(converted.inputs)
    found = []
    for value in segment.inputs:
        takes_int8 = segment.device == "tpu" or value in program.dequantized_inside
        made_on_tpu = value in program.made_on_tpu
        found.append(tensor_entry(value, program.quants, takes_int8, made_on_tpu))
    return found


def _output_entries(
    program: Program, segment: Segment, converted: ConvertedSegment | None
) -> list[TensorEntry]:
    """What a segment gives: int8 on the TPU, and on the host where its file quantizes."""
    if converted is not None:
        return _converted_entries(converted.outputs)
    found = []
    for value in segment.outputs:
        gives_int8 = segment.device == "tpu" or value in program.quantized_inside
        found.append(tensor_entry(value, program.quants, gives_int8))
    return found


def _converted_entries(tensors: Mapping[ir.Value, Quant]) -> list[TensorEntry]:
    return [tensor_entry(value, {str(value.name): quant}, True) for value, quant in tensors.items()]


def operator_entry(program: Program, node: ir.Node, is_tpu: bool) -> OperatorEntry:
    """Where an operator runs, why, and what it costs there."""
    cost = program.plan.costs[node]
    parameter_bytes = sum(parameter.bytes for parameter in cost.parameters)
    return {
        "node": origin_of(node),
        "operator": operator_name(node),
        "reason": program.plan.placements[node].reason,
        "parameter_bytes": parameter_bytes if is_tpu else 0,
        "macs": cost.macs,
        "ms": milliseconds(cost.tpu if is_tpu else cost.host),
    }


def milliseconds(seconds: float) -> float:
    """Seconds as the manifest gives them, to the nanosecond."""
    return round(seconds * 1e3, 6)


# Tensors.


def tensor_entry(
    value: ir.Value, quants: Mapping[str, Quant], is_int8: bool, was_int8: bool = False
) -> TensorEntry:
    """How a reader takes a tensor: as int8 of its scale, or as float; as float that was int8 before
    it has a scale too. Tensors without an entry in `quants` are float in any case."""
    name = str(value.name)
    quant = quants.get(name)
    shape = _shape(value)
    is_image = quant is not None and shape is not None and len(shape) == 4
    entry: TensorEntry = {
        "name": name,
        "dtype": "int8" if is_int8 and quant is not None else _numpy_name(value),
        "shape": shape,
        "layout": "NHWC" if is_image else None,
    }
    if quant is not None and (is_int8 or was_int8):
        entry["scale"] = quant.scale
        entry["zero_point"] = quant.zero_point
    return entry


def input_entry(value: ir.Value, form: PixelInput | None = None) -> TensorEntry:
    """What a model takes; `nan` where the model itself looks for NaN there."""
    entry = tensor_entry(value, {}, False)
    if form is not None and form.name == value.name and form.layout == "NHWC":
        entry["layout"] = "NHWC"
    if _looks_for_nan(value):
        entry["nan"] = True
    return entry


def _shape(value: ir.Value) -> list[int | None] | None:
    if value.shape is None:
        return None
    return [int(size) if isinstance(size, int) else None for size in value.shape]


def _numpy_name(value: ir.Value) -> str:
    return "unknown" if value.dtype is None else str(value.dtype.numpy().name)


def _looks_for_nan(value: ir.Value) -> bool:
    for reader in consumers_of(value):
        if operator_of(reader).reads_nan:
            return True
        hands_on = operator_of(reader).moves >= Moves.VALUES
        if hands_on and any(map(_looks_for_nan, reader.outputs)):
            return True
    return False


# Files.


def file_entry(file: Path, folder: Path) -> FileEntry:
    """How the manifest names a file of the bundle in `folder`."""
    return {
        "path": file.relative_to(folder).as_posix(),
        "sha256": sha256(file),
        "bytes": file.stat().st_size,
    }


# What is known later.


def enter_refused(segment: SegmentEntry, refused: Refused) -> None:
    """Say of the operators of a segment that edgetpu_compiler did not take it."""
    for operator in segment["operators"]:
        operator["reason"] = (
            f"runs on the CPU, as edgetpu_compiler refuses its segment: {refused.reason}"
        )


def enter_compiled(
    segment: SegmentEntry, file: FileEntry, compiled: Compiled, audit: Audit
) -> None:
    """Say of a segment what edgetpu_compiler made of it, in `file`, and what its audit found."""
    on_cpu: list[CpuOperatorEntry] = []
    mapped = 0
    for row in compiled.rows:
        if row.mapped:
            mapped += row.count
        else:
            on_cpu.append({"operator": row.operator, "count": row.count, "status": row.status})
    entry: CompiledEntry = {
        "path": file["path"],
        "compiler": compiled.version,
        "cached_bytes": compiled.cached,
        "streamed_bytes": compiled.streamed,
        "mapped": mapped,
        "on_cpu": on_cpu,
        "audited": audit.status == "equal",
        "not_judged": _not_judged(audit),
    }
    segment["files"] = [segment["files"][0], file]
    segment["compiled"] = entry


def _not_judged(audit: Audit) -> list[NotJudgedEntry]:
    doubtful = [*audit.of("not judged"), *audit.of("differs")]
    counts = Counter((layer.operator, layer.detail) for layer in doubtful)
    found: list[NotJudgedEntry] = []
    for (operator, reason), count in counts.items():
        found.append({"operator": operator, "count": count, "reason": reason})
    return found


def forget_compiled(segment: SegmentEntry) -> None:
    """Take back what an earlier compilation entered."""
    segment["files"] = segment["files"][:1]
    segment["compiled"] = None


def enter_cache(segments: Iterable[SegmentEntry], updates: Mapping[str, str]) -> None:
    """Say which outputs of segments may take the memory of which inputs. `updates` has the inputs
    of a key/value cache, by the output that is the new one."""
    for segment in segments:
        reads = {tensor["name"] for tensor in segment["inputs"]}
        gives = {tensor["name"] for tensor in segment["outputs"]}
        own = {}
        for output, source in updates.items():
            if output in gives and source in reads:
                own[output] = source
        if own:
            segment["in_place"] = own


def enter_shares(measured: MeasuredEntry, shares: Mapping[int, float]) -> None:
    """Put the share of each TPU segment in the noise at the end, by its index, beside its
    figures."""
    for index, share in shares.items():
        measured["segments"][str(index)]["share"] = share


def enter_quality(manifest: Manifest, measured: MeasuredEntry) -> None:
    """Put what verification measured beside what the bundle was calibrated with."""
    manifest["quality"] = {**manifest["quality"], **measured}


def write(folder: Path, manifest: Manifest, is_last: bool = False) -> None:
    """Check a manifest against its schema and write it, in one step. Raises InternalError for one
    that does not hold to it, OSError.

    The last one of a bundle that stands must survive a loss of power; new bundles are synchronised
    as a whole.
    """
    wrong = schema.complaint(manifest)
    if wrong is not None:
        raise InternalError("manifest", wrong)
    made = folder / f".{FILE_NAME}"
    text = json.dumps(manifest, indent=1, ensure_ascii=False, allow_nan=False)
    try:
        made.write_text(text + "\n", encoding="utf-8")
        if is_last:
            folders.sync(made)
        made.replace(folder / FILE_NAME)
        if is_last:
            folders.sync(folder)
    except BaseException:
        made.unlink(missing_ok=True)
        raise
