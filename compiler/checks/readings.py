"""What a user reads off the outputs of a model, and how much of it is the same in a bundle:
classes, text, decisions, masks, detections.

Each reading takes the outputs of the bundle (`got`) and of the float model (`want`) sample by
sample, and reports its figures as the manifest has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from compiler.runtime import detections
from compiler.runtime.detections import Detections, Head

Arrays = Mapping[str, np.ndarray]

# Probabilities of a row that are read as such add up to 1 but for this; of one that is 0 the
# logarithm is that of the least.
SUM_TOLERANCE = 0.02
LEAST_PROBABILITY = 1e-9
# A class is near where it is among so many of the largest scores; of fewer classes it says nothing.
NEAR = 5
# A pixel belongs to a mask above this probability.
IN_MASK = 0.5
# A step is answered with yes above this probability.
DECIDED = 0.5
# With fewer pixels in all masks of the float model, one pixel more or less would count too much.
LEAST_MASK = 64
# Boxes show the same object from this intersection over union on, as in PASCAL VOC's AP@50.
MATCH = 0.5
# Average precision ranks detections by score, so it wants those too that a user would not see.
LEAST_RANKED = 0.05
# With fewer detections of the float model, recall and precision say nothing.
LEAST_FOUND = 5


@dataclass
class Classes:
    """The largest score of each row along `axis`.

    Rows that an attention mask hides do not count.
    """

    output: str
    axis: int
    same: int = 0
    near: int = 0
    rows: int = 0
    classes: int = 0
    divergence: float = 0.0

    def add(self, got: Arrays, want: Arrays, sample: Arrays) -> None:
        scores = np.moveaxis(np.asarray(got[self.output]), self.axis, -1)
        ours = scores.argmax(axis=-1)
        theirs = np.asarray(want[self.output]).argmax(axis=self.axis)
        wanted = np.moveaxis(np.asarray(want[self.output]), self.axis, -1)
        is_shown = np.ones(theirs.shape, bool)
        mask = sample.get("attention_mask")
        if mask is not None and mask.shape == theirs.shape:
            is_shown = mask != 0
        # How many classes score more than the float model's.
        its_score = np.take_along_axis(scores, theirs[..., None], axis=-1)
        above = (scores > its_score).sum(axis=-1)
        self.same += int(((ours == theirs) & is_shown).sum())
        self.near += int(((above < NEAR) & is_shown).sum())
        self.rows += int(is_shown.sum())
        self.classes = scores.shape[-1]
        self.divergence += float((_divergences(scores, wanted) * is_shown).sum())

    def report(self) -> dict[str, Any]:
        """`top1_agreement`: the share of rows of the same class; `divergence`: how far the
        distributions of a row are apart on average; `top5_agreement`: the share of rows where it is
        one of the bundle's five best."""
        if not self.rows:
            return {}
        entry = {
            "top1_agreement": round(self.same / self.rows, 4),
            "rows": self.rows,
            "divergence": round(max(self.divergence / self.rows, 0.0), 6),
        }
        if self.classes > 2 * NEAR:
            entry["top5_agreement"] = round(self.near / self.rows, 4)
        return entry


@dataclass
class Text:
    """The text of greedy decoding after connectionist temporal classification (CTC): the likeliest
    symbol of each frame, repeats as one, without `blank`s."""

    output: str
    blank: int
    lines: int = 0
    equal: int = 0
    symbols: int = 0
    wrong: int = 0

    def add(self, got: Arrays, want: Arrays, sample: Arrays) -> None:
        ours = collapsed(frames(got[self.output]).argmax(axis=1), self.blank)
        theirs = collapsed(frames(want[self.output]).argmax(axis=1), self.blank)
        self.lines += 1
        self.equal += ours == theirs
        self.symbols += len(theirs)
        self.wrong += edits(ours, theirs)

    def report(self) -> dict[str, Any]:
        """`character_error`: edits per symbol of the float model's text."""
        error = round(self.wrong / max(self.symbols, 1), 4)
        return {"text": {"lines": self.lines, "equal": self.equal, "character_error": error}}


@dataclass
class Decisions:
    """Whether the probability of each step is above one half, as of speech."""

    output: str
    steps: int = 0
    yes: int = 0
    differing: int = 0

    def add(self, got: Arrays, want: Arrays, sample: Arrays) -> None:
        ours = np.asarray(got[self.output]) > DECIDED
        theirs = np.asarray(want[self.output]) > DECIDED
        self.steps += theirs.size
        self.yes += int(theirs.sum())
        self.differing += int((ours != theirs).sum())

    def report(self) -> dict[str, Any]:
        counts = {"steps": self.steps, "yes": self.yes, "differing": self.differing}
        return {"decisions": counts}


@dataclass
class Mask:
    """Pixels of a probability map above one half.

    The figure is intersection over union with those of the float model.
    """

    output: str
    common: int = 0
    either: int = 0
    wanted: int = 0

    def add(self, got: Arrays, want: Arrays, sample: Arrays) -> None:
        ours = np.asarray(got[self.output]) > IN_MASK
        theirs = np.asarray(want[self.output]) > IN_MASK
        self.common += int((ours & theirs).sum())
        self.either += int((ours | theirs).sum())
        self.wanted += int(theirs.sum())

    def report(self) -> dict[str, Any]:
        if self.wanted < LEAST_MASK:
            return {}
        return {"mask_iou": round(self.common / self.either, 4)}


@dataclass
class Boxes:
    """Detections of the bundle, with those of the float model as the truth."""

    head: Head
    found: list[Detections] = field(default_factory=list)
    truth: list[Detections] = field(default_factory=list)

    def add(self, got: Arrays, want: Arrays, sample: Arrays) -> None:
        self.found.append(detections.detect(self.head, got, LEAST_RANKED))
        self.truth.append(detections.detect(self.head, want))

    def report(self) -> dict[str, Any]:
        """`recall`, `ap50` and `map50` are null where the float model finds too little to tell."""
        total = sum(len(image) for image in self.truth)
        shown = [image.above(detections.LEAST_SCORE) for image in self.found]
        entry: dict[str, Any] = {
            "outputs": list(self.head.outputs),
            "float": total,
            "bundle": sum(len(image) for image in shown),
        }
        if total < LEAST_FOUND:
            return entry | {"recall": None, "ap50": None, "map50": None}
        hits = 0
        for found, truth in zip(shown, self.truth, strict=True):
            hits += int(matches(found, truth).sum())
        return entry | {
            "recall": round(hits / total, 4),
            "ap50": round(average_precision(self.found, self.truth), 4),
            "map50": round(mean_average_precision(self.found, self.truth), 4),
        }


Reading = Classes | Text | Decisions | Mask | Boxes


def _divergences(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """The Kullback-Leibler divergence of rows of scores [..., C] from the float model's, in
    nats."""
    theirs = _log_distribution(want)
    ours = _log_distribution(got)
    found: np.ndarray = (np.exp(theirs) * (theirs - ours)).sum(axis=-1)
    return found


def _log_distribution(scores: np.ndarray) -> np.ndarray:
    """Logarithms of what scores [..., C] say of the classes: probabilities as they are, others by a
    softmax."""
    values = scores.astype(np.float64)
    sums = values.sum(axis=-1)
    if values.min(initial=0) >= 0 and np.abs(sums - 1).max(initial=0) < SUM_TOLERANCE:
        values = np.log(np.maximum(values, LEAST_PROBABILITY))
    values = values - values.max(axis=-1, keepdims=True)
    logarithms: np.ndarray = values - np.log(np.exp(values).sum(axis=-1, keepdims=True))
    return logarithms


def frames(array: np.ndarray) -> np.ndarray:
    """[T, C] of [1, T, C] or [T, 1, C]."""
    return np.asarray(array).reshape(-1, array.shape[-1])


def collapsed(path: np.ndarray, blank: int) -> list[int]:
    """The symbols of a path [T]: repeats as one, without blanks."""
    starts = np.flatnonzero(np.diff(path, prepend=-1))
    return [int(symbol) for symbol in path[starts] if symbol != blank]


def edits(got: Sequence[int], want: Sequence[int]) -> int:
    """Insertions, deletions and replacements between two sequences (Levenshtein)."""
    # Entry j of the row is the distance of the part of `got` read so far to want[:j].
    row = list(range(len(want) + 1))
    for index, symbol in enumerate(got, 1):
        diagonal = row[0]
        row[0] = index
        for place, other in enumerate(want, 1):
            replaced = diagonal + (symbol != other)
            diagonal = row[place]
            row[place] = min(replaced, diagonal + 1, row[place - 1] + 1)
    return row[-1]


def matches(found: Detections, truth: Detections) -> np.ndarray:
    """Which of `found`, best first, are the first to meet a true box of their class [n], bool."""
    is_free = np.ones(len(truth), bool)
    is_hit = np.zeros(len(found), bool)
    for index in range(len(found)):
        overlap = detections.overlaps(found.boxes[index], truth.boxes)
        is_candidate = is_free & (truth.classes == found.classes[index])
        overlap = np.where(is_candidate, overlap, 0)
        if len(overlap) and overlap.max() >= MATCH:
            is_free[overlap.argmax()] = False
            is_hit[index] = True
    return is_hit


def average_precision(found: Sequence[Detections], truth: Sequence[Detections]) -> float:
    """The area below precision over recall at an overlap of `MATCH`.

    Both have an entry per image. All images and classes go in one list, ordered by score.
    """
    total = sum(len(image) for image in truth)
    pairs = zip(found, truth, strict=True)
    hits = np.concatenate([matches(image, true) for image, true in pairs])
    scores = np.concatenate([image.scores for image in found])
    if not total or not len(hits):
        return 0.0
    order = np.argsort(-scores, kind="stable")
    hit_count = np.cumsum(hits[order])
    precision = hit_count / np.arange(1, len(hit_count) + 1)
    # At each recall, the best precision at that recall or a higher one.
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    recall_steps = np.diff(hit_count / total, prepend=0)
    return float((precision * recall_steps).sum())


def mean_average_precision(found: Sequence[Detections], truth: Sequence[Detections]) -> float:
    """The mean of the average precisions of each class that is in the truth."""
    classes = np.unique(np.concatenate([image.classes for image in truth]))
    precisions = []
    for number in classes:
        own = [image.chosen(np.flatnonzero(image.classes == number)) for image in found]
        true = [image.chosen(np.flatnonzero(image.classes == number)) for image in truth]
        precisions.append(average_precision(own, true))
    return float(np.mean(precisions)) if precisions else 0.0
