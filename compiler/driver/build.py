"""The compiler on one page: from an ONNX file to a verified bundle."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

import passes
from compiler import files, importer
from compiler.checks import agreement, sensitivity, verdict, verify
from compiler.checks.baseline import baseline
from compiler.checks.pass_checks import Checker
from compiler.driver.rewriting import PassDriver
from compiler.driver.stages import Progress, silent, stage
from compiler.emit import bundle
from compiler.errors import (
    OutputError,
    QualityError,
    ToolchainError,
)
from compiler.graph import activations_around, reference
from compiler.partition import PartitionOptions, Program, halved, partition
from compiler.quantize import samples as sampling
from compiler.quantize.balance import Product, products
from compiler.quantize.calibrate import Observers, Ranges, calibrate
from compiler.quantize.scales import assign
from compiler.runtime.bundle import sha256
from compiler.targets import Target
from compiler.vendor import edgetpu_compiler, onnx_tf
from compiler.vendor.onnx_tf import Lowered
from compiler.view import page
from passes import PassContext, SampleContext, fold_constants

# Steps that only serve accuracy, which --without leaves out, and those that --with asks for.
ACCURACY = passes.ACCURACY
OPTIONAL = passes.OPTIONAL
# Samples that --keep-float looks at.
SENSITIVITY_SAMPLES = 4


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


def read(path: Path, options: Options, progress: Progress = silent) -> ir.Model:
    """The model in `path`, checked and normalised."""
    with stage("import"):
        progress("reading the model", 1)
        model = importer.load(path, options.dims, options.shapes, options.values)
        if options.values:
            # Branches that are never taken go at once: onnxruntime crashes on some whose condition
            # is constant.
            fold_constants.run(model, PassContext(Target.load(options.target)))
        return model


def rewrite(
    model: ir.Model, options: Options, progress: Progress = silent, driver: PassDriver | None = None
) -> ir.Model:
    """Run every pass over a model, in place. Without a `driver` the model gets one of its own."""
    driver = driver or pass_driver(model, options)
    context = PassContext(Target.load(options.target))
    step = progress("rewriting", len(passes.PASSES))
    driver.run(passes.PASSES, model, context, step)
    return model


def pass_driver(model: ir.Model, options: Options, path: Path | None = None) -> PassDriver:
    """What runs the passes over `model`, which has seen none yet, as options say.

    A checker holds outputs also against those of the file in `path`.
    """
    checker = Checker(model, options.seed, path) if options.check_passes else None
    return PassDriver(options.without, options.also, checker)


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
        trial = bundle.Bundle(folder.path, program_entry(program, segments))
        return sensitivity.kept_in_float(
            program, sensitivity.shares(trial, program, few, step), budget
        )


def build(
    path: Path, output: Path, options: Options, progress: Progress = silent
) -> dict[str, Any]:
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
        driver = pass_driver(model, options, path)
        rewritten = rewrite(model, options, progress, driver)
        program = divided(rewritten, options, progress)
        program = quantize(program, calibration, options, progress, driver)
        if options.keep_float:
            kept = tuple(sensitive(program, calibration, options.keep_float, progress))
            partitioning = replace(options.partitioning, kept=kept)
            again = replace(options, partitioning=partitioning)
            program = divided(rewritten, again, progress)
            program = quantize(program, calibration, options, progress, driver)
        lowered = lower_elsewhere(program, calibration, options, progress)
        programs, entries = emit({"": program}, folder, options, progress, lowered)
        program, segments = programs[""], entries[""]
        with stage("emit"):
            manifest = {
                **summary(program, path),
                "tools": bundle.tool_versions(),
                "segments": segments,
                "quality": {
                    "calibration": "random" if samples.random else "user",
                    "calibration_samples": len(calibration),
                    "observer": options.observers.default,
                    **expected.entry(),
                },
            }
            if options.tokenizer is not None:
                manifest["tokenizer"] = bundle.copy_tokenizer(options.tokenizer, folder)
            bundle.write_manifest(folder, manifest)
        with stage("verify"):
            step = progress("verifying", len(held_out))
            truth = verify.HeldOut(list(held_out), expected.results, layers)
            quality = verify.verify(bundle.load(folder), program, truth, step)
            if options.accuracy is not None:
                step = progress("finding what contributes", len(held_out))
                for index, share in sensitivity.shares(
                    bundle.load(folder), program, held_out, step
                ).items():
                    quality["segments"][str(index)]["share"] = share
            manifest["quality"] |= quality
            warn(manifest, program, held_out)
            bundle.write_manifest(folder, manifest)
            (folder / "report.html").write_text(page.page(manifest), encoding="utf-8")
        gate(quality, options.min_sqnr)
    return manifest


def lower_elsewhere(
    program: Program, samples: sampling.Samples, options: Options, progress: Progress = silent
) -> dict[int, Lowered]:
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
    lowered: Mapping[int, Lowered] | None = None,
) -> tuple[dict[str, Program], dict[str, list[dict[str, Any]]]]:
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
            edgetpu_compiler.enter(segments, outcomes, folder)
    return found, entries


def quantize(
    program: Program,
    samples: sampling.Samples,
    options: Options,
    progress: Progress = silent,
    driver: PassDriver | None = None,
) -> Program:
    """Give a scale to every activation that a TPU segment touches, by what samples show."""
    chosen = list(balanced(program).values())
    context = _sample_context(program, samples, progress, products=chosen)
    return _calibrated(program, context, options, driver)


def balanced(program: Program) -> dict[str, Product]:
    """The normalised products on an Edge TPU, by the names of their factors."""
    found = products(program.model.graph)
    return {name: p for name, p in found.items() if p.made in program.made_on_tpu}


def scaled(
    program: Program, ranges: Ranges, options: Options, driver: PassDriver | None = None
) -> Program:
    """As `quantize`, for a program of which all ranges are known."""
    context = _sample_context(program, sampling.Samples([]), silent, ranges=dict(ranges))
    return _calibrated(program, context, options, driver)


def _sample_context(
    program: Program, samples: sampling.Samples, progress: Progress, **known: Any
) -> SampleContext:
    on_tpu = [segment for segment in program.plan.segments if segment.device == "tpu"]
    nodes = [node for segment in on_tpu for node in segment.nodes]
    return SampleContext(program.target, samples=samples, announce=progress, nodes=nodes, **known)


def _calibrated(
    program: Program, context: SampleContext, options: Options, driver: PassDriver | None
) -> Program:
    """Run the passes that look at samples, then choose scales by the ranges that they leave."""
    driver = driver or PassDriver(options.without, options.also)
    driver.run(passes.SAMPLE_PASSES, program.model, context)
    values = activations_around(context.nodes)
    unknown = [value for value in values if str(value.name) not in context.ranges]
    with stage("calibrate"):
        found = calibrate(program.model, unknown, context.stats, context.samples, options.observers)
    with stage("quantize"):
        quants = assign(context.nodes, values, context.ranges | found)
    return replace(program, quants=quants, means=context.means)


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


def summary(program: Program, path: Path) -> dict[str, Any]:
    """The plan as plain data, in the words of the manifest; before quantization it is a dry run."""
    opset = program.model.graph.opset_imports.get("", 0)
    return {
        "model": {"file": path.name, "sha256": sha256(path), "opset": opset},
        "target": target_entry(program.target),
        **program_entry(program, [bundle.segment_entry(program, s) for s in program.plan.segments]),
    }


def target_entry(target: Target) -> dict[str, Any]:
    return {"name": target.name, "description": target.description, "sram_bytes": target.sram_bytes}


def program_entry(program: Program, segments: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the manifest says of a program; `segments` are the entries of its segments."""
    graph, quants = program.model.graph, program.quants
    return {
        "inputs": [bundle.input_entry(v) for v in graph.inputs],
        "outputs": [
            bundle.tensor_entry(v, quants, False, v in program.made_on_tpu) for v in graph.outputs
        ],
        "prediction": prediction(program),
        "segments": list(segments),
    }


def forecast(program: Program) -> dict[str, Any]:
    """A row of `plan`: the prediction with what is cached and streamed."""
    segments = program.plan.segments
    return {
        **prediction(program),
        "tpu_segments": sum(s.device == "tpu" for s in segments),
        "host_segments": sum(s.device == "host" for s in segments),
        "cached_bytes": sum(s.cached for s in segments),
        "streamed_bytes": sum(s.streamed for s in segments),
        "reload_ms": bundle.milliseconds(program.plan.reload(program.target)),
    }


def prediction(program: Program) -> dict[str, Any]:
    """What the cost model says of the whole plan, and how far to trust it."""
    plan = program.plan
    return {
        "tpus": plan.options.tpus,
        "host": plan.options.host,
        "objective": plan.options.objective,
        "place": plan.options.place,
        "latency_ms": bundle.milliseconds(plan.latency),
        "interval_ms": bundle.milliseconds(plan.interval),
        "gap_percent": None if plan.gap is None else round(100 * plan.gap, 2),
        "error_percent": program.target.error_percent,
    }


def warn(manifest: dict[str, Any], program: Program, samples: sampling.Samples) -> None:
    """Enter what is bad about a bundle into its manifest, with the segment and the node to look at."""
    quality = manifest["quality"]
    findings = verdict.findings(quality)
    if not findings:
        return
    worst = verify.worst_segment(quality)
    segment = None if worst is None else int(worst[0])
    few = sampling.Samples(samples.loaders[:SENSITIVITY_SAMPLES])
    node = None if segment is None else verify.worst_node(program, segment, few)
    where = {"segment": segment, "node": node}
    quality["warnings"] = [
        finding | where | {"advice": verdict.advice(manifest, finding["kind"], node)}
        for finding in findings
    ]


def gate(quality: Mapping[str, Any], least: float | None) -> None:
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
