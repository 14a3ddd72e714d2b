"""The command `plan`."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

import compiler
from compiler.cli import options as shared
from compiler.cli import parse
from compiler.cli.common import NOTES, err, log_to, out, print_json, progress_bars
from compiler.cli.options import option
from compiler.driver.options import BuildOptions, LanguageOptions
from compiler.errors import OptionError


def plan(
    model: Annotated[Path, typer.Argument(help="An ONNX file, or a language model.")],
    tpus: Annotated[
        str | None,
        option(
            "tpus",
            metavar="1..8",
            help="How many Edge TPUs: 4, or 1,2,4, or 1..8 (default). Language models take one "
            "number (default 1).",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
    outputs: shared.Outputs = None,
    input: shared.Input = BuildOptions.input,
    layout: shared.Layout = None,
    mean: shared.Mean = None,
    std: shared.Std = None,
    dims: shared.Dims = None,
    shapes: shared.Shapes = None,
    values: shared.Values = None,
    state: shared.State = None,
    without: shared.Without = None,
    also: shared.Also = None,
    target: shared.Target = BuildOptions.target,
    host: shared.Host = "pi5",
    objective: shared.Objective = "throughput",
    rate: shared.Rate = None,
    place: shared.Place = None,
    pins: shared.Pins = None,
    calibration: Annotated[
        Path | None, option("calibration", help="Samples for --frontier, as `build` takes them.")
    ] = None,
    quality: shared.Quality = None,
    frontier: Annotated[
        bool,
        option(
            "frontier",
            "--frontier",
            help="List plans from the fastest to the most accurate one, with their errors on the "
            "samples of --calibration.",
        ),
    ] = BuildOptions.frontier,
    context: shared.Context = LanguageOptions.context,
    chunk: shared.Chunk = LanguageOptions.chunk,
) -> None:
    """Predict latency, throughput and memory on several numbers of Edge TPUs.

    This takes seconds and needs no samples, but for --frontier. Of a language model it predicts
    tokens per second of prefill and decode, by where the layers run.
    """
    from compiler.view.plan import show_forecasts

    image = compiler.ImageOptions(parse.floats("mean", mean), parse.floats("std", std))
    options = BuildOptions(
        outputs=parse.names(outputs),
        input=input,  # type: ignore[arg-type]  # it checks itself
        layout=layout,  # type: ignore[arg-type]
        image=image,
        dims=parse.dims(dims),
        shapes=parse.shapes(shapes),
        values=parse.values(values),
        state=parse.state(state),
        without=frozenset(without or ()),
        also=frozenset(also or ()),
        target=target,
        partitioning=parse.partition_options(1, objective, place, host, pins, (), parse.rate(rate)),
        calibration=calibration,
        quality=parse.quality(quality),
        frontier=frontier,
        language=LanguageOptions(context, chunk),
    )
    counts = [] if tpus is None else parse.counts(tpus)
    if quality and not frontier:
        text = "predictions know no errors: a goal goes with a frontier"
        raise OptionError(f"{','.join(quality)}: {text}", "quality")
    log_to(err, NOTES)
    if frontier:
        if len(counts) > 1:
            raise OptionError(f"{tpus}: a frontier is of one number of Edge TPUs", "tpus")
        partitioning = replace(options.partitioning, tpus=counts[0] if counts else 1)
        options = replace(options, partitioning=partitioning)
        _show_frontier(model, options, json)
        return
    with progress_bars() as progress:
        rows = compiler.plan(model, options, counts, progress=progress)
    if json:
        print_json([asdict(row) for row in rows])
    else:
        show_forecasts(out, model.name, target, rows)


def _show_frontier(model: Path, options: BuildOptions, as_json: bool) -> None:
    from compiler.view.frontier import heading, show_frontier

    with progress_bars() as progress:
        plans = compiler.frontier(model, options, progress=progress)
    if as_json:
        print_json(plans)
    else:
        partitioning = options.partitioning
        # `build` has another default than `plan`.
        flags = f"build with the same options, --objective {partitioning.objective} and --pick N"
        title = heading(partitioning.objective, partitioning.tpus, flags)
        show_frontier(out, plans, title)
