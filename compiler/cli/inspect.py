"""The command `inspect`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

import compiler
from compiler.cli import options as shared
from compiler.cli import parse
from compiler.cli.common import (
    NOTES,
    err,
    log_to,
    out,
    print_json,
    progress_bars,
    write,
    wrote,
)
from compiler.driver.options import BuildOptions
from compiler.errors import OptionError, one_line


def inspect(
    path: Annotated[
        Path,
        typer.Argument(
            help="A bundle; an ONNX file, for the plan that it would get; or a .tflite file that "
            "edgetpu_compiler wrote."
        ),
    ],
    json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
    html: Annotated[
        Path | None,
        typer.Option("--html", help="Write the plan as a page for the browser, print nothing."),
    ] = None,
    dot: Annotated[
        Path | None,
        typer.Option("--dot", help="Write the rewritten graph for Graphviz (ONNX files)."),
    ] = None,
    netron: Annotated[
        Path | None,
        typer.Option("--netron", help="Write the rewritten graph as ONNX for Netron (ONNX files)."),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against",
            metavar="TFLITE",
            help="Of a compiled file, compare weights, biases and scales of each layer with those "
            "of this plain .tflite file. Exit code 1 unless all of them are equal.",
        ),
    ] = None,
    outputs: shared.Outputs = None,
    input: shared.Input = BuildOptions.input,
    layout: shared.Layout = None,
    mean: shared.Mean = None,
    std: shared.Std = None,
    dims: shared.Dims = None,
    shapes: shared.Shapes = None,
    values: shared.Values = None,
    state: shared.State = None,
    target: shared.Target = BuildOptions.target,
    host: shared.Host = "pi5",
    tpus: shared.Tpus = 1,
    objective: shared.Objective = "latency",
    rate: shared.Rate = None,
    place: shared.Place = None,
    pins: shared.Pins = None,
    cuts: shared.Cuts = None,
) -> None:
    """Show the segments of a bundle, or those that an ONNX file would get.

    For each node on the host it says why it is there.
    Of a compiled *_edgetpu.tflite file, show its executables and what is cached and streamed;
    with --against, whether it was made of a plain file.
    """
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
        target=target,
        partitioning=parse.partition_options(
            tpus, objective, place, host, pins, cuts or (), parse.rate(rate)
        ),
    )
    kind = compiler.kind_of(path)
    if (kind != "onnx" and (dot or netron)) or (kind == "tflite" and html):
        raise OptionError(f"{path}: --dot and --netron take .onnx files, --html those and bundles")
    if against is not None:
        if kind != "tflite":
            raise OptionError(f"{path}: --against takes .tflite files that were compiled")
        _audit(path, against, options, json)
        return
    if kind == "tflite":
        _show_compiled(compiler.inspect_compiled(path, options), json)
        return
    log_to(err, NOTES)
    with progress_bars() as progress:
        inspection = compiler.inspect(path, options, progress=progress)
    _write_graphs(inspection, dot, netron)
    if _is_stdout(dot, netron):
        return
    if html is not None:
        _write_page(inspection, html)
    elif json:
        print_json(inspection.plan)
    else:
        _show(inspection)


def _show(inspection: compiler.Inspection) -> None:
    from compiler.view.alone import show_faster_host
    from compiler.view.language import show_language
    from compiler.view.pictures import show_picture
    from compiler.view.plan import show_plan
    from compiler.view.quality import show_baseline, show_quality, show_warnings

    plan = inspection.plan
    if "language" in plan:
        show_language(out, plan)
    else:
        show_plan(out, plan)
        if inspection.picture is not None:
            show_picture(out, inspection.picture, plan["inputs"])
    quality = inspection.quality
    if quality is not None:
        if "language" not in plan:
            show_quality(out, quality)
            show_baseline(out, quality)
        show_warnings(out, quality)
    show_faster_host(out, plan)


def _show_compiled(compiled: compiler.CompiledFile, as_json: bool) -> None:
    from compiler.view.compiled import show_compiled

    if as_json:
        packages = [asdict(package) for package in compiled.packages]
        print_json({"packages": packages, "on_cpu": compiled.on_cpu})
    else:
        show_compiled(out, compiled.path.name, compiled.packages, compiled.on_cpu)


def _audit(path: Path, against: Path, options: BuildOptions, as_json: bool) -> None:
    from compiler.view.audit import show_audit

    found = compiler.audit(path, against, options)
    if as_json:
        print_json({"status": found.status, **asdict(found)})
    else:
        show_audit(out, path.name, against.name, found)
    if found.status != "equal":
        raise typer.Exit(1)


def _write_graphs(inspection: compiler.Inspection, dot: Path | None, netron: Path | None) -> None:
    from compiler.view.dot import dot as graphviz

    if dot is not None and inspection.program is not None:
        write(dot, graphviz(inspection.program), inspection.sources)
    if netron is not None:
        compiler.save_graph(inspection, netron)
        wrote(netron, f"; `netron {one_line(str(netron))}` shows it")


def _write_page(inspection: compiler.Inspection, path: Path) -> None:
    write(path, compiler.report_page(inspection), inspection.sources)


def _is_stdout(*paths: Path | None) -> bool:
    """Whether a graph went to standard output, which nothing else may go to then."""
    from compiler import files

    return any(path is not None and files.is_stdout(path) for path in paths)
