"""What a bundle's results have to reach: figures of `--quality`, and the default by kind of model.

A figure is one that verification gives, of the worst output. Of classes and text a few samples tell
only so much: one row more or less does not decide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compiler.checks.readings import Boxes, Classes, Decisions, Mask, Reading, Text
from compiler.errors import OptionError

Quality = Mapping[str, Any]

# How much better results on calibration samples have to be, so that others reach a goal too: in dB,
# and as a share of what may be wrong.
ROOM_DB = 1.0
ROOM = 0.6
# What float32 reaches anywhere: in dB, and as a share.
FLOAT_DB = 100.0
FLOAT_SHARE = 1 - 1e-6


def _sqnr(quality: Quality) -> float | None:
    found = [entry.get("sqnr_db") for entry in quality["outputs"].values()]
    return min((db for db in found if db is not None), default=None)


def _cosine(quality: Quality) -> float | None:
    if "embeddings" in quality:
        cosines: list[float] = [entry["cosine"] for entry in quality["embeddings"].values()]
        return min(cosines)
    return _least(quality, "cosine")


def _least(quality: Quality, key: str) -> float | None:
    found = [entry[key] for entry in quality["outputs"].values() if key in entry]
    return min(found, default=None)


def _divergence(quality: Quality) -> float | None:
    found = [e["divergence"] for e in quality["outputs"].values() if "divergence" in e]
    return max(found, default=None)


def _rows(quality: Quality) -> int:
    """The least number of rows that classes of an output were read off."""
    return int(_least(quality, "rows") or 0)


def _characters(quality: Quality) -> float | None:
    texts = [entry["text"] for entry in quality["outputs"].values() if "text" in entry]
    return max((text["character_error"] for text in texts), default=None)


def _decisions(quality: Quality) -> float | None:
    """The share of steps that are decided alike, of the worst output."""
    found = [e["decisions"] for e in quality["outputs"].values() if "decisions" in e]
    return min((1 - d["differing"] / d["steps"] for d in found), default=None)


def _boxes(quality: Quality, key: str) -> float | None:
    found: Mapping[str, float | None] | None = quality.get("detections")
    return None if found is None else found[key]


@dataclass(frozen=True)
class Figure:
    """A figure that a goal may name: how it is read off what was measured, whether more of it is
    better, and whether it is a share of rows."""

    read: Callable[[Quality], float | None]
    more_is_better: bool = True
    counts_rows: bool = False


FIGURES: Mapping[str, Figure] = {
    "sqnr": Figure(_sqnr),
    "cosine": Figure(_cosine),
    "top1": Figure(lambda quality: _least(quality, "top1_agreement"), counts_rows=True),
    "kl": Figure(_divergence, more_is_better=False),
    "ap50": Figure(lambda quality: _boxes(quality, "ap50")),
    "map50": Figure(lambda quality: _boxes(quality, "map50")),
    "recall": Figure(lambda quality: _boxes(quality, "recall")),
    "iou": Figure(lambda quality: _least(quality, "mask_iou")),
    "decisions": Figure(_decisions),
    "cer": Figure(_characters, more_is_better=False),
}


@dataclass(frozen=True)
class Goal:
    """A figure and what it has to be, at least or at most."""

    name: str
    value: float

    @property
    def figure(self) -> Figure:
        return FIGURES[self.name]

    def measured(self, quality: Quality) -> float | None:
        """The figure of what was measured; None where it cannot be told."""
        return self.figure.read(quality)

    def is_met(self, quality: Quality) -> bool:
        """Whether the figure is reached. Of rows that are counted one may always be wrong."""
        found = self.measured(quality)
        if found is None:
            return False
        if not self.figure.more_is_better:
            return found <= self.value
        if self.figure.counts_rows:
            rows = _rows(quality)
            allowed = max(1, math.floor((1 - self.value) * rows))
            return round((1 - found) * rows) <= allowed
        return found >= self.value

    def tightened(self) -> Goal:
        """A goal that leaves room for what other samples show."""
        if self.name == "sqnr":
            return Goal(self.name, self.value + ROOM_DB)
        if self.figure.more_is_better:
            return Goal(self.name, 1 - ROOM * (1 - self.value))
        return Goal(self.name, ROOM * self.value)

    @property
    def is_below_float(self) -> bool:
        """Whether float32 is sure to reach it, whose own roundings differ between runtimes."""
        if self.name == "sqnr":
            return self.value <= FLOAT_DB
        return not self.figure.more_is_better or self.value <= FLOAT_SHARE

    def __str__(self) -> str:
        return f"{self.name}={self.value:g}"


def require_measured(goal: Goal, quality: Quality) -> None:
    """Raises OptionError for a figure that results do not have."""
    if goal.measured(quality) is not None:
        return
    known = [name for name, figure in FIGURES.items() if figure.read(quality) is not None]
    others = f": {', '.join(known)} can" if known else ""
    raise OptionError(f"{goal}: cannot be measured of these results{others}", "quality")


# What each kind of result has to reach where the user says nothing.
_DEFAULTS: Mapping[type, tuple[str, float]] = {
    Boxes: ("ap50", 0.98),
    Text: ("cer", 0.01),
    Mask: ("iou", 0.985),
    Classes: ("top1", 0.99),
    Decisions: ("decisions", 0.995),
}
_EMBEDDINGS = ("cosine", 0.995)
_NUMBERS = ("sqnr", 20.0)


def default_goal(readings: Sequence[Reading], quality: Quality) -> Goal | None:
    """The goal for a model of whose outputs this can be read; None where nothing can be judged."""
    wanted = [Goal(*_DEFAULTS[type(reading)]) for reading in readings]
    if "embeddings" in quality:
        wanted.append(Goal(*_EMBEDDINGS))
    wanted.append(Goal(*_NUMBERS))
    for goal in wanted:
        if goal.measured(quality) is not None:
            return goal
    return None
