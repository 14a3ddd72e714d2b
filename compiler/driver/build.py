"""The compiler on one page: from an ONNX file to a verified bundle."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

import passes
from compiler import files
from compiler.checks import agreement, sensitivity, verdict, verify
from compiler.checks.baseline import baseline
from compiler.checks.pass_checks import Checker
from compiler.device.legality import refusal
from compiler.emit import bundle, compilation
from compiler.emit import manifest as manifests
from compiler.errors import (
    CompilerError,
    InternalError,
    ModelError,
    OutputError,
    QualityError,
    ToolchainError,
)
from compiler.graph import activations_around, reference
from compiler.importer import load as importer
from compiler.partition import PartitionOptions, Program, halved, partition
from compiler.quantize import samples as sampling
from compiler.quantize.balance import balance
from compiler.quantize.calibrate import ChannelStats, Observers, Ranges, calibrate, observe
from compiler.quantize.equalise import equalise
from compiler.quantize.products import Product, products
from compiler.quantize.saturate import saturated
from compiler.quantize.scales import assign, separate
from compiler.runtime import Bundle
from compiler.runtime.manifest import Manifest, MeasuredEntry, SegmentEntry, WarningEntry
from compiler.targets import Target
from compiler.vendor import edgetpu_compiler, onnx_tf
from compiler.vendor.onnx_tf import ConvertedSegment
from compiler.view import page
from passes import fold_constants

# Steps that only serve accuracy, which --without leaves out.
ACCURACY = (
    "keep_gates",
    "keep_spectra",
    "keep_tails",
    "split_gates",
    "split_joins",
    "rotate_rows",
    "normalise_linears",
    "balance",
    "equalise",
    "correct_biases",
)
# Steps that give accuracy for time or time for accuracy, which --with asks for.
OPTIONAL = ("rotate_outputs", "second_row", "rotate_stream")
# Samples that --keep-float looks at.
SENSITIVITY_SAMPLES = 4

Progress = Callable[[str, int], Callable[[], None]]
"""report(stage, steps) announces a stage and returns what to call after each of its steps."""


def silent(stage: str, steps: int) -> Callable[[], None]:
    return lambda: None


@dataclass(frozen=True)
class Options:
    """What a user may choose; every field has the CLI option of its name."""

    dims: Mapping[str, int] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    values: Mapping[str, str] = field(default_factory=dict)
    target: str = "usb3"
    partitioning: PartitionOptions = field(default_factory=PartitionOptions)
    calibration: Path | None = None
    image: sampling.ImageOptions = field(default_factory=sampling.ImageOptions)
    observers: Observers = field(default_factory=Observers)
    min_sqnr: float | None = None
    accuracy: str | None = None
    tokenizer: Path | None = None
    keep_float: float = 0.0
    without: frozenset[str] = frozenset()
    also: frozenset[str] = frozenset()
    check_passes: bool = False
    seed: int = 0
    force: bool = False
    tool: edgetpu_compiler.Tool | None = None
    lowering: tuple[str, ...] = ("direct",)

    def sources(self, model: Path) -> list[Path]:
        """What a build of `model` may read."""
        given = (self.calibration, self.tokenizer)
        return [
            model,
            *(p for p in given if p is not None),
            Path(self.target),
            Path(self.partitioning.host),
        ]


@contextmanager
def stage(name: str):  # type: ignore[no-untyped-def]
    """Errors that we did not foresee name the stage they came from."""
    try:
        yield
    except (CompilerError, KeyboardInterrupt):
        raise
    except Exception as error:
        if isinstance(error, OSError) and files.ran_full(error):
            why = error.strerror or error
            raise OutputError(
                f"stage '{name}' ran out of room: {why}: free some or set $TMPDIR"
            ) from error
        if isinstance(error, MemoryError):
            raise ModelError(
                f"stage '{name}' ran out of memory: take a smaller model, or a larger machine"
            ) from error
        raise InternalError(name, f"{type(error).__name__}: {error}") from error


def read(path: Path, options: Options, progress: Progress = silent) -> ir.Model:
    """The model in `path`, checked and normalised."""
    with stage("import"):
        progress("reading the model", 1)
        model = importer.load(path, options.dims, options.shapes, options.values)
        if options.values:
            # Branches that are never taken go at once: onnxruntime crashes on some whose condition
            # is constant.
            fold_constants.run(model, Target.load(options.target))
        return model


def rewrite(
    model: ir.Model, options: Options, progress: Progress = silent, checker: Checker | None = None
) -> ir.Model:
    """Run every pass over a model, in place; `checker`, or one of its own where options ask for it,
    looks on."""
    target = Target.load(options.target)
    if checker is None and options.check_passes:
        checker = Checker(model, options.seed)
    step = progress("rewriting", len(passes.PASSES))
    for name, run in passes.PASSES:
        if name in options.without or (name in OPTIONAL and name not in options.also):
            step()
            continue
        with stage(name):
            run(model, target)
            if checker is not None:
                checker.check(name, model)
            step()
    with stage("partition"):
        separate(model, [n for n in model.graph if refusal(n, target) is None])
        common.RemoveUnusedFunctionsPass()(model)
        if checker is not None:
            checker.check("separate", model)
    return model


def divide(model: ir.Model, target: str, partitioning: PartitionOptions) -> Program:
    """Cut a rewritten model into segments."""
    with stage("partition"):
        device = Target.load(target)
        return Program(model, partition(model, device, partitioning), device)


def lower(model: ir.Model, options: Options, progress: Progress = silent) -> Program:
    """Run every pass over a model, in place, and cut it into segments."""
    return divided(rewrite(model, options, progress), options, progress)


def divided(model: ir.Model, options: Options, progress: Progress = silent) -> Program:
    progress("cutting into segments", 1)
    return divide(model, options.target, options.partitioning)


def sensitive(
    program: Program, samples: sampling.Samples, budget: float, progress: Progress = silent
) -> list[str]:
    """Nodes of the segments that contribute most to the error, found by running them on calibration
    samples."""
    few = sampling.Samples(samples.loaders[:SENSITIVITY_SAMPLES])
    step = progress("finding what contributes", len(few))
    with stage("sensitivity"), files.temporary("sensitivity") as folder:
        segments = bundle.write_segments({"": program}, folder.path)[""]
        # Sensitivity runs the program, for which the rest of a manifest is not needed.
        entry = cast(Manifest, manifests.program_entry(program, segments))
        trial = Bundle(folder.path, entry)
        return sensitivity.kept_in_float(
            program, sensitivity.shares(trial, program, few, step), budget
        )


def build(path: Path, output: Path, options: Options, progress: Progress = silent) -> Manifest:
    """Build a bundle from the ONNX file `path` in the folder `output`; returns its manifest."""
    with bundle.folder(output, options.force, options.sources(path)) as folder:
        model = read(path, options, progress)
        importer.check_weights(model.graph)
        samples = sampling.load(
            options.calibration, model.graph.inputs, options.image, options.seed
        )
        calibration, held_out = samples.split()
        with stage("float model"):
            step = progress("running the float model", len(held_out))
            expected = baseline(path, model, held_out, step)
        layers = agreement.scored(model.graph)
        checker = Checker(model, options.seed, path) if options.check_passes else None
        rewritten = rewrite(model, options, progress, checker)
        program = replace(divided(rewritten, options, progress), checker=checker)
        program = quantize(program, calibration, options, progress)
        if options.keep_float:
            kept = tuple(sensitive(program, calibration, options.keep_float, progress))
            partitioning = replace(options.partitioning, kept=kept)
            again = replace(options, partitioning=partitioning)
            program = replace(divided(rewritten, again, progress), checker=checker)
            program = quantize(program, calibration, options, progress)
        lowered = lower_elsewhere(program, calibration, options, progress)
        programs, entries = emit({"": program}, folder, options, progress, lowered)
        program, segments = programs[""], entries[""]
        with stage("emit"):
            calibrated = manifests.quality_entry(
                "random" if samples.random else "user", len(calibration), options.observers.default
            )
            manifests.enter_baseline(calibrated, expected.kind, expected.note)
            plan = manifests.plan_entry(program, path, segments)
            manifest = manifests.assembled(plan, calibrated)
            if options.tokenizer is not None:
                manifest["tokenizer"] = bundle.copy_tokenizer(options.tokenizer, folder)
            manifests.write(folder, manifest)
        with stage("verify"):
            step = progress("verifying", len(held_out))
            truth = verify.HeldOut(list(held_out), expected.results, layers)
            quality = verify.verify(bundle.load(folder), program, truth, step)
            if options.accuracy is not None:
                step = progress("finding what contributes", len(held_out))
                shares = sensitivity.shares(bundle.load(folder), program, held_out, step)
                manifests.enter_shares(quality, shares)
            manifests.enter_quality(manifest, quality)
            manifests.enter_quality(manifest, warnings(manifest, program, held_out))
            manifests.write(folder, manifest)
            (folder / "report.html").write_text(page.page(manifest), encoding="utf-8")
        gate(quality, options.min_sqnr)
    return manifest


def lower_elsewhere(
    program: Program, samples: sampling.Samples, options: Options, progress: Progress = silent
) -> dict[int, ConvertedSegment]:
    """The segments for Edge TPUs as onnx-tf writes them. Raises ToolchainError for one that it
    fails on, unless the direct writer may take that over."""
    if options.lowering[0] == "direct":
        return {}
    with stage("onnx-tf"):
        done, failed = onnx_tf.lower(program, samples, progress)
    if failed and "direct" not in options.lowering:
        index, why = min(failed.items())
        raise ToolchainError(
            f"onnx-tf fails on {len(failed)} of {len(done) + len(failed)} segments, first on {index}: {why}; "
            "--lowering onnx-tf,direct writes these directly"
        )
    return done


def emit(
    programs: Mapping[str, Program],
    folder: Path,
    options: Options,
    progress: Progress = silent,
    lowered: Mapping[int, ConvertedSegment] | None = None,
) -> tuple[dict[str, Program], dict[str, list[SegmentEntry]]]:
    """Write every segment of the programs, and compile those for Edge TPUs where edgetpu_compiler
    is at hand.

    A segment that it refuses is cut in two, until only single operators are left that it refuses:
    these stay int8 TFLite for the CPU. Returns the programs as they are now, and the entries of
    their segments in the manifest.
    """
    found = dict(programs)
    progress("writing segments", 1)
    with stage("emit"):
        entries = bundle.write_segments(found, folder, lowered)
    if options.tool is None:
        return found, entries
    with stage("edgetpu_compiler"), edgetpu_compiler.Session(options.tool) as session:
        while True:
            groups = edgetpu_compiler.groups(entries.values(), folder)
            outcomes = session.compile(groups, progress("edgetpu_compiler", len(groups)))
            if lowered:
                break  # its segments are what onnx-tf made of them
            before = sum(len(segments) for segments in entries.values())
            for name, program in found.items():
                refused = edgetpu_compiler.refused(entries[name], outcomes, folder)
                plan = halved(program.plan, program.model.graph, program.target, refused)
                found[name] = replace(program, plan=plan)
            if before == sum(len(program.plan.segments) for program in found.values()):
                break
            shutil.rmtree(folder / "segments")
            entries = bundle.write_segments(found, folder)
        for segments in entries.values():
            compilation.enter(segments, outcomes, folder)
    return found, entries


def quantize(
    program: Program, samples: sampling.Samples, options: Options, progress: Progress = silent
) -> Program:
    """Give a scale to every activation that a TPU segment touches."""
    with stage("balance"):
        chosen = {} if "balance" in options.without else balanced(program)
        step = progress("balancing channels", len(samples) if chosen else 0)
        ranges = balance(program.model, list(chosen.values()), samples, step)
        if program.checker is not None and chosen:
            program.checker.check("balance", program.model)
    return scaled(program, ranges, samples, options, progress)


def balanced(program: Program) -> dict[str, Product]:
    """The normalised products on an Edge TPU."""
    found = products(program.model.graph).items()
    return {name: product for name, product in found if product.made in program.made_on_tpu}


def scaled(
    program: Program,
    ranges: Ranges,
    samples: sampling.Samples,
    options: Options,
    progress: Progress = silent,
) -> Program:
    """Scales where ranges are known already, and from samples where they are not; channels are
    equalised first."""
    nodes = [n for s in program.plan.segments if s.device == "tpu" for n in s.nodes]
    values = activations_around(nodes)
    unknown = [v for v in values if str(v.name) not in ranges]
    shown: dict[str, ChannelStats] = {}
    with stage("calibrate"):
        if unknown:
            shown = saturated(
                nodes,
                observe(program.model, unknown, samples, progress("calibrating", len(samples))),
            )
    if "equalise" not in options.without:
        with stage("equalise"):
            before, shown = shown, equalise(program.model, nodes, shown)
            if program.checker is not None:
                program.checker.check("equalise", program.model, _multiplied(before, shown))
    with stage("calibrate"):
        ranges = ranges | calibrate(program.model, unknown, shown, samples, options.observers)
    with stage("quantize"):
        means = (
            {}
            if "correct_biases" in options.without
            else {name: s.mean for name, s in shown.items()}
        )
        return replace(program, quants=assign(nodes, values, ranges), means=means)


def _multiplied(before: Mapping[str, ChannelStats], after: Mapping[str, ChannelStats]) -> set[str]:
    """The activations that equalising multiplied by factors other than 1."""
    return {
        name
        for name, shown in before.items()
        if not np.array_equal(shown.square, after[name].square)
    }


def save_graph(program: Program, path: Path, sources: Sequence[Path] = ()) -> None:
    """The lowered graph as ONNX, weights beside it in PATH.data; `sources` are still needed. Raises
    OutputError."""
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


def forecast(program: Program) -> dict[str, Any]:
    """A row of `plan`: the prediction with what is cached and streamed."""
    segments = program.plan.segments
    return {
        **manifests.prediction_entry(program),
        "tpu_segments": sum(s.device == "tpu" for s in segments),
        "host_segments": sum(s.device == "host" for s in segments),
        "cached_bytes": sum(s.cached for s in segments),
        "streamed_bytes": sum(s.streamed for s in segments),
        "reload_ms": manifests.milliseconds(program.plan.reload(program.target)),
    }


def warnings(manifest: Manifest, program: Program, samples: sampling.Samples) -> MeasuredEntry:
    """What is bad about a bundle, with the segment and the node to look at."""
    quality = manifest["quality"]
    findings = verdict.findings(quality)
    if not findings:
        return {}
    worst = verify.worst_segment(quality)
    segment = None if worst is None else int(worst[0])
    few = sampling.Samples(samples.loaders[:SENSITIVITY_SAMPLES])
    node = None if segment is None else verify.worst_node(program, segment, few)
    found: list[WarningEntry] = []
    for finding in findings:
        advice = verdict.advice(manifest, finding["kind"], node)
        found.append({**finding, "segment": segment, "node": node, "advice": advice})
    return {"warnings": found}


def gate(quality: MeasuredEntry, least: float | None) -> None:
    """Raises QualityError where an output is below the SQNR that the user asked for, or where one
    held-out sample cannot tell. An output that is the same for several samples is held to its plain
    SQNR."""
    if least is None:
        return
    for name, entry in quality["outputs"].items():
        found = entry["sqnr_db"]
        if found is None and quality["samples"] == 1:
            raise QualityError(
                f"output '{name}': one held-out sample does not show how it varies, so --min-sqnr cannot be told: give "
                "at least 8 samples with --calibration"
            )
        found = entry["plain_sqnr_db"] if found is None else found
        if found < least:
            worst = verify.worst_segment(quality)
            where = f"; segment {worst[0]} loses most ({worst[1]} dB)" if worst else ""
            part = verdict.part(entry)
            raise QualityError(
                f"output '{name}'{part} has {found} dB, --min-sqnr asks for {least}{where}"
            )
