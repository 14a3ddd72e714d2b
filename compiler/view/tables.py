"""Plans and results as tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from compiler.checks.verify import worst_segment
from compiler.runtime.bundle import tensor_bytes
from compiler.targets import Target
from compiler.vendor.darwinn import Package

_UNPLANNED = 64 << 10  # bytes streamed beyond the plan that are worth a line


def show_plan(console: Console, plan: Mapping[str, Any]) -> None:
    """The segments, what is predicted of them, and which nodes are on the host and why."""
    console.print(
        f"[bold]{escape(plan['model']['file'])}[/] for {plan['target']['description']}",
        highlight=False,
    )
    console.print(_segments(plan))
    tpu = [s for s in plan["segments"] if s["device"] == "tpu"]
    on_host = [o for s in plan["segments"] if s["device"] == "host" for o in s["operators"]]
    console.print(
        f"{len(tpu)} TPU segments with {size(sum(s['parameter_bytes'] for s in tpu)) or '0 B'} of parameters and "
        f"{count(sum(s['macs'] for s in tpu))} MACs; {len(on_host)} nodes on the host",
        highlight=False,
    )
    console.print(predicted(plan["prediction"]), highlight=False)
    if on_host:
        console.print(_reasons(on_host))


def show_language(console: Console, manifest: Mapping[str, Any]) -> None:
    """The programs of a language model and its quality."""
    own = manifest["language"]
    prefill = {key: manifest[key] for key in ("inputs", "outputs", "prediction", "segments")}
    table = Table(box=None, header_style="bold")
    for column in (
        "program",
        "tokens",
        "segments",
        "on TPU",
        "cached",
        "streamed",
        "predicted ms",
        "tokens/s",
    ):
        table.add_column(column, justify="left" if column == "program" else "right")
    for name, program in {"prefill": prefill, **own["programs"]}.items():
        tokens = {"prefill": own["chunk"], "batch": own["slots"]}.get(name, 1)
        tpu = [s for s in program["segments"] if s["device"] == "tpu"]
        latency = program["prediction"]["latency_ms"]
        table.add_row(
            name,
            str(tokens),
            f"{len(tpu)}+{len(program['segments']) - len(tpu)}",
            size(sum(s["parameter_bytes"] for s in tpu)),
            size(sum(s["cached_bytes"] for s in tpu)),
            size(sum(s["streamed_bytes"] for s in tpu)),
            f"{latency:.3g}",
            f"{1e3 * tokens / latency:.3g}" if latency else "",
        )
    console.print(
        f"[bold]{escape(own['name'])}[/] for {manifest['target']['description']}", highlight=False
    )
    console.print(table)
    first, found = manifest["prediction"], manifest["quality"].get("perplexity")
    console.print(
        f"Segments are TPU+host; predicted on {first['tpus']} Edge TPU and {first['host']}.",
        highlight=False,
    )
    if found is not None:
        console.print(
            f"Perplexity {found['bundle']:.4g} beside {found['float']:.4g} in float (ratio {found['ratio']:.4f}, give "
            f"or take {found['ratio_error']:.4f}), distributions {found['divergence']:.4f} nats apart, the same "
            f"likeliest token in {found['top1_agreement']:.1%}, over {found['tokens']} tokens of "
            f"{'your text' if manifest['quality']['calibration'] == 'user' else 'the Python manual'}",
            highlight=False,
        )


def show_language_forecasts(
    console: Console, name: str, target: Target, rows: Sequence[Mapping[str, Any]]
) -> None:
    """Tokens per second of prefill and decode by where their layers run."""
    console.print(
        f"[bold]{escape(name)}[/] for {target.description} and {rows[0]['host']}", highlight=False
    )
    table = Table(box=None, header_style="bold")
    for column in (
        "program",
        "tokens",
        "place",
        "segments",
        "streamed",
        "ms",
        "tokens/s",
        "link allows",
    ):
        table.add_column(column, justify="left" if column in ("program", "place") else "right")
    for row in rows:
        table.add_row(
            row["program"],
            str(row["tokens"]),
            row["place"],
            f"{row['tpu_segments']}+{row['host_segments']}",
            size(row["streamed_bytes"]),
            f"{row['latency_ms']:.4g}",
            f"{row['tokens_per_second']:.3g}",
            f"{row['link_limit']:.3g}" if row["link_limit"] else "",
        )
    console.print(table)
    console.print(
        f"Segments are TPU+host. Link allows: tokens/s if all parameters were streamed and nothing else took time. "
        f"Predictions are off by {target.error_percent}% on average for networks that they were not fitted to.",
        highlight=False,
    )


def predicted(prediction: Mapping[str, Any]) -> str:
    """The prediction as one sentence, with its error."""
    tpus = f"{prediction['tpus']} Edge TPU{'s' if prediction['tpus'] > 1 else ''}"
    pipeline = (
        f", a result each {prediction['interval_ms']:.3g} ms" if prediction["tpus"] > 1 else ""
    )
    gap = prediction["gap_percent"]
    near = (
        "a cut"
        if gap is None
        else "the best cut"
        if gap < 0.1
        else f"a cut within {gap:.1f}% of the best"
    )
    return (
        f"Predicted on {tpus} and {prediction['host']}: {prediction['latency_ms']:.3g} ms{pipeline}; {near} under this "
        f"model, which is off by {prediction['error_percent']}% on average for networks that it was not fitted to"
    )


def _segments(plan: Mapping[str, Any]) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0), collapse_padding=True)
    table.add_column("segment", no_wrap=True, min_width=7)
    table.add_column("nodes", overflow="ellipsis", no_wrap=True, max_width=18)
    columns = (
        ("cached", 6),
        ("streamed", 8),
        ("MACs", 7),
        ("in", 5),
        ("out", 5),
        ("ms", 5),
        ("dB", 4),
    )
    for name, width in columns:
        table.add_column(name, justify="right", no_wrap=True, min_width=width)
    quality = plan.get("quality", {}).get("segments", {})
    for segment in plan["segments"]:
        own = quality.get(str(segment["index"]))
        colour = "green" if segment["device"] == "tpu" else "yellow"
        table.add_row(
            f"{segment['index']:02d} [{colour}]{place_name(segment)}[/]",
            escape(_span([o["node"] for o in segment["operators"]])),
            size(segment["cached_bytes"], True),
            size(segment["streamed_bytes"], True),
            count(segment["macs"]) if segment["macs"] else "",
            size(tensor_bytes(segment["inputs"]), True),
            size(tensor_bytes(segment["outputs"]), True),
            f"{sum(segment['predicted_ms'].values()):.3g}",
            f"{own['sqnr_db']:.1f}" if own else "",
        )
    return table


def place_name(segment: Mapping[str, Any]) -> str:
    """host, tpu 0, tpu 1 ..."""
    return "host" if segment["device"] == "host" else f"tpu {segment['tpu']}"


def _span(nodes: Sequence[str]) -> str:
    """First and last node of a segment, and how many there are."""
    names = [*dict.fromkeys(nodes)]
    if len(names) == 1:
        return short(names[0], 18)
    return f"{len(names)}: {short(names[0], 6)} … {short(names[-1], 6)}"


def show_forecasts(
    console: Console, name: str, target: Target, rows: Sequence[Mapping[str, Any]]
) -> None:
    """What each number of Edge TPUs is predicted to give."""
    console.print(
        f"[bold]{escape(name)}[/] for {target.description}, {rows[0]['objective']} first",
        highlight=False,
    )
    table = Table(box=None, header_style="bold")
    for column in (
        "TPUs",
        "segments",
        "latency ms",
        "results/s",
        "cached",
        "streamed",
        "reload ms",
        "gap",
    ):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            str(row["tpus"]),
            f"{row['tpu_segments']}+{row['host_segments']}",
            f"{row['latency_ms']:.2f}",
            f"{1e3 / row['interval_ms']:.1f}" if row["interval_ms"] else "",
            size(row["cached_bytes"]),
            size(row["streamed_bytes"]),
            f"{row['reload_ms']:.2f}" if row["reload_ms"] else "",
            "" if row["gap_percent"] is None else f"{row['gap_percent']:.1f}%",
        )
    console.print(table)
    console.print(
        f"Segments are TPU+host. Results/s are those of a full pipeline. Reload is what is added where segments on one "
        f"Edge TPU are not compiled together. Gap bounds how far off the best cut it is, where a solver looked for "
        f"one. Predictions are off by {target.error_percent}% on average for networks that they were not fitted to.",
        highlight=False,
    )


def _reasons(reasons: Sequence[Mapping[str, str]]) -> Table:
    """Nodes of the same reason share a line."""
    table = Table("on the host", "nodes", "why", "for example", box=None, header_style="bold")
    groups: dict[str, list[Mapping[str, str]]] = {}
    for entry in reasons:
        groups.setdefault(entry["reason"], []).append(entry)
    for reason, entries in groups.items():
        operators = ", ".join(dict.fromkeys(e["operator"] for e in entries))
        table.add_row(
            operators, str(len(entries)), escape(reason), escape(short(entries[0]["node"]))
        )
    return table


def show_quality(console: Console, quality: Mapping[str, Any]) -> None:
    """What verification measured."""
    if quality["calibration"] == "random":
        console.print(
            "[bold red]Calibrated on random data: the accuracy below means nothing for your model.[/] "
            "Give real samples with --calibration."
        )
    table = Table("output", box=None, header_style="bold")
    for name in ("SQNR", "cosine", "max error", "top-1 agreement"):
        table.add_column(name, justify="right")
    for name, entry in quality.get("outputs", {}).items():
        top = entry.get("top1_agreement")
        table.add_row(
            escape(name),
            f"{entry['sqnr_db']:.1f} dB",
            f"{entry['cosine']:.5f}",
            f"{entry['max_error']:.3g}",
            "" if top is None else f"{top:.0%}",
        )
    console.print(table)
    for name, entry in quality.get("embeddings", {}).items():
        ranks = (
            f", rank correlation of similarities {entry['spearman']:.4f}"
            if "spearman" in entry
            else ""
        )
        console.print(
            f"Embeddings, '{escape(name)}' averaged over tokens: cosine {entry['cosine']:.4f}, least "
            f"{entry['least_cosine']:.4f}{ranks}.",
            highlight=False,
        )
    worst = worst_segment(quality)
    if worst is not None:
        console.print(
            f"Segment {worst[0]} loses most by itself: {worst[1]:.1f} dB.", highlight=False
        )
    shares = {i: s["share"] for i, s in quality.get("segments", {}).items() if "share" in s}
    if shares:
        console.print("Share of the error at the end, by segment:", highlight=False)
        for index in sorted(shares, key=lambda i: -shares[i]):
            own = quality["segments"][index]["sqnr_db"]
            console.print(
                f"  segment {index:>3}  {shares[index]:6.1%}  (own {own:.1f} dB)", highlight=False
            )


def show_compilation(console: Console, manifest: Mapping[str, Any]) -> None:
    """What edgetpu_compiler made of the segments of a bundle, and what it would not take."""
    programs = {"": manifest} | manifest.get("language", {}).get("programs", {})
    segments = [
        (name, s)
        for name, program in programs.items()
        for s in program["segments"]
        if s["device"] == "tpu"
    ]
    done = [(name, s) for name, s in segments if s["compiled"] is not None]
    if not segments:
        return
    if not done:
        console.print(
            "TPU segments are int8 TFLite, not compiled by edgetpu_compiler; `compile` does it later."
        )
    else:
        versions = sorted({s["compiled"]["compiler"] for _, s in done})
        console.print(
            f"edgetpu_compiler {', '.join(versions)} took {len(done)} of {len(segments)} segments.",
            highlight=False,
        )
    for name, segment in segments:
        at, found = f"{name + ' ' if name else ''}segment {segment['index']}", segment["compiled"]
        if found is None and done:
            reason = segment["operators"][0]["reason"] if segment["operators"] else ""
            console.print(f"[yellow]{at}[/] {escape(reason)}", highlight=False, soft_wrap=True)
        for row in found["on_cpu"] if found else ():
            text = f"{row['count']} {row['operator']} left on the CPU: {row['status']}"
            console.print(f"[yellow]{at}[/] {escape(text)}", highlight=False, soft_wrap=True)
        if found and found["streamed_bytes"] > segment["streamed_bytes"] + _UNPLANNED:
            planned = size(segment["streamed_bytes"]) or "none"
            text = f"streams {size(found['streamed_bytes'])} at each run, planned were {planned}"
            console.print(f"[yellow]{at}[/] {text}", highlight=False)


def show_compiled(
    console: Console, name: str, packages: Sequence[Package], on_cpu: Mapping[str, int]
) -> None:
    """The executables of a compiled file and what each invocation sends."""
    for package in packages:
        console.print(f"[bold]{escape(name)}[/]: compiler {package.compiler}", highlight=False)
        table = Table(box=None, header_style="bold")
        table.add_column("executable")
        for column in ("parameters", "instructions", "DMA in", "DMA out", "memory/tile"):
            table.add_column(column, justify="right")
        for e in package.executables:
            sizes = (e.parameters, e.instructions, e.dma_in, e.dma_out, e.narrow_memory_per_tile)
            table.add_row(e.kind, *(size(number) for number in sizes))
        console.print(table)
        console.print(
            f"cached {size(package.cached) or '0 B'}, streamed at each run {size(package.streamed) or '0 B'}; "
            f"needs runtime {package.min_runtime}; caching token {package.executables[0].token}",
            highlight=False,
        )
    left = ", ".join(f"{count} {operator}" for operator, count in sorted(on_cpu.items()))
    console.print(f"on the CPU: {left or 'nothing'}", highlight=False)


def show_check(console: Console, name: str, rows: Sequence[Mapping[str, str | None]]) -> None:
    """Operators of a TFLite file, those of the same kind and fate together."""
    groups: dict[tuple[str | None, str | None], list[str | None]] = {}
    for row in rows:
        groups.setdefault((row["operator"], row["reason"]), []).append(row["output"])
    table = Table("operator", "count", "would", "why", box=None, header_style="bold")
    for (operator, reason), outputs in groups.items():
        fate = "[green]map[/]" if reason is None else "[yellow]stay[/]"
        table.add_row(operator, str(len(outputs)), fate, escape(reason or ""))
    mapped = sum(row["reason"] is None for row in rows)
    console.print(table)
    console.print(
        f"{escape(name)}: {mapped} of {len(rows)} operators would map to the Edge TPU (a prediction)",
        highlight=False,
    )


def size(number: int, brief: bool = False) -> str:
    """Bytes for people: 512 B, 1.5 KiB, 7.88 MiB; or briefly 512, 1.5K, 7.9M."""
    if number < 1024:
        return (f"{number}" if brief else f"{number} B") if number else ""
    unit, factor = ("K", 1024) if number < 1024**2 else ("M", 1024**2)
    amount = number / factor
    if brief:
        return f"{amount:.0f}{unit}" if amount >= 100 else f"{amount:.1f}{unit}"
    return f"{amount:.{1 if unit == 'K' else 2}f} {unit}iB"


def count(number: float) -> str:
    """Counts for people: 512, 1.5 M, 3.9 G."""
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= factor:
            return f"{number / factor:.1f} {unit}"
    return str(int(number))


def short(name: str, width: int = 28) -> str:
    """A long node name keeps its end, which tells more."""
    return name if len(name) <= width else "…" + name[-(width - 1) :]
