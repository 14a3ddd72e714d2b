"""Commands of the device side: they need the runtime only."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.markup import escape
from rich.table import Table

from compiler import files
from compiler.cli.common import (
    Devices,
    OnLoss,
    Threads,
    device_errors,
    err,
    needed,
    notices,
    open_bundle,
    out,
    progress_bars,
    wrote,
)
from compiler.errors import InputError, OptionError
from compiler.runtime import Runner, arrays
from compiler.runtime import bench as benching
from compiler.runtime import doctor as doctoring
from compiler.runtime.arrays import ArrayError
from compiler.runtime.fleet import ON_LOSS

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red", "none": "dim"}


def run(
    path: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle.")],
    source: Annotated[
        Path,
        typer.Option("--input", "-i", help=".npz with one array per input, or .npy for one input."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help=".npz for the outputs.")],
    devices: Devices = "auto",
    on_loss: OnLoss = "move",
    threads: Threads = 2,
) -> None:
    """Run a bundle. Arrays may hold several samples stacked along the first axis; they go through
    as a pipeline."""
    if on_loss not in ON_LOSS:
        raise OptionError(f"--on-loss {on_loss}: choose from {', '.join(ON_LOSS)}")
    loaded = open_bundle(path)
    with device_errors(), Runner(loaded, devices, threads, on_loss) as runner:
        samples = _samples(source, runner)
        notices(runner.notices)
        with progress_bars() as step:
            done = step("running", len(samples))
            results = []
            for result in runner.stream(samples):
                results.append(result)
                done()
    stacked = {o["name"]: _stack([r[o["name"]] for r in results]) for o in runner.pipeline.outputs}
    with files.output(output, [source, *needed(loaded)]) as file:
        np.savez(file, **stacked)  # type: ignore[arg-type]
    console = err if files.is_stdout(output) else out
    for name, array in stacked.items():
        console.print(f"{escape(name)}: {list(array.shape)} {array.dtype}", highlight=False)
    wrote(output)


def bench(
    path: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle.")],
    runs: Annotated[int, typer.Option(min=2, help="How many inferences are measured.")] = 50,
    source: Annotated[
        Path | None,
        typer.Option("--input", "-i", help=".npz or .npy with a sample; default: random values."),
    ] = None,
    devices: Devices = "auto",
    threads: Threads = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Measure latency, throughput and each segment on this machine, beside what was predicted."""
    loaded = open_bundle(path)
    with device_errors():
        if "language" in loaded.manifest:
            _bench_language(loaded, devices, threads, runs, as_json)
            return
        with Runner(loaded, devices, threads) as runner:
            notices(runner.notices)
            sample = None if source is None else _samples(source, runner)[0]
            found = benching.bench(runner, runs, sample)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    latency = found["latency_ms"]
    out.print(
        f"latency {latency['p50']:.2f} ms median, {latency['p90']:.2f} p90, {latency['p99']:.2f} p99 "
        f"(predicted {found['predicted_latency_ms']:.2f}); {found['results_per_second']:.1f} results/s in the pipeline",
        highlight=False,
    )
    table = Table(box=None, header_style="bold")
    for column in ("segment", "device"):
        table.add_column(column)
    for column in ("ms", "predicted", "KiB in", "KiB out", "KiB of parameters"):
        table.add_column(column, justify="right")
    for segment in found["segments"]:
        sizes = (segment["bytes_in"], segment["bytes_out"], segment["parameter_bytes"])
        table.add_row(
            str(segment["index"]),
            segment["device"],
            f"{segment['ms']:.3f}",
            f"{segment['predicted_ms']:.3f}",
            *(f"{number / 1024:.1f}" for number in sizes),
        )
    out.print(table)
    prediction = loaded.manifest["prediction"]
    out.print(
        f"Predictions are for {prediction['tpus']} Edge TPUs on {escape(loaded.manifest['target']['description'])} "
        f"beside {escape(prediction['host'])}.",
        highlight=False,
    )


def _bench_language(bundle: Any, devices: str, threads: int, runs: int, as_json: bool) -> None:
    from compiler.runtime.language import LanguageModel

    model = LanguageModel(bundle, threads, devices=devices)
    notices(model.fleet.notices)
    found = benching.bench_language(model, runs)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    for what in ("prefill", "decode"):
        out.print(
            f"{what} {found[what + '_tokens_per_second']:.1f} tokens/s over {found[what + '_tokens']} tokens "
            f"(predicted {found['predicted_' + what + '_tokens_per_second']:.1f})",
            highlight=False,
        )


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check what Edge TPU users stumble over on this machine, and say what to do. Exit code 1 where
    something fails."""
    findings = doctoring.examine()
    if as_json:
        print(json.dumps([asdict(f) for f in findings], indent=1))
    for finding in () if as_json else findings:
        colour = _COLOURS[finding.state]
        line = f"[{colour}]{finding.state:>4}[/]  {escape(finding.name)}: {escape(finding.text)}"
        out.print(line, highlight=False, soft_wrap=True)
        if finding.fix:
            out.print(f"      {escape(finding.fix)}", highlight=False, soft_wrap=True)
    if any(finding.state == "fail" for finding in findings):
        raise typer.Exit(1)


def _samples(source: Path, runner: Runner) -> list[dict[str, np.ndarray]]:
    """The arrays of a file as samples of the bundle's inputs."""
    if "language" in runner.bundle.manifest:
        raise OptionError(f"{runner.bundle.path}: is a language model: `generate` runs it")
    pipeline = runner.pipeline
    try:
        loaded = arrays.read(source)
    except ArrayError as error:
        raise InputError(f"{source}: {error}") from error
    try:
        return pipeline.samples(
            {pipeline.inputs[0]["name"]: loaded} if isinstance(loaded, np.ndarray) else loaded
        )
    except ValueError as error:
        raise InputError(f"{source}: {error}") from error


def _stack(arrays: list[np.ndarray]) -> np.ndarray:
    if len(arrays) == 1:
        return arrays[0]
    return np.concatenate(arrays) if arrays[0].ndim and len(arrays[0]) == 1 else np.stack(arrays)
