"""Plans and forecasts as tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from compiler.runtime.bundle import tensor_bytes
from compiler.targets import Target
from compiler.view.alone import beside_host, host_alone, show_faster_host_of
from compiler.view.columns import plain_table
from compiler.view.units import brief_size, count, figure, rate, short, size

if TYPE_CHECKING:
    from compiler.driver.plan import Forecast, LanguageForecast

Json = Mapping[str, Any]

# The columns of a plan with their least widths.
_SEGMENT_COLUMNS = {
    "cached": 6,
    "streamed": 8,
    "MACs": 7,
    "in": 5,
    "out": 5,
    "ms": 5,
    "dB": 4,
}
# What tells alike reasons apart: quoted names, shapes and numbers.
_DETAILS = re.compile(r"'[^']*'|\[[^\]]*\]|\d[\d.,]*(e-?\d+)?")
# A gap below so many percent is shown as none.
_SMALL_GAP = 0.1


def show_plan(console: Console, plan: Json) -> None:
    """The segments, what is predicted of them, and which nodes are on the host and why."""
    file, description = escape(plan["model"]["file"]), plan["target"]["description"]
    console.print(f"[bold]{file}[/] for {description}", highlight=False)
    console.print(_segments(plan))
    tpu = [segment for segment in plan["segments"] if segment["device"] == "tpu"]
    on_host: list[Json] = []
    for segment in plan["segments"]:
        if segment["device"] == "host":
            on_host += segment["operators"]
    parameters = size(sum(segment["parameter_bytes"] for segment in tpu)) or "0 B"
    macs = count(sum(segment["macs"] for segment in tpu))
    console.print(
        f"{len(tpu)} TPU segments with {parameters} of parameters and {macs} MACs; "
        f"{len(on_host)} nodes on the host",
        highlight=False,
    )
    console.print(predicted(plan["prediction"]), highlight=False)
    if any(segment.get("replicas") for segment in tpu):
        console.print(
            "Where a segment has several Edge TPUs, these take requests in turn. Each is taken to "
            "have a link of its own.",
            highlight=False,
        )
    if on_host:
        console.print(_reasons(on_host))


def predicted(prediction: Json) -> str:
    """The prediction as one sentence, with its error."""
    tpus = prediction["tpus"]
    several = tpus > 1
    devices = f"{tpus} Edge TPU{'s' if several else ''} and {prediction['host']}"
    pipeline = ""
    if several:
        limit = _limit(prediction["bound_by"])
        pipeline = f", a result each {prediction['interval_ms']:.3g} ms, limited by {limit}"
    if "p95_ms" in prediction:
        pipeline += f"; {_under_load(prediction)}"
    return (
        f"Predicted on {devices}: {prediction['latency_ms']:.3g} ms{pipeline}"
        f"{beside_host(prediction)}; "
        f"{_nearness(prediction['gap_percent'])} under this model; "
        f"{_error(prediction['host'], prediction['error_percent'])}"
    )


def _under_load(prediction: Json) -> str:
    rate, load = prediction["rate"], prediction["load"]
    if load >= 1:
        return f"requests come faster than they are answered at {rate:g}/s, a load of {load:.0%}"
    return f"95% within {prediction['p95_ms']:.3g} ms at {rate:g} requests/s, a load of {load:.0%}"


def _limit(bound_by: int | None) -> str:
    return "the host" if bound_by is None else f"tpu {bound_by}"


def place_name(segment: Json) -> str:
    """host, tpu 0, tpu 1 ...; tpu 0-3 or tpu 0,2 where several take requests in turn."""
    if segment["device"] == "host":
        return "host"
    numbers = [segment["tpu"], *segment.get("replicas", [])]
    first, last = numbers[0], numbers[-1]
    if len(numbers) > 1 and numbers == list(range(first, last + 1)):
        return f"tpu {first}-{last}"
    return f"tpu {','.join(map(str, numbers))}"


def show_forecasts(console: Console, name: str, target_name: str, rows: Sequence[Forecast]) -> None:
    """What each number of Edge TPUs is predicted to give, or each program of a language model."""
    from compiler.driver.plan import LanguageForecast

    target = Target.load(target_name)
    programs = [row for row in rows if isinstance(row, LanguageForecast)]
    if programs:
        _show_language_forecasts(console, name, target, programs)
        return
    objective = rows[0].objective
    console.print(
        f"[bold]{escape(name)}[/] for {target.description} and {rows[0].host}, {objective} first",
        highlight=False,
    )
    columns = "TPUs", "segments", "latency ms", "results/s", "gain", "cached", "streamed"
    # A terminal has 80 columns.
    others = ["reload ms", "gap"] if rows[0].rate is None else ["p95 ms", "load"]
    table = plain_table([*columns, *others])
    for row in rows:
        reload = f"{row.reload_ms:.2f}" if row.reload_ms else ""
        gap = "" if row.gap_percent is None else f"{row.gap_percent:.1f}%"
        under_load = [] if row.p95_ms is None else [f"{row.p95_ms:.2f}", f"{row.load:.0%}"]
        table.add_row(
            str(row.tpus),
            f"{row.tpu_segments}+{row.host_segments}",
            f"{row.latency_ms:.2f}",
            _rate(row),
            _speedup(row),
            size(row.cached_bytes),
            size(row.streamed_bytes),
            *(under_load or (reload, gap)),
        )
    console.print(table)
    if rows[0].rate is not None:
        console.print(
            f"95% of the requests are answered within p95, if {rows[0].rate:g} come in a second, "
            "by chance. Load is the share of the time that the busiest device works; at 100% and "
            "more, requests come faster than they are answered.",
            highlight=False,
        )
    limited = "; * where the host limits them" if any(map(_limited_by_host, rows)) else ""
    console.print(
        "Segments are TPU+host. Results/s are those of a full pipeline, if each Edge TPU has a "
        f"link of its own{limited}. Gain is how many times as fast that is as the host alone, or "
        "an inference where latency comes first. Reload is the time that is added where the "
        "segments of one Edge TPU are not compiled together. "
        "Gap is how far the plan may be from the best cut, where a solver looked for that. "
        f"The host alone takes {host_alone(asdict(rows[0]))}. Of the cost model: "
        f"{_error(rows[0].host, rows[0].error_percent)}.",
        highlight=False,
    )
    show_faster_host_of(console, rows)


def _rate(row: Forecast) -> str:
    """Results per second, marked where the host limits them."""
    if not row.interval_ms:
        return ""
    return f"{1e3 / row.interval_ms:.1f}{'*' if _limited_by_host(row) else ''}"


def _speedup(row: Forecast) -> str:
    """How many times faster than the host alone, by what was asked for."""
    taken = row.latency_ms if row.objective == "latency" else row.interval_ms
    return f"{row.host_float_ms / taken:.2g}" if taken else ""


def _limited_by_host(row: Forecast) -> bool:
    return bool(row.interval_ms) and row.bound_by is None


def _show_language_forecasts(
    console: Console, name: str, target: Target, rows: Sequence[LanguageForecast]
) -> None:
    host = rows[0].host
    console.print(f"[bold]{escape(name)}[/] for {target.description} and {host}", highlight=False)
    columns = "program", "tokens", "place", "segments", "streamed", "ms", "tokens/s"
    table = plain_table([*columns, "link allows"], left=("program", "place"))
    for row in rows:
        table.add_row(
            row.program,
            str(row.tokens),
            row.place,
            f"{row.tpu_segments}+{row.host_segments}",
            size(row.streamed_bytes),
            f"{row.latency_ms:.4g}",
            rate(row.tokens_per_second),
            f"{row.link_limit:.3g}" if row.link_limit else "",
        )
    console.print(table)
    console.print(
        "Segments are TPU+host. The link allows so many tokens/s if all parameters are streamed "
        f"and nothing else takes time. Of the cost model: {_error(host, rows[0].error_percent)}.",
        highlight=False,
    )


def _error(host: str, percent: float | None) -> str:
    """How far to trust predictions for a target on a host."""
    if percent is None:
        return f"how far it is off on {host} is not measured"
    return f"it is off by {percent}% on average for networks that it was not fitted to"


def _nearness(gap: float | None) -> str:
    if gap is None:
        return "a cut"
    if gap < _SMALL_GAP:
        return "the best cut"
    return f"a cut within {gap:.1f}% of the best"


def _segments(plan: Json) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0), collapse_padding=True)
    table.add_column("segment", no_wrap=True, min_width=7)
    table.add_column("nodes", overflow="ellipsis", no_wrap=True, max_width=18)
    for name, width in _SEGMENT_COLUMNS.items():
        table.add_column(name, justify="right", no_wrap=True, min_width=width)
    quality = plan.get("quality", {}).get("segments", {})
    for segment in plan["segments"]:
        own = quality.get(str(segment["index"]))
        colour = "green" if segment["device"] == "tpu" else "yellow"
        table.add_row(
            f"{segment['index']:02d} [{colour}]{place_name(segment)}[/]",
            escape(_span(operator["node"] for operator in segment["operators"])),
            brief_size(segment["cached_bytes"]),
            brief_size(segment["streamed_bytes"]),
            count(segment["macs"]) if segment["macs"] else "",
            brief_size(tensor_bytes(segment["inputs"])),
            brief_size(tensor_bytes(segment["outputs"])),
            f"{sum(segment['predicted_ms'].values()):.3g}",
            figure(own["sqnr_db"]) if own else "",
        )
    return table


def _span(nodes: Iterable[str]) -> str:
    """First and last node of a segment, and how many there are."""
    names = list(dict.fromkeys(nodes))
    if len(names) == 1:
        return short(names[0], 18)
    return f"{len(names)}: {short(names[0], 6)} … {short(names[-1], 6)}"


def _reasons(operators: Iterable[Json]) -> Table:
    """Nodes on the host; those whose reasons differ in names and numbers only share a line."""
    table = Table("on the host", "nodes", "why", "for example", box=None, header_style="bold")
    groups: dict[str, list[Json]] = {}
    for operator in operators:
        alike = _DETAILS.sub("#", operator["reason"])
        groups.setdefault(alike, []).append(operator)
    for group in groups.values():
        kinds = dict.fromkeys(operator["operator"] for operator in group)
        reason = group[0]["reason"]
        if len({operator["reason"] for operator in group}) > 1:
            reason += " (others alike)"
        example = escape(short(group[0]["node"]))
        table.add_row(", ".join(kinds), str(len(group)), escape(reason), example)
    return table
