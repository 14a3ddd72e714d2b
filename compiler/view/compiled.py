"""What edgetpu_compiler made of segments and files, and what it is predicted to map."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from compiler.view.columns import plain_table
from compiler.view.units import size

if TYPE_CHECKING:
    from compiler.driver.api import CheckedOperator
    from compiler.vendor.darwinn import Package

Json = Mapping[str, Any]

# Bytes streamed beyond the plan that are worth a line.
_UNPLANNED = 64 << 10


def show_compilation(console: Console, manifest: Json) -> None:
    """What edgetpu_compiler made of the segments of a bundle, and what it would not take."""
    named = _tpu_segments(manifest)
    if not named:
        return
    compiled = [segment["compiled"] for _, segment in named if segment["compiled"] is not None]
    if not compiled:
        console.print(
            "TPU segments are int8 TFLite, not compiled by edgetpu_compiler; `compile` does that "
            "later."
        )
        return
    versions = ", ".join(sorted({entry["compiler"] for entry in compiled}))
    console.print(
        f"edgetpu_compiler {versions} took {len(compiled)} of {len(named)} segments.",
        highlight=False,
    )
    audited = sum(entry["audited"] for entry in compiled)
    console.print(
        f"The parameters of {audited} of {len(compiled)} compiled segments are those of their "
        "plain files.",
        highlight=False,
    )
    for name, segment in named:
        for text in _remarks(segment):
            console.print(f"[yellow]{name}[/] {escape(text)}", highlight=False, soft_wrap=True)


def show_compiled(
    console: Console, name: str, packages: Sequence[Package], on_cpu: Mapping[str, int]
) -> None:
    """The executables of a compiled file and what each invocation sends."""
    for package in packages:
        console.print(f"[bold]{escape(name)}[/]: compiler {package.compiler}", highlight=False)
        console.print(_executables(package))
        cached, streamed = size(package.cached) or "0 B", size(package.streamed) or "0 B"
        console.print(
            f"cached {cached}, streamed at each run {streamed}; needs runtime "
            f"{package.min_runtime}; caching token {package.executables[0].token}",
            highlight=False,
        )
    left = ", ".join(f"{count} {operator}" for operator, count in sorted(on_cpu.items()))
    console.print(f"on the CPU: {left or 'nothing'}", highlight=False)


def show_check(console: Console, name: str, operators: Sequence[CheckedOperator]) -> None:
    """Operators of a TFLite file, those of the same kind and fate together."""
    counts: dict[tuple[str, str | None], int] = {}
    for row in operators:
        key = row.operator, row.reason
        counts[key] = counts.get(key, 0) + 1
    table = Table("operator", "count", "would", "why", box=None, header_style="bold")
    for (operator, reason), count in counts.items():
        fate = "[green]map[/]" if reason is None else "[yellow]stay[/]"
        table.add_row(operator, str(count), fate, escape(reason or ""))
    mapped = sum(row.reason is None for row in operators)
    console.print(table)
    console.print(
        f"{escape(name)}: {mapped} of {len(operators)} operators would map to the Edge TPU "
        "(a prediction)",
        highlight=False,
    )


def _tpu_segments(manifest: Json) -> list[tuple[str, Json]]:
    """The TPU segments of all programs, with the names that they are spoken of by."""
    programs = {"": manifest} | manifest.get("language", {}).get("programs", {})
    found = []
    for program_name, program in programs.items():
        prefix = f"{program_name} " if program_name else ""
        for segment in program["segments"]:
            if segment["device"] == "tpu":
                found.append((f"{prefix}segment {segment['index']}", segment))
    return found


def _remarks(segment: Json) -> Iterator[str]:
    """What is not as it was planned of a segment of a bundle with compiled ones."""
    compiled = segment["compiled"]
    if compiled is None:
        yield segment["operators"][0]["reason"] if segment["operators"] else ""
        return
    for row in compiled["on_cpu"]:
        yield f"{row['count']} {row['operator']} left on the CPU: {row['status']}"
    for row in compiled["not_judged"]:
        yield f"{row['count']} {row['operator']} could not be compared: {row['reason']}"
    planned, streamed = segment["streamed_bytes"], compiled["streamed_bytes"]
    if streamed > planned + _UNPLANNED:
        yield f"streams {size(streamed)} at each run, planned were {size(planned) or 'none'}"


def _executables(package: Package) -> Table:
    columns = "executable", "parameters", "instructions", "DMA in", "DMA out", "memory/tile"
    table = plain_table(columns, left=("executable",))
    for executable in package.executables:
        sizes = (
            executable.parameters,
            executable.instructions,
            executable.dma_in,
            executable.dma_out,
            executable.narrow_memory_per_tile,
        )
        table.add_row(executable.kind, *(size(number) for number in sizes))
    return table
