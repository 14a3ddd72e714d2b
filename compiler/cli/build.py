"""The command `build`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import compiler
from compiler.cli import options as shared
from compiler.cli import parse
from compiler.cli.common import NOTES, err, log_to, out, progress_bars, wrote
from compiler.cli.options import option
from compiler.driver.options import BuildOptions, LanguageOptions

RANDOM_DATA = "[bold yellow]No --calibration: using random data; accuracy will be meaningless.[/]"


def build(
    model: Annotated[
        Path,
        typer.Argument(
            help="An ONNX file; or a language model: a GGUF file, a Hugging Face folder, an "
            "exported decoder."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The bundle's folder. Default: MODEL.bundle."),
    ] = None,
    outputs: shared.Outputs = None,
    input: shared.Input = BuildOptions.input,
    layout: shared.Layout = None,
    dims: shared.Dims = None,
    shapes: shared.Shapes = None,
    values: shared.Values = None,
    state: shared.State = None,
    force: Annotated[
        bool,
        option("force", "--force", help="Replace an existing bundle, once the new one is whole."),
    ] = BuildOptions.force,
    calibration: Annotated[
        Path | None,
        option(
            "calibration",
            help="Samples: an .npz file with an array per input, an .npy file, a folder of these, "
            "or a folder of images; UTF-8 text for language models. Every fourth sample is held "
            "out to verify the bundle.",
        ),
    ] = None,
    mean: shared.Mean = None,
    std: shared.Std = None,
    size: Annotated[
        str | None,
        option(
            "size",
            metavar="HEIGHT,WIDTH",
            help="Images are resized to this, then their centre is cut out to the input's size.",
        ),
    ] = None,
    fit: Annotated[
        str | None,
        option(
            "fit",
            metavar="stretch|letterbox|crop",
            help="How images of another shape are fitted: stretched (default), whole with grey "
            "around them (default for Ultralytics' exports), or their middle alone.",
        ),
    ] = None,
    colours: Annotated[
        str | None,
        option("colours", metavar="RGB|BGR", help="The order of an image's channels."),
    ] = None,
    labels: Annotated[
        Path | None,
        option(
            "labels",
            help="Names of classes, one in each line. Default: those that the file, or "
            "config.json beside it, has.",
        ),
    ] = None,
    observers: Annotated[
        list[str] | None,
        option(
            "observers",
            "--observer",
            metavar="[PATTERN=]KIND",
            help="How the range of an activation is chosen: minmax (default), percentile (99.99) "
            "or mse; with a PATTERN for matching tensors. May be repeated.",
        ),
    ] = None,
    seed: Annotated[
        int, option("seed", help="Seed of the random data, 0 or more.")
    ] = BuildOptions.seed,
    tokenizer: Annotated[
        Path | None,
        option("tokenizer", help="tokenizer.json of an encoder, so that `serve` embeds texts."),
    ] = None,
    labelled: Annotated[
        Path | None,
        option(
            "labelled",
            metavar="FOLDER",
            help="Measure the float model and the bundle on labelled pictures: of a classifier, a "
            "sub-folder for each class, called as its label; of a detector, pictures with YOLO's "
            ".txt files beside them.",
        ),
    ] = None,
    min_sqnr: Annotated[
        float | None,
        option(
            "min_sqnr",
            metavar="DB",
            help="Fail, and write nothing, where an output has a lower signal-to-noise ratio; "
            "outputs of indices, booleans or text have none: they need 90% equal values, and an "
            "output of numbers beside them.",
        ),
    ] = BuildOptions.min_sqnr,
    quality: shared.Quality = None,
    frontier: Annotated[
        bool,
        option(
            "frontier",
            "--frontier",
            help="List plans from the fastest to the most accurate one, with their errors on the "
            "samples of --calibration; what is built stays the same.",
        ),
    ] = BuildOptions.frontier,
    pick: Annotated[
        int | None,
        option("pick", metavar="N", help="Build the plan of this number in that list."),
    ] = BuildOptions.pick,
    accuracy: Annotated[
        str | None,
        option(
            "accuracy",
            metavar="report",
            help="Measure how much each segment contributes to the error at the end.",
        ),
    ] = BuildOptions.accuracy,
    keep_float: Annotated[
        float,
        option(
            "keep_float",
            metavar="PERCENT",
            help="Keep the segments that contribute most to the error in float on the host, up to "
            "this percentage (0 to 100) of the multiply-accumulates.",
        ),
    ] = BuildOptions.keep_float,
    without: shared.Without = None,
    also: shared.Also = None,
    check_passes: Annotated[
        bool,
        option(
            "check_passes",
            "--check-passes",
            help="Run the model after each pass; compare it with the imported one and the file.",
        ),
    ] = BuildOptions.check_passes,
    target: shared.Target = BuildOptions.target,
    host: shared.Host = "pi5",
    tpus: shared.Tpus = 1,
    objective: shared.Objective = "latency",
    rate: shared.Rate = None,
    place: shared.Place = None,
    pins: shared.Pins = None,
    cuts: shared.Cuts = None,
    lora: Annotated[
        list[Path] | None,
        option("lora", help="A LoRA adapter to merge: a PEFT folder or a GGUF file; repeatable."),
    ] = None,
    context: shared.Context = LanguageOptions.context,
    chunk: shared.Chunk = LanguageOptions.chunk,
    slots: shared.Slots = LanguageOptions.slots,
    max_ram: shared.MaxRam = LanguageOptions.max_ram,
    decode_weights: shared.DecodeWeights = LanguageOptions.decode_weights,
    lowering: Annotated[
        str,
        option(
            "lowering",
            metavar="direct|onnx-tf[,direct]",
            help="Who writes TPU segments: this compiler, or onnx-tf and TensorFlow; with ,direct "
            "this compiler where they fail.",
        ),
    ] = "direct",
    edgetpu_compiler: shared.Tool = None,
    docker: shared.Docker = None,
    timeout: shared.Timeout = shared.TIMEOUT,
    trust_compiler: shared.TrustCompiler = False,
    dump_passes: Annotated[
        Path | None,
        option(
            "dump_passes",
            metavar="DIR",
            help="Save the model as ONNX after each pass, in a new or empty folder.",
        ),
    ] = None,
    timings: Annotated[
        bool,
        typer.Option(
            "--timings",
            rich_help_panel=shared.PANELS["toolchain"],
            help="Print how long each stage and each pass took.",
        ),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose",
            "-v",
            rich_help_panel=shared.PANELS["toolchain"],
            help="Log for each pass what it matched and what it nearly matched.",
        ),
    ] = False,
) -> None:
    """Build a bundle from MODEL, run it against the float model, and show the difference."""
    from compiler.view.timings import show_timings

    image = compiler.ImageOptions(
        mean=parse.floats("mean", mean),
        std=parse.floats("std", std),
        size=parse.size(size),
        fit=fit,  # type: ignore[arg-type]  # it checks itself
        colours=colours,  # type: ignore[arg-type]
    )
    tool = None
    if edgetpu_compiler != "none":
        tool = compiler.find_edgetpu_compiler(edgetpu_compiler, docker, timeout, trust_compiler)
    options = BuildOptions(
        outputs=parse.names(outputs),
        input=input,  # type: ignore[arg-type]
        layout=layout,  # type: ignore[arg-type]
        labels=labels,
        labelled=labelled,
        dims=parse.dims(dims),
        shapes=parse.shapes(shapes),
        values=parse.values(values),
        state=parse.state(state),
        target=target,
        partitioning=parse.partition_options(
            tpus, objective, place, host, pins, cuts or (), parse.rate(rate)
        ),
        calibration=calibration,
        image=image,
        observers=compiler.Observers.parse(observers or ()),
        min_sqnr=min_sqnr,
        quality=parse.quality(quality),
        frontier=frontier,
        pick=pick,
        accuracy=accuracy,  # type: ignore[arg-type]  # it checks itself
        tokenizer=tokenizer,
        keep_float=keep_float,
        without=frozenset(without or ()),
        also=frozenset(also or ()),
        check_passes=check_passes,
        seed=seed,
        force=force,
        tool=tool,
        lowering=tuple(lowering.split(",")),
        lora=tuple(lora or ()),
        language=LanguageOptions(
            context,
            chunk,
            slots,
            max_ram,
            decode_weights,  # type: ignore[arg-type]  # it checks itself
        ),
        dump_passes=dump_passes,
    )
    # What is no ONNX file at all is refused in a moment, and that alone matters then.
    is_onnx = model.is_file() and model.suffix == ".onnx" and compiler.kind_of(model) == "onnx"
    if calibration is None and is_onnx:
        err.print(RANDOM_DATA)
    if verbose:
        log_to(err)
    measured = compiler.Timings()
    log_to(err, NOTES)
    with progress_bars() as progress:
        bundle = compiler.build(model, options, output, progress=progress, timings=measured)
    _show(bundle)
    if timings:
        show_timings(err, measured.stages, measured.passes)


def _show(bundle: compiler.Bundle) -> None:
    from compiler.view.alone import show_faster_host
    from compiler.view.compiled import show_compilation
    from compiler.view.frontier import heading, show_frontier
    from compiler.view.language import show_language
    from compiler.view.next_steps import show_next
    from compiler.view.pictures import show_picture
    from compiler.view.plan import show_plan
    from compiler.view.quality import show_baseline, show_goals, show_quality, show_warnings

    manifest = bundle.manifest
    if "language" in manifest:
        show_language(out, manifest)
    else:
        show_plan(out, manifest)
        if "vision" in manifest:
            show_picture(out, manifest["vision"]["picture"], manifest["inputs"])
        show_quality(out, manifest["quality"])
        show_baseline(out, manifest["quality"])
    prediction = manifest["prediction"]
    title = heading(prediction["objective"], prediction["tpus"], "--pick N")
    show_frontier(out, manifest["quality"].get("frontier", ()), title)
    show_goals(out, manifest["quality"].get("goals", ()))
    show_compilation(out, manifest)
    wrote(bundle.path)
    show_warnings(out, manifest["quality"])
    show_next(out, bundle)
    show_faster_host(out, manifest)
