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
    from compiler.runtime.fleet import HostThreads


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
    host_workers: shared.HostWorkers = None,
    json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Measure latency, throughput and each segment on this machine, beside what was predicted.

    Simulated Edge TPUs (sim:4), and the host beside them, take as long as was predicted, on a clock
    of their own: this shows what the runtime makes of the plan.
    """
    from compiler.runtime import Runner
    from compiler.runtime import bench as benching
    from compiler.runtime.fleet import HostThreads, parse_simulated
    from compiler.view.device import show_bench, show_language_bench

    bundle = open_bundle(path)
    if "language" in bundle.manifest:
        figures = _language_figures(bundle, devices, HostThreads(threads, host_workers), runs)
        if not json:
            show_language_bench(out, figures)
    else:
        simulated = parse_simulated(devices, slowdown=0)
        if simulated and host_workers is None:
            # The simulated host is the planned one, whatever this machine has.
            host_workers = bundle.manifest["prediction"].get("host_slots", 1)
        workers = HostThreads(threads, host_workers)
        with device_errors(), Runner(bundle, simulated or devices, workers) as runner:
            notices(runner.notices)
            sample = None if source is None else read_samples(source, runner)[0]
            figures = benching.bench(runner, runs, sample)
        if not json:
            show_bench(out, figures, bundle.manifest)
    if json:
        print_json(figures)


def _language_figures(
    bundle: Bundle, devices: str, threads: HostThreads, runs: int
) -> dict[str, Any]:
    from compiler.runtime import bench as benching
    from compiler.runtime.language import LanguageModel

    with device_errors():
        model = LanguageModel(bundle, threads, devices=devices)
        notices(model.fleet.notices)
        return benching.bench_language(model, runs)
