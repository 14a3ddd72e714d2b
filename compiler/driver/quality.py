"""What follows from a measured quality: warnings in the manifest, or a build that fails."""

from __future__ import annotations

from compiler.checks import verdict, verify
from compiler.errors import QualityError
from compiler.partition import Program
from compiler.quantize.samples import Samples
from compiler.runtime.manifest import Manifest, MeasuredEntry, WarningEntry


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


def require_sqnr(quality: MeasuredEntry, least: float | None) -> None:
    """Raises QualityError where the SQNR of an output is below `least` dB, or cannot be told.

    An output that is the same for several samples is held to its plain SQNR, since nothing of it
    varies.
    """
    if least is None:
        return
    for name, entry in quality["outputs"].items():
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


def _loss(quality: MeasuredEntry) -> str:
    worst = verify.worst_segment(quality)
    if worst is None:
        return ""
    return f"; segment {worst[0]} loses most ({worst[1]} dB)"
