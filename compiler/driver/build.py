"""The compiler on one page: from an ONNX file to a verified bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import cast

import onnx_ir as ir

import passes
from compiler import files, importer
from compiler.checks import agreement, sensitivity, sights, verify
from compiler.checks.baseline import Baseline, baseline
from compiler.checks.pass_checks import Checker
from compiler.device.cost import HostAlone, host_alone
from compiler.driver import labelled, picture, quality, state, toolchain
from compiler.driver.dump import GraphDump
from compiler.driver.options import BuildOptions
from compiler.driver.quantizing import quantize
from compiler.driver.rewriting import PassDriver, steps_of
from compiler.driver.search import Search
from compiler.driver.settled import Point, Settled
from compiler.driver.stages import StageTimer, Timings, stage
from compiler.emit import bundle, report, vision
from compiler.emit import manifest as manifests
from compiler.graph.lineage import Lineage
from compiler.partition import PartitionOptions, Program, partition_for_all, plain_on_host
from compiler.progress import Progress, notes, silent
from compiler.quantize import samples as sampling
from compiler.runtime import Bundle
from compiler.runtime.manifest import FrontierEntry, Manifest, MeasuredEntry, VisionEntry
from compiler.targets import Host, Target
from compiler.vendor import onnx_tf
from passes import Pass, PassContext, Steps, fold_constants

# The step that is tried where it may make a plan faster.
FUSE = "fuse_blocks"
# Plans that are tried with some of the blocks fused.
MOST_PARTS = 3
# Samples on which `keep_float` and warnings look at single segments.
SENSITIVITY_SAMPLES = 4
# Where a graph notes what the host alone would take.
HOST_ALONE = "edgetpu.host_alone"


def build(
    path: Path,
    output: Path,
    options: BuildOptions,
    progress: Progress = silent,
    timings: Timings | None = None,
) -> Manifest:
    """Build a bundle from the ONNX file `path` in the folder `output`; returns its manifest.

    `timings` are filled in. Raises CompilerError; then nothing is left at `output` but what stood
    there before.
    """
    options = options.suited_to("onnx", path)
    if options.lowering[0] == "onnx-tf":
        onnx_tf.find()  # before the work starts
    progress = timer = StageTimer(progress)
    with bundle.folder(output, options.force, options.sources(path)) as folder:
        model = read(path, options, progress)
        importer.check_weights(model.graph)
        labels = picture.labels_of(model, options)
        labelled.check(options)
        samples = state.samples(path, model, options, progress)
        calibration, held_out = samples.split()
        expected = run_float_model(path, model, held_out, progress)
        truth = _truth(model, held_out, expected)
        sight = _vision(model, truth, labels, options.labels_path)
        source = labelled.FloatModel(path, model, expected, sight)
        marked = labelled.mark(source, options, progress)

        driver = pass_driver(model, options, path)
        rewritten = rewrite(model, options, progress, driver)
        programs = _Programs(path, [rewritten], calibration, options, progress, driver)
        settled = programs.settled(truth)
        program = settled.program

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
            manifests.enter_frontier(calibrated, settled.frontier_entries())
            plan = manifests.plan_entry(program, path, written.entries[""])
            manifest = manifests.assembled(plan, calibrated)
            _enter_uses(manifest, model, sight, options, folder)
            manifests.write(folder, manifest)

        with stage("verify"):
            made = bundle.load(folder)
            measured = _measure_quality(made, program, truth, options, progress)
            manifests.enter_quality(manifest, measured)
            if marked is not None:
                right = marked.with_bundle(made, progress)
                manifests.enter_quality(manifest, right)
            _judge(manifest, program, settled, held_out)
            manifests.write(folder, manifest)
            report.write(folder, manifest, sights.sights(made, truth))
        quality.require_sqnr(measured, options.min_sqnr)
    note_timings(timings, timer, driver)
    return manifest


def _enter_uses(
    manifest: Manifest,
    model: ir.Model,
    sight: VisionEntry | None,
    options: BuildOptions,
    folder: Path,
) -> None:
    """Say in a manifest what goes in and out beside tensors: states, pictures, texts."""
    state.enter(manifest, model)
    entry = picture.of(model)
    if entry is not None and sight is not None:
        # Passes decide what takes up the normalisation of pixels.
        manifest["vision"] = {**sight, "picture": entry}
    if options.tokenizer_path is not None:
        manifest["tokenizer"] = bundle.copy_tokenizer(options.tokenizer_path, folder)


def frontier(path: Path, options: BuildOptions, progress: Progress = silent) -> list[FrontierEntry]:
    """Plans of the ONNX file `path` from the fastest to the most accurate one, as the manifest has
    them."""
    options = replace(options, frontier=True, pick=None).suited_to("onnx", path)
    model = read(path, options, progress)
    samples = state.samples(path, model, options, progress)
    calibration, held_out = samples.split()
    truth = _truth(model, held_out, run_float_model(path, model, held_out, progress))
    driver = pass_driver(model, options, path)
    rewritten = rewrite(model, options, progress, driver)
    programs = _Programs(path, [rewritten], calibration, options, progress, driver, builds=False)
    return programs.settled(truth).frontier_entries()


def read(path: Path, options: BuildOptions, progress: Progress = silent) -> ir.Model:
    """The model in `path`, checked and normalised."""
    with stage("import"):
        importer.require_file(path)  # before anything is announced
        progress("reading the model", 1)
        model = importer.load(
            path,
            options.dims,
            options.shapes,
            options.values,
            importer.Reading(
                options.outputs, partial(sampling.shapes_in, options.calibration_path)
            ),
        )
        picture.settle(model, options)
        if options.values:
            # Branches that are never taken go at once: onnxruntime crashes on some whose condition
            # is constant.
            fold_constants.run(model, PassContext(Target.load(options.target)))
        state.settle(model, options)
        return model


def rewrite(
    model: ir.Model,
    options: BuildOptions,
    progress: Progress = silent,
    driver: PassDriver | None = None,
) -> ir.Model:
    """Run every pass over a model, in place. Without a `driver` the model gets one of its own.

    What the host alone would take is noted in the graph on the way.
    """
    driver = driver or pass_driver(model, options)
    context = PassContext(Target.load(options.target), kept=options.partitioning.kept)
    step = progress("rewriting", len(passes.PASSES))
    source = Lineage(model.graph)
    of_any_device = list(takewhile(lambda record: not record.for_tpu, passes.PASSES))
    following = passes.PASSES[len(of_any_device) :]
    driver.run(of_any_device, model, context, step)
    model.graph.meta[HOST_ALONE] = _on_host_alone(model, options, following)
    driver.run(following, model, context, step)
    source.note_absorbed(model.graph)
    return model


def _on_host_alone(
    model: ir.Model, options: BuildOptions, following: Sequence[Pass[PassContext]]
) -> HostAlone:
    """What a model takes on the host without any rewriting for an Edge TPU; the passes `following`
    are still to come."""
    plain = model.clone()
    steps = Steps(options.without, on_host=True)
    PassDriver(steps).run(following, plain, PassContext(Target.load(options.target)))
    return host_alone(plain.graph, Host.load(options.partitioning.host))


def pass_driver(model: ir.Model, options: BuildOptions, path: Path | None = None) -> PassDriver:
    """What runs the passes over `model`, which has seen none yet, as options say.

    A checker holds outputs also against those of the file in `path`.
    """
    checker = Checker(model, options.seed, path) if options.check_passes else None
    dump = None if options.dump_folder is None else GraphDump(options.dump_folder)
    return PassDriver(steps_of(options), checker, dump)


def plan_program(
    model: ir.Model,
    options: BuildOptions,
    progress: Progress = silent,
    driver: PassDriver | None = None,
) -> Program:
    """Run every pass over a model, in place, and cut it into segments."""
    rewritten = rewrite(model, options, progress, driver)
    progress("cutting into segments", 1)
    return _settled(partition_model(rewritten, options.target, options.partitioning))


def partition_model(model: ir.Model, target: str, options: PartitionOptions) -> Program:
    """Cut a rewritten model into segments."""
    with stage("partition"):
        device = Target.load(target, options.host)
        placed = replace(options, place=options.place or "tpu")
        alone = model.graph.meta.get(HOST_ALONE)
        divided, plan = partition_for_all(model, device, placed)
        if alone is not None and options.host_int8:
            # What the bundle of `--place host` does: it multiplies rows that are normalised.
            in_int8 = sum(cost.host for cost in plan.costs.values())
            alone = HostAlone(alone.in_float, in_int8)
        return Program(divided, plan, device, alone)


def _settled(program: Program) -> Program:
    """The program without what only an Edge TPU needs of products that are on the host."""
    if program.plan.options.host_int8:
        return program
    with stage("partition"):
        return plain_on_host(program)


def run_float_model(
    path: Path, model: ir.Model, held_out: sampling.Samples, progress: Progress = silent
) -> Baseline:
    """What onnxruntime makes of the samples with the user's file, which the bundle is held
    against."""
    with stage("float model"):
        step = progress("running the float model", len(held_out))
        return baseline(path, model, held_out, step)


def _truth(model: ir.Model, held_out: sampling.Samples, expected: Baseline) -> verify.HeldOut:
    """What the bundle of an imported model is verified with."""
    # Outputs that hold scores or rounded floats are told by the nodes behind them, which passes
    # replace.
    layers = agreement.scored(model.graph)
    rounded = agreement.rounded(model.graph)
    told = picture.task_of(model, expected.results[0])
    return verify.HeldOut(list(held_out), expected.results, layers, rounded, told, held_out.starts)


def _vision(
    model: ir.Model, truth: verify.HeldOut, labels: Sequence[str], file: Path | None
) -> VisionEntry | None:
    """How pictures go into an imported model and what its outputs say; None where nothing says that
    it takes pictures."""
    entry = picture.of(model)
    if entry is None:
        return None
    task = agreement.task(truth.readings(), truth.expected)
    height, width = entry["size"]
    fitting = picture.fitting_labels(labels, task, truth.expected, (height, width), file)
    return vision.entry(entry, fitting, task)


@dataclass(frozen=True)
class _Programs:
    """Partitions and quantizes the model in the file `path`. `rewritten` holds that model once, as
    passes left it. What was chosen is only told where it `builds` a bundle."""

    path: Path
    rewritten: list[ir.Model]
    calibration: sampling.Samples
    options: BuildOptions
    progress: Progress
    driver: PassDriver
    builds: bool = True

    def quantized(self, partitioning: PartitionOptions) -> Program:
        """A program of its own: quantizing changes weights, and what is computed from them."""
        options = replace(self.options, partitioning=partitioning)
        if self.rewritten:
            model = self.rewritten.pop()
        else:
            model = rewrite(read(self.path, options), options)
        return _quantized(model, self.calibration, options, self.progress, self.driver)

    def settled(self, truth: verify.HeldOut) -> Settled:
        """The program that is as fast as the quality goal allows, or the one that is picked."""
        search = Search(self.calibration, truth, self.options, self.quantized, self.progress)
        settled = search.run()
        if settled.trial is not None and self._may_fuse():
            settled = self._perhaps_fused(search, settled)
        return search.picked(settled)

    def _perhaps_fused(self, search: Search, settled: Settled) -> Settled:
        """What was settled, or the program with fused blocks, where that is faster and as good.

        Where a user's goal allows for no plan with all of them, one with fewer is looked for. A
        list of plans has one with half of them.
        """
        self.progress("trying fused blocks", 1)
        every, blocks = self._fused()
        if every is None or not (search.lists_plans or search.is_faster(settled, every)):
            return settled
        point = search.tried(every, len(blocks))
        if point is None:
            return settled
        points = [point]
        chosen = search.preferred(settled, point)
        misses = chosen is settled and bool(self.options.quality)
        few, most = 1, len(blocks) - 1
        tries = MOST_PARTS if misses else 1 if search.lists_plans else 0
        while few <= most and tries:
            count = (few + most + 1) // 2
            tries -= 1
            point = self._partly_fused(search, blocks, count)
            if point is None:
                break
            points.append(point)
            preferred = search.preferred(settled, point) if misses else settled
            if preferred is settled:
                most = count - 1
            else:
                chosen = preferred
                few = count + 1
        if chosen is not settled and self.options.pick is None and self.builds:
            _note_fused(settled, chosen, points)
        return search.offering(chosen, points)

    def _partly_fused(self, search: Search, blocks: Sequence[str], count: int) -> Point | None:
        """The plan with the last blocks fused: what earlier ones lose goes through more layers."""
        program, fused = self._fused(blocks[len(blocks) - count :])
        return None if program is None else search.tried(program, len(fused))

    def _fused(self, only: Sequence[str] | None = None) -> tuple[Program | None, list[str]]:
        """The program with all blocks fused, or only some by their nodes in the source, and the
        nodes of those that are; None where there is no block."""
        steps = steps_of(self.options)
        if only is None:
            steps = replace(steps, also=steps.also | {FUSE})
        else:
            steps = replace(steps, at={**steps.at, FUSE: dict.fromkeys(only, True)})
        model = read(self.path, self.options)
        checker = Checker(model, self.options.seed) if self.options.check_passes else None
        driver = PassDriver(steps, checker)
        rewritten = rewrite(model, self.options, driver=driver)
        blocks = driver.matches(FUSE)
        if not blocks:
            return None, []
        return _quantized(rewritten, self.calibration, self.options, silent, driver), blocks

    def _may_fuse(self) -> bool:
        """Whether the model may have blocks to fuse, which nobody decided about."""
        is_asked = FUSE in self.options.also
        return not is_asked and self.driver.rewrites("keep_gates") > 0


def _note_fused(settled: Settled, chosen: Settled, points: Sequence[Point]) -> None:
    """Say that a plan with fused blocks is built, and what that saves."""
    for point in points:
        if point.program is chosen.program:
            notes.info(
                "%d blocks are fused: %.3g ms predicted instead of %.3g",
                point.fused,
                1e3 * chosen.program.plan.objective,
                1e3 * settled.program.plan.objective,
            )


def _quantized(
    rewritten: ir.Model,
    calibration: sampling.Samples,
    options: BuildOptions,
    progress: Progress,
    driver: PassDriver,
) -> Program:
    """The segments with their scales; what contributes most to the error is in float where options
    ask for that."""
    if options.keep_float:
        # Quantizing changes weights, so what is tried first is a copy.
        tried = rewritten.clone()
        program = _partition_and_quantize(tried, calibration, options, progress, driver)
        kept = _float_nodes(program, calibration, options, progress)
        if not kept:
            notes.info(
                "keep_float %g: nothing is kept, as segments are kept whole and each has more of "
                "the multiply-accumulates: cuts or pins make smaller parts",
                options.keep_float,
            )
            return program
        partitioning = replace(options.partitioning, kept=tuple(kept))
        options = replace(options, partitioning=partitioning)
    if not calibration.starts or calibration.random:
        return _partition_and_quantize(rewritten, calibration, options, progress, driver)

    def make(kept: tuple[str, ...]) -> Program:
        tried = rewritten.clone()
        tried.meta.update(rewritten.meta)
        partitioning = replace(options.partitioning, kept=(*options.partitioning.kept, *kept))
        chosen = replace(options, partitioning=partitioning)
        return _partition_and_quantize(tried, calibration, chosen, progress, driver)

    return state.without_drift(make, calibration, options)


def _partition_and_quantize(
    rewritten: ir.Model,
    calibration: sampling.Samples,
    options: BuildOptions,
    progress: Progress,
    driver: PassDriver,
) -> Program:
    progress("cutting into segments", 1)
    program = _settled(partition_model(rewritten, options.target, options.partitioning))
    return quantize(program, calibration, options, progress, driver)


def _float_nodes(
    program: Program, calibration: sampling.Samples, options: BuildOptions, progress: Progress
) -> list[str]:
    """Names of the nodes that contribute most to the error, as far as options let them be kept."""
    few = _few(calibration)
    step = progress("finding what contributes", len(few))
    with stage("sensitivity"), files.temporary("sensitivity") as folder:
        segments = bundle.write_segments({"": program}, folder.path)[""]
        # Sensitivity runs the program, for which the rest of a manifest is not needed.
        entry = cast(Manifest, manifests.program_entry(program, segments))
        trial = Bundle(folder.path, entry)
        shares = sensitivity.shares(trial, program, few, step)
    return sensitivity.kept_in_float(program, shares, options.keep_float / 100)


def _measure_quality(
    made: Bundle,
    program: Program,
    truth: verify.HeldOut,
    options: BuildOptions,
    progress: Progress,
) -> MeasuredEntry:
    """The bundle, as it was loaded from disk, against the float results."""
    step = progress("verifying", len(truth.samples))
    measured = verify.verify(made, program, truth, step)
    if options.accuracy is not None:
        step = progress("finding what contributes", len(truth.samples))
        shares = sensitivity.shares(made, program, truth.samples, step)
        manifests.enter_shares(measured, shares)
    return measured


def _judge(
    manifest: Manifest, program: Program, settled: Settled, held_out: sampling.Samples
) -> None:
    """Enter what follows from what was measured: warnings, and whether goals are met."""
    warned = quality.warnings(manifest, program, _few(held_out))
    manifests.enter_quality(manifest, warned)
    manifests.enter_quality(manifest, quality.goals(settled, manifest["quality"]))


def _few(samples: sampling.Samples) -> sampling.Samples:
    return sampling.Samples(samples.loaders[:SENSITIVITY_SAMPLES])


def note_timings(timings: Timings | None, timer: StageTimer, driver: PassDriver) -> None:
    """Fill in what was measured, where somebody asks for it."""
    timer.end()
    if timings is not None:
        timings.stages += timer.seconds
        timings.passes += [(run.name, run.seconds, run.rewrites) for run in driver.runs]
