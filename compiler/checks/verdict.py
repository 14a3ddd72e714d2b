"""Says of a bundle whose results are bad that they are: what, where to look, and what to try."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compiler.runtime.manifest import FindingEntry, WarningEntry

# Below these a result is bad: SQNR of an output in dB, cosine, and shares of what a user reads off.
LEAST_DB = 15.0
LEAST_COSINE = 0.98
LEAST_AGREEMENT = 0.9
# With fewer calibration samples, more are the first thing to try.
FEW_SAMPLES = 32

# An output that varies by less, as a share of its size, cannot be judged: a good int8 result is off
# by 1% of the size.
LEAST_VARIATION = 0.03

# A language model's perplexity beside the float model's.
MOST_PERPLEXITY = 1.1

Quality = Mapping[str, Any]


def findings(quality: Quality) -> list[FindingEntry]:
    """What is bad (`kind` "bad"), or cannot be told ("unsure"), of outputs by name (`output`), as a
    `finding`."""
    found: list[FindingEntry] = []
    boxes = quality.get("detections")
    for name, entry in quality["outputs"].items():
        reasons = _bad(entry)
        if boxes is not None and name == boxes["outputs"][0]:
            reasons = _bad_boxes(boxes) + reasons
        if reasons:
            found.append({"kind": "bad", "output": name, "finding": "; ".join(reasons)})
        elif hardly_varies(entry):
            found.append({"kind": "unsure", "output": name, "finding": _unsure(entry)})
        elif boxes is not None and name == boxes["outputs"][0] and boxes["ap50"] is None:
            found.append({"kind": "unsure", "output": name, "finding": detections_text(boxes)})
    return found


def of_language(manifest: Mapping[str, Any]) -> list[WarningEntry]:
    """The warnings of a language model: one where its perplexity is far above the float model's."""
    found = manifest["quality"]["perplexity"]
    if found["ratio"] <= MOST_PERPLEXITY:
        return []
    finding = f"perplexity {found['bundle']:.4g} beside {found['float']:.4g} in float"
    tries = "--with rotate_outputs --with second_row or --place auto"
    advice = (
        f"try {tries}"
        if manifest["prediction"]["place"] == "tpu"
        else "try --calibration with text of your kind"
    )
    warning: WarningEntry = {
        "kind": "bad",
        "finding": finding,
        "advice": advice,
        "output": manifest["outputs"][0]["name"],
        "segment": None,
        "node": None,
    }
    return [warning]


def hardly_varies(entry: Mapping[str, Any]) -> bool:
    """Whether an output varies too little over the samples to tell a good bundle from a bad one."""
    exact = entry["sqnr_db"] is not None and entry["sqnr_db"] >= LEAST_DB
    return not exact and entry["variation"] < LEAST_VARIATION


def _bad_boxes(found: Mapping[str, Any]) -> list[str]:
    told = found["ap50"] is not None
    good = not told or min(found["ap50"], found["recall"]) >= LEAST_AGREEMENT
    return [] if good else [detections_text(found)]


def _bad(entry: Mapping[str, Any]) -> list[str]:
    good, reasons = _read_off(entry)
    figures = []
    if hardly_varies(entry):
        if entry["plain_sqnr_db"] < LEAST_DB:
            figures.append(f"{entry['plain_sqnr_db']:.1f} dB")
    elif entry["sqnr_db"] < LEAST_DB:
        figures.append(f"{entry['sqnr_db']:.1f} dB{part(entry)}")
    if entry["cosine"] < LEAST_COSINE:
        figures.append(f"cosine {entry['cosine']:.4f}")
    reasons += figures
    if reasons and "distinct" in entry:
        reasons.append(distinct_text(entry["distinct"]))
    # What is read off may still be right; on other samples it need not be.
    return [*reasons, *(f"though {text}" for text in good)] if reasons else []


def _read_off(entry: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """(what is read off an output and agrees, what does not)."""
    good: list[str] = []
    bad: list[str] = []
    top, text, mask = (entry.get(key) for key in ("top1_agreement", "text", "mask_iou"))
    if top is not None:
        (good if top >= LEAST_AGREEMENT else bad).append(classes_text(top))
    if text is not None:
        (good if text["equal"] >= LEAST_AGREEMENT * text["lines"] else bad).append(text_text(text))
    if mask is not None:
        (good if mask >= LEAST_AGREEMENT else bad).append(mask_text(mask))
    return good, bad


def _unsure(entry: Mapping[str, Any]) -> str:
    varies = f"varies by {entry['variation']:.2%} of its size over the held-out samples"
    if entry["sqnr_db"] is None:
        varies = "does not vary over the held-out samples"
    return f"{varies}, too little to tell how well the bundle follows it"


def part(entry: Mapping[str, Any]) -> str:
    """Which part of an output its figure is of, where it has several."""
    worst = entry.get("worst")
    if worst is None or worst["sqnr_db"] != entry["sqnr_db"]:
        return ""
    return f" at {worst['slice']}"


def detections_text(found: Mapping[str, Any]) -> str:
    if found["ap50"] is None:
        return f"detections cannot be compared: the float model finds {found['float']} in the held-out samples"
    return (
        f"detections AP@50 {found['ap50']:.2f}, recall {found['recall']:.2f}: {found['bundle']} boxes beside "
        f"{found['float']} of the float model"
    )


def classes_text(found: float) -> str:
    return f"the same class in {found:.0%}"


def text_text(found: Mapping[str, Any]) -> str:
    return f"{found['equal']} of {found['lines']} texts are the same, {found['character_error']:.1%} of characters wrong"


def mask_text(found: float) -> str:
    return f"masks overlap by {found:.0%}"


def distinct_text(found: Mapping[str, Any]) -> str:
    values = "one value" if found["bundle"] == 1 else f"{found['bundle']} values"
    return f"{found['slice']} takes {values} where float has {found['float']}"


def advice(manifest: Mapping[str, Any], kind: str, node: str | None) -> str:
    """What to try, the most promising first."""
    quality, place = manifest["quality"], manifest["prediction"]["place"]
    if not quality["segments"]:
        return "nothing runs on an Edge TPU: see with --check-passes which rewrite is to blame"
    if quality["calibration"] == "random":
        return "give real samples with --calibration: random ones say little"
    if kind == "unsure":
        return "give samples with --calibration that show more, at least 32"
    tries = [f"--pin '{node}=host'"] if node is not None else []
    if quality["calibration_samples"] < FEW_SAMPLES:
        tries.append(f"more samples than {quality['calibration_samples']}")
    if place == "tpu":
        tries.append("--place auto")
    if quality["observer"] != "mse":
        tries.append("--observer mse")
    tries.append("--keep-float 10")
    return f"try {', '.join(tries[:-1])} or {tries[-1]}"
