"""What verification measured, and what is bad about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from compiler.checks import verdict
from compiler.checks.verify import worst_segment
from compiler.view.units import figure, sentence, short

Json = Mapping[str, Any]

MOST_WARNINGS = 4
# With fewer held-out samples, the figures are said to be uncertain.
FEW_HELD_OUT = 16
_OUTPUT_COLUMNS = (
    "SQNR dB",
    "varies",
    "worst part",
    "dB",
    "plain dB",
    "cosine",
    "max error",
)
# What the bundle was compared with, by the manifest's word for it.
_BASELINES = {
    "file": "the file",
    "fixed shapes": "the file with fixed shapes",
    "imported": "the imported model, not with the file",
}


def show_quality(console: Console, quality: Json) -> None:
    """What verification measured."""
    if quality["calibration"] == "random":
        console.print(
            "[bold red]Calibrated on random data: the accuracy below means nothing for your "
            "model.[/] Give real samples with --calibration."
        )
    outputs = quality.get("outputs", {})
    floats = {name: entry for name, entry in outputs.items() if "sqnr_db" in entry}
    others = {name: entry for name, entry in outputs.items() if "sqnr_db" not in entry}
    if floats:
        console.print(_outputs(floats))
    if others:
        console.print(_exact_outputs(others))
    _show_sequences(console, quality)
    _show_sample_count(console, quality)
    for line in [*_readings(quality), *_embeddings(quality)]:
        console.print(line, highlight=False)
    worst = worst_segment(quality)
    if worst is not None:
        console.print(
            f"Least accurate segment: {worst[0]}, {worst[1]:.1f} dB by itself.", highlight=False
        )
    _show_shares(console, quality.get("segments", {}))


def show_warnings(console: Console, quality: Json) -> None:
    """What is bad about a bundle or cannot be told, where to look and what to try."""
    warnings = quality.get("warnings", [])
    for warning in warnings[:MOST_WARNINGS]:
        bad = warning["kind"] == "bad"
        head = "[bold red]BAD RESULT[/]" if bad else "[bold yellow]UNSURE[/]"
        look = _where_to_look(warning) if bad else ""
        advice = sentence(warning["advice"])
        text = f"output '{warning['output']}': {warning['finding']}.{look} {advice}."
        console.print(f"{head} {escape(text)}", highlight=False, soft_wrap=True)
    left = len(warnings) - MOST_WARNINGS
    if left > 0:
        console.print(
            f"The same of {left} more outputs; `inspect --json` has them all.", highlight=False
        )


def show_goals(console: Console, goals: Sequence[Json]) -> None:
    """What the results had to reach, and whether they do."""
    for goal in goals:
        measured = "cannot be told" if goal["measured"] is None else f"{goal['measured']:.4g}"
        met = "met" if goal["met"] else "[bold yellow]not met[/]"
        note = f"; {escape(goal['note'])}" if "note" in goal and not goal["met"] else ""
        text = f"Quality goal {goal['figure']}={goal['wanted']:g}: {met} ({measured}){note}."
        console.print(text, highlight=False, soft_wrap=True)


def show_baseline(console: Console, quality: Json) -> None:
    """What was compared with, where there is something to say of it."""
    if "baseline_note" not in quality:
        return
    baseline = _BASELINES[quality["baseline"]]
    text = escape(f"Compared with {baseline}: {quality['baseline_note']}.")
    console.print(f"[yellow]{text}[/]", highlight=False, soft_wrap=True)


def _outputs(outputs: Json) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("output", no_wrap=True)
    for name in _OUTPUT_COLUMNS:
        table.add_column(name, justify="right", no_wrap=name != "worst part")
    for name, entry in outputs.items():
        worst = entry.get("worst")
        table.add_row(
            escape(short(name, 16)),
            figure(entry["sqnr_db"]),
            f"{entry['variation']:.1%}",
            "" if worst is None else escape(worst["slice"]),
            "" if worst is None else figure(worst["sqnr_db"]),
            figure(entry["plain_sqnr_db"]),
            f"{entry['cosine']:.5f}",
            f"{entry['max_error']:.3g}",
        )
    return table


def _exact_outputs(outputs: Json) -> Table:
    """Outputs of integers, booleans or text, which are equal or not."""
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("output", no_wrap=True)
    table.add_column("equal values", justify="right", no_wrap=True)
    for name, entry in outputs.items():
        table.add_row(escape(short(name, 16)), f"{entry['equal']:.2%}")
    return table


def _show_sequences(console: Console, quality: Json) -> None:
    """That the figures are those of a closed loop."""
    count = quality.get("sequences")
    if count is None:
        return
    sequences = "a held-out sequence" if count == 1 else f"{count} held-out sequences"
    console.print(
        f"Measured over {sequences}, {quality['samples']} steps in all, in a closed loop: at each "
        "step the bundle goes on from its own state.",
        highlight=False,
        soft_wrap=True,
    )


def _show_sample_count(console: Console, quality: Json) -> None:
    """On how few held-out samples the figures rest. Figures on random data mean nothing anyway."""
    count = quality.get("samples", FEW_HELD_OUT)
    if count >= FEW_HELD_OUT or quality["calibration"] == "random":
        return
    samples = "sample" if count == 1 else "samples"
    has_floats = any("sqnr_db" in entry for entry in quality.get("outputs", {}).values())
    amount = "by several dB" if has_floats else "by much"
    console.print(
        f"Measured on {count} held-out {samples}; with so few, the figures may be off {amount}.",
        highlight=False,
        soft_wrap=True,
    )


def _readings(quality: Json) -> Iterator[str]:
    """What a user reads off the outputs: detections, classes, texts, masks."""
    if "labelled" in quality:
        yield verdict.labelled_text(quality["labelled"])
    if "detections" in quality:
        yield sentence(verdict.detections_text(quality["detections"])) + "."
    for name, entry in quality.get("outputs", {}).items():
        texts = _readings_of(entry)
        if texts:
            yield escape(f"Output '{name}': {'; '.join(texts)}.")


def _readings_of(entry: Json) -> list[str]:
    texts = []
    if "top1_agreement" in entry:
        texts.append(verdict.classes_text(entry))
    if "text" in entry:
        texts.append(verdict.text_text(entry["text"]))
    if "decisions" in entry:
        texts.append(verdict.decisions_text(entry["decisions"]))
    if "mask_iou" in entry:
        texts.append(verdict.mask_text(entry["mask_iou"]))
    if "equal" in entry and "sqnr_db" in entry:
        texts.append(verdict.equal_text(entry))
    if "distinct" in entry:
        texts.append(verdict.distinct_text(entry["distinct"]))
    return texts


def _embeddings(quality: Json) -> Iterator[str]:
    for name, entry in quality.get("embeddings", {}).items():
        ranks = ""
        if "spearman" in entry:
            ranks = f", rank correlation of similarities {entry['spearman']:.4f}"
        yield (
            f"Embeddings, '{escape(name)}' averaged over tokens: cosine {entry['cosine']:.4f}, "
            f"least {entry['least_cosine']:.4f}{ranks}."
        )


def _show_shares(console: Console, segments: Json) -> None:
    shares = {index: entry["share"] for index, entry in segments.items() if "share" in entry}
    if not shares:
        return
    console.print("Share of the error at the end, by segment:", highlight=False)
    for index in sorted(shares, key=lambda index: -shares[index]):
        own = figure(segments[index]["sqnr_db"])
        console.print(
            f"  segment {index:>3}  {shares[index]:6.1%}  (own {own} dB)", highlight=False
        )


def _where_to_look(warning: Json) -> str:
    if warning["segment"] is None:
        return ""
    node = "" if warning["node"] is None else f", node '{warning['node']}'"
    return f" Look at segment {warning['segment']}{node}."
