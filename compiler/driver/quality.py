"""What follows from a measured quality: warnings in the manifest, or a build that fails."""

from __future__ import annotations

from typing import cast

from compiler.checks import verdict, verify
from compiler.checks.goals import Goal
from compiler.driver.settled import Settled
from compiler.errors import QualityError
from compiler.partition import Program
from compiler.quantize.samples import Samples
from compiler.runtime.manifest import (
    FigureName,
    GoalEntry,
    Manifest,
    MeasuredEntry,
    QualityEntry,
    WarningEntry,
)


def warnings(manifest: Manifest, program: Program, samples: Samples) -> MeasuredEntry:
    """What is bad about a bundle, with the segment and the node to look at.

    `samples` are run to find that node.
    """
    quality = manifest["quality"]
    findings = verdict.findings(quality)
    if not findings:
        return {}
    segment = None
    node = None
    worst = verify.worst_segment(quality)
    if worst is not None:
        segment = int(worst[0])
        node = verify.worst_node(program, segment, samples)
    found: list[WarningEntry] = []
    for finding in findings:
        advice = verdict.advice(manifest, finding["kind"], node)
        found.append({**finding, "segment": segment, "node": node, "advice": advice})
    return {"warnings": found}


def goals(settled: Settled, quality: QualityEntry) -> MeasuredEntry:
    """What was to be reached, and whether held-out samples reach it."""
    found: list[GoalEntry] = []
    for goal in settled.goals:
        entry: GoalEntry = {
            "figure": cast(FigureName, goal.name),
            "wanted": goal.value,
            "measured": goal.measured(quality),
            "met": goal.is_met(quality),
        }
        seen = None if settled.trial is None else goal.measured(settled.trial.quality)
        note = settled.note
        if not note and seen is not None:
            note = f"it is {seen:.4g} on the samples that the plan was chosen by"
        if entry["measured"] is None:
            note = "these results have no such figure"
        if note and not entry["met"]:
            entry["note"] = note
        found.append(entry)
    if not found:
        return {}
    if settled.trial is None:
        return {"goals": found}
    expected = Goal("sqnr", 0).measured(settled.trial.quality)
    return {"goals": found, "expected_sqnr_db": expected}


def require_sqnr(quality: MeasuredEntry, least: float | None) -> None:
    """Raises QualityError where the SQNR of an output is below `least` dB, or cannot be told.

    An output that is the same for several samples is held to its plain SQNR, since nothing of it
    varies. Outputs of indices, booleans or text have no SQNR: 90% of their values have to be the
    same as in float, and a model of such outputs alone cannot be judged.
    """
    if least is None:
        return
    _require_equality(quality, least)
    for name, entry in quality["outputs"].items():
        if "sqnr_db" not in entry:
            continue
        found = entry["sqnr_db"]
        if found is None and quality["samples"] == 1:
            raise QualityError(
                f"{least}: output '{name}': one held-out sample does not show how it varies: give "
                "at least 8 calibration samples",
                "min_sqnr",
            )
        if found is None:
            found = entry["plain_sqnr_db"]
        if found < least:
            part = verdict.part(entry)
            raise QualityError(
                f"{least}: output '{name}'{part} has {found} dB{_loss(quality)}",
                "min_sqnr",
            )


def _require_equality(quality: MeasuredEntry, least: float) -> None:
    """Raises QualityError where too few values of an output without SQNR are equal, or where no
    output has one."""
    can_judge = any("sqnr_db" in entry for entry in quality["outputs"].values())
    for name, entry in quality["outputs"].items():
        if "sqnr_db" in entry:
            continue
        if entry["equal"] >= verdict.LEAST_AGREEMENT and can_judge:
            continue
        finding = f"{least}: output '{name}' is of integers, booleans or text, which have no SQNR"
        share = verdict.equal_text(entry)
        rest = f"{share}, {verdict.LEAST_AGREEMENT:.0%} are needed{_loss(quality)}"
        if entry["equal"] >= verdict.LEAST_AGREEMENT:
            rest = f"{share}, but no output has an SQNR to judge: build without this limit"
        raise QualityError(f"{finding}: {rest}", "min_sqnr")


def _loss(quality: MeasuredEntry) -> str:
    worst = verify.worst_segment(quality)
    if worst is None:
        return ""
    return f"; segment {worst[0]} is least accurate ({worst[1]} dB by itself)"
