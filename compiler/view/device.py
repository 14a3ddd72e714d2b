"""What was measured and found on a machine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from compiler.view.columns import plain_table

if TYPE_CHECKING:
    from compiler.runtime.doctor import Finding

Json = Mapping[str, Any]

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red", "none": "dim"}


def show_bench(console: Console, found: Json, manifest: Json) -> None:
    """Latency, throughput and each segment, beside what was predicted."""
    latency = found["latency_ms"]
    rate = found["predicted_results_per_second"]
    predicted_rate = "" if rate is None else f" (predicted {rate:.1f})"
    console.print(
        f"{'simulated ' if found['simulated'] else ''}"
        f"latency {latency['p50']:.2f} ms median, {latency['p90']:.2f} p90, "
        f"{latency['p99']:.2f} p99 (predicted {found['predicted_latency_ms']:.2f}); "
        f"{found['results_per_second']:.1f} results/s in the pipeline{predicted_rate}",
        highlight=False,
    )
    console.print(_segments(found["segments"]))
    prediction, description = manifest["prediction"], manifest["target"]["description"]
    console.print(
        f"Predictions are for {prediction['tpus']} Edge TPUs on {escape(description)} beside "
        f"{escape(prediction['host'])}.",
        highlight=False,
    )


def show_language_bench(console: Console, found: Json) -> None:
    """Tokens per second of prefill and decode, beside what was predicted."""
    for program in ("prefill", "decode"):
        rate = found[f"{program}_tokens_per_second"]
        predicted = found[f"predicted_{program}_tokens_per_second"]
        tokens = found[f"{program}_tokens"]
        console.print(
            f"{program} {rate:.1f} tokens/s over {tokens} tokens (predicted {predicted:.1f})",
            highlight=False,
        )


def show_findings(console: Console, findings: Iterable[Finding]) -> None:
    """What `doctor` found, and what to do about it."""
    for finding in findings:
        state = f"[{_COLOURS[finding.state]}]{finding.state:>4}[/]"
        text = f"{state}  {escape(finding.name)}: {escape(finding.text)}"
        console.print(text, highlight=False, soft_wrap=True)
        if finding.fix:
            console.print(f"      {escape(finding.fix)}", highlight=False, soft_wrap=True)


def _segments(segments: Iterable[Json]) -> Table:
    """Milliseconds of each segment: its start, its end and its run, each beside the plan's."""
    columns = "segment", "device", "start", "plan", "end", "plan", "ms", "plan"
    table = plain_table(columns, left=("segment", "device"))
    for segment in segments:
        times = []
        for name in ("start_ms", "end_ms", "ms"):
            times += [segment[name], segment[f"predicted_{name}"]]
        figures = [f"{number:.3f}" for number in times]
        table.add_row(str(segment["index"]), segment["device"], *figures)
    return table
