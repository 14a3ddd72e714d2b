"""The compiler on one page: from an ONNX file to a verified bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

import passes
from compiler import files
from compiler.checks import agreement, sensitivity, verify
from compiler.checks.baseline import Baseline, baseline
from compiler.checks.pass_checks import Checker
from compiler.device.legality import refusal
from compiler.driver import quality, toolchain
from compiler.driver.options import OPTIONAL, BuildOptions
from compiler.driver.progress import Progress, silent, stage
from compiler.emit import bundle
from compiler.emit import manifest as manifests
from compiler.graph import activations_around
from compiler.importer import load as importer
from compiler.partition import PartitionOptions, Program, partition
from compiler.quantize import samples as sampling
from compiler.quantize.balance import balance
from compiler.quantize.calibrate import ChannelStats, Ranges, calibrate, observe
from compiler.quantize.equalise import equalise
from compiler.quantize.products import Product, products
from compiler.quantize.saturate import saturated
from compiler.quantize.scales import assign, separate
from compiler.runtime import Bundle
from compiler.runtime.manifest import Manifest, MeasuredEntry
from compiler.targets import Target
from compiler.vendor import onnx_tf
from compiler.view import page
from passes import fold_constants

# Calibration samples on which `keep_float` and warnings look at single segments.
SENSITIVITY_SAMPLES = 4


def read(path: Path, options: BuildOptions, progress: Progress = silent) -> ir.Model:
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
    model: ir.Model,
    options: BuildOptions,
    progress: Progress = silent,
    checker: Checker | None = None,
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


def plan_program(model: ir.Model, options: BuildOptions, progress: Progress = silent) -> Program:
    """Run every pass over a model, in place, and cut it into segments."""
    rewritten = rewrite(model, options, progress)
    progress("cutting into segments", 1)
    return partition_model(rewritten, options.target, options.partitioning)


def partition_model(model: ir.Model, target: str, options: PartitionOptions) -> Program:
    """Cut a rewritten model into segments."""
    with stage("partition"):
        device = Target.load(target)
        placed = replace(options, place=options.place or "tpu")
        return Program(model, partition(model, device, placed), device)


def build(path: Path, output: Path, options: BuildOptions, progress: Progress = silent) -> Manifest:
    """Build a bundle from the ONNX file `path` in the folder `output`; returns its manifest.

    Raises CompilerError; then nothing is left at `output` but what stood there before.
    """
    options = options.suited_to("onnx", path)
    if options.lowering[0] == "onnx-tf":
        onnx_tf.find()  # before the work starts
    with bundle.folder(output, options.force, options.sources(path)) as folder:
        model = read(path, options, progress)
        importer.check_weights(model.graph)
        samples = sampling.load(
            options.calibration_path, model.graph.inputs, options.image, options.seed
        )
        calibration, held_out = samples.split()
        expected = run_float_model(path, model, held_out, progress)
        # Outputs that hold scores are told by the nodes behind them, which passes replace.
        layers = agreement.scored(model.graph)

        checker = Checker(model, options.seed, path) if options.check_passes else None
        rewritten = rewrite(model, options, progress, checker)
        program = _partition_and_quantize(rewritten, calibration, options, progress, checker)
        if options.keep_float:
            options = _with_float_nodes(program, calibration, options, progress)
            program = _partition_and_quantize(rewritten, calibration, options, progress, checker)

        converted = toolchain.convert_with_onnx_tf(program, calibration, options, progress)
        written = toolchain.emit({"": program}, folder, progress, converted)
        written = toolchain.compile_segments(written, folder, options.tool, progress)
        program = written.programs[""]
        with stage("emit"):
            calibrated = manifests.quality_entry(
                "random" if samples.random else "user",
                len(calibration),
                options.observers.default,
            )
            manifests.enter_baseline(calibrated, expected.kind, expected.note)
            plan = manifests.plan_entry(program, path, written.entries[""])
            manifest = manifests.assembled(plan, calibrated)
            if options.tokenizer_path is not None:
                manifest["tokenizer"] = bundle.copy_tokenizer(options.tokenizer_path, folder)
            manifests.write(folder, manifest)

        truth = verify.HeldOut(list(held_out), expected.results, layers)
        with stage("verify"):
            measured = _measure_quality(folder, program, truth, options, progress)
            manifests.enter_quality(manifest, measured)
            found = quality.warnings(manifest, program, _few(held_out))
            manifests.enter_quality(manifest, found)
            manifests.write(folder, manifest)
            page.write(folder, manifest)
        quality.require_sqnr(measured, options.min_sqnr)
    return manifest


def run_float_model(
    path: Path, model: ir.Model, held_out: sampling.Samples, progress: Progress = silent
) -> Baseline:
    """What onnxruntime makes of the samples with the user's file, which the bundle is held
    against."""
    with stage("float model"):
        step = progress("running the float model", len(held_out))
        return baseline(path, model, held_out, step)


def _partition_and_quantize(
    rewritten: ir.Model,
    calibration: sampling.Samples,
    options: BuildOptions,
    progress: Progress,
    checker: Checker | None,
) -> Program:
    progress("cutting into segments", 1)
    program = partition_model(rewritten, options.target, options.partitioning)
    return quantize(replace(program, checker=checker), calibration, options, progress)


def _with_float_nodes(
    program: Program, calibration: sampling.Samples, options: BuildOptions, progress: Progress
) -> BuildOptions:
    """The options, the nodes that contribute most to the error kept on the host."""
    few = _few(calibration)
    step = progress("finding what contributes", len(few))
    with stage("sensitivity"), files.temporary("sensitivity") as folder:
        segments = bundle.write_segments({"": program}, folder.path)[""]
        # Sensitivity runs the program, for which the rest of a manifest is not needed.
        entry = cast(Manifest, manifests.program_entry(program, segments))
        trial = Bundle(folder.path, entry)
        shares = sensitivity.shares(trial, program, few, step)
    kept = sensitivity.kept_in_float(program, shares, options.keep_float / 100)
    partitioning = replace(options.partitioning, kept=tuple(kept))
    return replace(options, partitioning=partitioning)


def _measure_quality(
    folder: Path,
    program: Program,
    truth: verify.HeldOut,
    options: BuildOptions,
    progress: Progress,
) -> MeasuredEntry:
    """The bundle in `folder`, loaded from disk, against the float results."""
    step = progress("verifying", len(truth.samples))
    measured = verify.verify(bundle.load(folder), program, truth, step)
    if options.accuracy is not None:
        step = progress("finding what contributes", len(truth.samples))
        shares = sensitivity.shares(bundle.load(folder), program, truth.samples, step)
        manifests.enter_shares(measured, shares)
    return measured


def _few(samples: sampling.Samples) -> sampling.Samples:
    return sampling.Samples(samples.loaders[:SENSITIVITY_SAMPLES])


def quantize(
    program: Program, samples: sampling.Samples, options: BuildOptions, progress: Progress = silent
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
    options: BuildOptions,
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
