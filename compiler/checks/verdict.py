"""Says of a bundle whose results are bad that they are: what, where to look, and what to try."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from compiler.checks.readings import LEAST_FOUND
from compiler.runtime.manifest import FindingEntry, WarningEntry

# Below these a result is bad. SQNR of an output in dB: the error is about a sixth of what varies.
LEAST_DB = 15.0
LEAST_COSINE = 0.98
# Tokens that are averaged to embeddings, as sentence encoders are used, are judged by these.
GOOD_POOLED = 0.99
# Shares of what a user reads off: classes, texts, masks, detections.
LEAST_AGREEMENT = 0.9
# Of a probability at each step, the share that may be decided otherwise than in float.
MOST_DIFFERING = 0.01
# With fewer calibration samples, more are the first thing to try.
FEW_SAMPLES = 32
# An output that varies by less, as a share of its size, cannot be judged: a good int8 result is off
# by 1% of the size.
LEAST_VARIATION = 0.03
# A language model's perplexity, as a multiple of the float model's.
MOST_PERPLEXITY = 1.1

Quality = Mapping[str, Any]


def findings(quality: Quality) -> list[FindingEntry]:
    """What there is to say of each output: `kind` "bad", or "unsure" where it cannot be told;
    `output`, its name; `finding`, a text.

    Outputs of which there is nothing to say are left out.
    """
    found: list[FindingEntry] = []
    boxes = quality.get("detections")
    for name, entry in quality["outputs"].items():
        if "sqnr_db" not in entry:
            if entry["equal"] < LEAST_AGREEMENT:
                found.append({"kind": "bad", "output": name, "finding": equal_text(entry)})
            continue
        reasons = _bad(entry)
        # Detections are read off several outputs and reported with the first.
        own_boxes = boxes if boxes is not None and name == boxes["outputs"][0] else None
        if own_boxes is not None:
            reasons = _bad_boxes(own_boxes) + reasons
        if reasons and boxes is not None and _shows_nothing(boxes, name):
            text = f"there is nothing to detect in the held-out samples ({'; '.join(reasons)})"
            found.append({"kind": "unsure", "output": name, "finding": text})
        elif reasons and _pooled(quality, name) >= GOOD_POOLED:
            text = (
                f"single tokens, padding among them, are less exact ({'; '.join(reasons)}) than "
                f"their average is: its cosine is {_pooled(quality, name):.4f}"
            )
            found.append({"kind": "unsure", "output": name, "finding": text})
        elif reasons:
            found.append({"kind": "bad", "output": name, "finding": "; ".join(reasons)})
        elif hardly_varies(entry):
            found.append({"kind": "unsure", "output": name, "finding": _unsure(entry)})
        elif own_boxes is not None and own_boxes["ap50"] is None:
            found.append({"kind": "unsure", "output": name, "finding": detections_text(own_boxes)})
    return found


def of_language(manifest: Mapping[str, Any]) -> list[WarningEntry]:
    """The warnings of a language model: one where its perplexity is far above the float model's, by
    more than chance."""
    found = manifest["quality"]["perplexity"]
    # Few tokens tell little: what may be chance is no finding.
    if found["ratio"] - 2 * found["ratio_error"] <= MOST_PERPLEXITY:
        return []
    advice = "try --calibration with text of your kind"
    if manifest["prediction"]["place"] == "tpu":
        advice = "try --with rotate_outputs --with second_row or --place auto"
    warning: WarningEntry = {
        "kind": "bad",
        "finding": f"perplexity {found['bundle']:.4g} beside {found['float']:.4g} in float",
        "advice": advice,
        "output": manifest["outputs"][0]["name"],
        "segment": None,
        "node": None,
    }
    return [warning]


def hardly_varies(entry: Mapping[str, Any]) -> bool:
    """Whether an output varies too little over the samples to tell a good bundle from a bad one."""
    is_good = entry["sqnr_db"] is not None and entry["sqnr_db"] >= LEAST_DB
    return not is_good and entry["variation"] < LEAST_VARIATION


def _bad(entry: Mapping[str, Any]) -> list[str]:
    """Why an output is bad; nothing where it is not."""
    agreeing, reasons = _read_off(entry)
    if hardly_varies(entry):
        if entry["plain_sqnr_db"] < LEAST_DB:
            reasons.append(f"{entry['plain_sqnr_db']:.1f} dB")
    elif entry["sqnr_db"] < LEAST_DB:
        reasons.append(f"{entry['sqnr_db']:.1f} dB{part(entry)}")
    if entry["cosine"] < LEAST_COSINE:
        reasons.append(f"cosine {entry['cosine']:.4f}")
    if not reasons:
        return []
    if "distinct" in entry:
        reasons.append(distinct_text(entry["distinct"]))
    # What is read off may still be right; on other samples it need not be.
    return reasons + [f"though {text}" for text in agreeing]


def _read_off(entry: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """(what is read off an output and agrees, what does not)."""
    shares: list[tuple[float, str]] = []
    if "top1_agreement" in entry:
        shares.append((entry["top1_agreement"], classes_text(entry)))
    if "text" in entry:
        text = entry["text"]
        shares.append((text["equal"] / text["lines"], text_text(text)))
    if "mask_iou" in entry:
        shares.append((entry["mask_iou"], mask_text(entry["mask_iou"])))
    agreeing = [text for share, text in shares if share >= LEAST_AGREEMENT]
    other = [text for share, text in shares if share < LEAST_AGREEMENT]
    if "decisions" in entry:
        found = entry["decisions"]
        is_bad = exceeds(found["differing"], found["steps"], MOST_DIFFERING)
        texts = other if is_bad else agreeing
        texts.append(decisions_text(found))
    return agreeing, other


def exceeds(count: int, of: int, share: float) -> bool:
    """Whether more than a share of some are counted, by more than chance (a standard
    deviation)."""
    return count - math.sqrt(count) > share * of


def _bad_boxes(found: Mapping[str, Any]) -> list[str]:
    if found["ap50"] is None or min(found["ap50"], found["recall"]) >= LEAST_AGREEMENT:
        return []
    return [detections_text(found)]


def _shows_nothing(boxes: Mapping[str, Any], name: str) -> bool:
    """Whether an output is a detector's, and neither model finds a box in the held-out samples: its
    figures are those of background then."""
    return name in boxes["outputs"] and boxes["float"] == 0 and boxes["bundle"] == 0


def _pooled(quality: Quality, name: str) -> float:
    """The cosine of an output's embeddings; 0 where it has none."""
    found = quality.get("embeddings", {}).get(name)
    return 0.0 if found is None else float(found["cosine"])


def _unsure(entry: Mapping[str, Any]) -> str:
    if entry["sqnr_db"] is None:
        varies = "does not vary over the held-out samples"
    else:
        varies = f"varies by {entry['variation']:.2%} of its size over the held-out samples"
    return f"{varies}, too little to tell how well the bundle follows it"


def part(entry: Mapping[str, Any]) -> str:
    """Which part of an output its figure is of, where it has several."""
    worst = entry.get("worst")
    if worst is None or worst["sqnr_db"] != entry["sqnr_db"]:
        return ""
    return f" at {worst['slice']}"


def detections_text(found: Mapping[str, Any]) -> str:
    if found["ap50"] is None:
        return (
            f"detections cannot be compared: the float model finds {found['float']} "
            f"in the held-out samples, of {LEAST_FOUND} that are needed"
        )
    return (
        f"detections AP@50 {found['ap50']:.3f}, mean of classes {found['map50']:.3f}, "
        f"recall {found['recall']:.2f}: "
        f"{found['bundle']} boxes beside {found['float']} of the float model"
    )


def labelled_text(found: Mapping[str, Any]) -> str:
    """Both models against labels, beside each other."""
    figures = []
    for key, name in (("top1", "top-1"), ("top5", "top-5"), ("map50", "mAP@50")):
        if key in found["float"]:
            ours, theirs = found["bundle"][key], found["float"][key]
            figures.append(f"{name} {ours:.3f} of the bundle, {theirs:.3f} of the float model")
    count = found["pictures"]
    pictures = "picture" if count == 1 else "pictures"
    objects = f" ({found['labels']} objects)" if "map50" in found["float"] else ""
    return f"By labels, {count} {pictures}{objects}: {'; '.join(figures)}."


def equal_text(entry: Mapping[str, Any]) -> str:
    return f"{entry['equal']:.1%} of its values are the same as in float"


def classes_text(entry: Mapping[str, Any]) -> str:
    same = f"the same class in {entry['top1_agreement']:.0%}"
    if "top5_agreement" not in entry:
        return same
    return f"{same}, and among the first five in {entry['top5_agreement']:.0%}"


def text_text(found: Mapping[str, Any]) -> str:
    return (
        f"{found['equal']} of {found['lines']} texts are the same, "
        f"{found['character_error']:.1%} of characters wrong"
    )


def decisions_text(found: Mapping[str, Any]) -> str:
    share = found["differing"] / found["steps"]
    return f"{found['differing']} of {found['steps']} steps are decided otherwise ({share:.2%})"


def mask_text(found: float) -> str:
    return f"masks overlap by {found:.0%}"


def distinct_text(found: Mapping[str, Any]) -> str:
    values = "one value" if found["bundle"] == 1 else f"{found['bundle']} values"
    return f"{found['slice']} takes {values} where float has {found['float']}"


def advice(manifest: Mapping[str, Any], kind: str, node: str | None) -> str:
    """What to try, the most promising first.

    `kind` is that of a finding, `node` the source node whose result its scale suits least.
    """
    quality = manifest["quality"]
    if not quality["segments"]:
        return "nothing runs on an Edge TPU: see with --check-passes which rewrite is to blame"
    if quality["calibration"] == "random":
        return "give real samples with --calibration: random ones say little"
    if kind == "unsure":
        return f"give samples with --calibration that show more, at least {FEW_SAMPLES}"
    tries = []
    if node is not None:
        tries.append(f"--pin '{node}=host'")
    if quality["calibration_samples"] < FEW_SAMPLES:
        tries.append(_more_samples(quality))
    if manifest["prediction"]["place"] == "tpu":
        tries.append("--place auto")
    if quality["observer"] != "mse":
        tries.append("--observer mse")
    tries.append("--keep-float 10")
    return f"try {', '.join(tries[:-1])} or {tries[-1]}"


def _more_samples(quality: Quality) -> str:
    used = quality["calibration_samples"]
    held_out = quality["samples"]
    # A single sample serves both.
    if used == 1:
        return "more samples"
    return f"more samples than {used + held_out} ({used} set the ranges, {held_out} were held out)"
