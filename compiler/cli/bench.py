"""The command `bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compiler.cli import options as shared
from compiler.cli.common import device_errors, notices, open_bundle, out, print_json
from compiler.cli.run import read_samples

if TYPE_CHECKING:
    from compiler.runtime import Bundle


def bench(
    path: shared.BundlePath,
    runs: Annotated[int, typer.Option(min=2, help="How many inferences are measured.")] = 50,
    source: Annotated[
        Path | None,
        typer.Option(
            "--input", "-i", help=".npz or .npy file with a sample. Default: random values."
        ),
    ] = None,
    devices: shared.Devices = "auto",
    threads: shared.Threads = 2,
    json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Measure latency, throughput and each segment on this machine, beside what was predicted."""
    from compiler.runtime import Runner
    from compiler.runtime import bench as benching
    from compiler.view.device import show_bench, show_language_bench

    bundle = open_bundle(path)
    if "language" in bundle.manifest:
        figures = _language_figures(bundle, devices, threads, runs)
        if not json:
            show_language_bench(out, figures)
    else:
        with device_errors(), Runner(bundle, devices, threads) as runner:
            notices(runner.notices)
            sample = None if source is None else read_samples(source, runner)[0]
            figures = benching.bench(runner, runs, sample)
        if not json:
            show_bench(out, figures, bundle.manifest)
    if json:
        print_json(figures)


def _language_figures(bundle: Bundle, devices: str, threads: int, runs: int) -> dict[str, Any]:
    from compiler.runtime import bench as benching
    from compiler.runtime.language import LanguageModel

    with device_errors():
        model = LanguageModel(bundle, threads, devices=devices)
        notices(model.fleet.notices)
        return benching.bench_language(model, runs)
