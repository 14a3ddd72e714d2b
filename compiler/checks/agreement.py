"""Whether what a user reads off a model's outputs is the same in the bundle: classes, text, masks,
detections.

The kind of an output is told from its shape, its values and the layer that makes it. Where that
leaves a doubt nothing is said: agreement on something that is not there would be worse than none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from compiler.checks.difference import Channels
from compiler.graph import attribute_of, is_constant, shape_of
from compiler.runtime import detections
from compiler.runtime.detections import Detections, Head
from compiler.runtime.recognition import recognise

Arrays = Mapping[str, np.ndarray]

# Sizes of ImageNet's label sets: one score for each is a classifier, whatever it is called.
IMAGENET = {1000, 1001, 21841, 21842, 21843}
CLASS_NAMES = ("logit", "prob", "class", "score", "label", "softmax")
# Operators between a layer of scores and an output that leave the scores as they are.
SHAPE_ONLY = ("Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose")
# Readers of text: symbols and frames, at the least; the blank is the first or the last symbol.
LEAST_SYMBOLS, LEAST_FRAMES = 11, 8
# A pixel belongs to a mask above this probability, and a mask has so many pixels at least.
IN_MASK, LEAST_MASK = 0.5, 64
MATCH = 0.5  # intersection over union
# Precision over recall wants detections that a user would not see too.
LEAST_RANKED = 0.05
LEAST_FOUND = 5


@dataclass
class Classes:
    """The largest score of each row along an axis; rows that an attention mask hides do not count."""

    output: str
    axis: int
    same: int = 0
    rows: int = 0

    def add(self, got: Arrays, want: Arrays, sample: Arrays) -> None:
        ours, theirs = (np.asarray(a[self.output]).argmax(axis=self.axis) for a in (got, want))
        mask = sample.get("attention_mask")
        shown = np.ones(theirs.shape, bool)
        if mask is not None and mask.shape == theirs.shape:
            shown = mask != 0
        self.same += int(((ours == theirs) & shown).sum())
        self.rows += int(shown.sum())

    def report(self) -> dict[str, Any]:
        return {"top1_agreement": round(self.same / self.rows, 4)} if self.rows else {}


@dataclass
class Text:
    """Greedy decoding of connectionist temporal classification (CTC): repeats collapse, blanks fall
    out."""

    output: str
    blank: int
    lines: int = 0
    equal: int = 0
    symbols: int = 0
    wrong: int = 0

    def add(self, got: Arrays, want: Arrays, sample: Arrays) -> None:
        ours, theirs = (
            collapsed(frames(a[self.output]).argmax(axis=1), self.blank) for a in (got, want)
        )
        self.lines += 1
        self.equal += ours == theirs
        self.symbols += len(theirs)
        self.wrong += edits(ours, theirs)

    def report(self) -> dict[str, Any]:
        error = round(self.wrong / max(self.symbols, 1), 4)
        return {"text": {"lines": self.lines, "equal": self.equal, "character_error": error}}


@dataclass
class Mask:
    """Pixels of a probability map above one half: intersection over union of the bundle's and the
    float model's."""

    output: str
    common: int = 0
    either: int = 0
    wanted: int = 0

    def add(self, got: Arrays, want: Arrays, sample: Arrays) -> None:
        ours, theirs = (np.asarray(a[self.output]) > IN_MASK for a in (got, want))
        self.common += int((ours & theirs).sum())
        self.either += int((ours | theirs).sum())
        self.wanted += int(theirs.sum())

    def report(self) -> dict[str, Any]:
        return (
            {"mask_iou": round(self.common / self.either, 4)} if self.wanted >= LEAST_MASK else {}
        )


@dataclass
class Boxes:
    """Detections of the bundle with those of the float model as the truth."""

    head: Head
    found: list[Detections] = field(default_factory=list)
    truth: list[Detections] = field(default_factory=list)

    def add(self, got: Arrays, want: Arrays, sample: Arrays) -> None:
        self.found.append(detections.detect(self.head, got, LEAST_RANKED))
        self.truth.append(detections.detect(self.head, want))

    def report(self) -> dict[str, Any]:
        """`recall` and `ap50` are null where the float model finds too little to tell."""
        total = sum(map(len, self.truth))
        shown = [one.above(detections.LEAST_SCORE) for one in self.found]
        entry: dict[str, Any] = {
            "outputs": list(self.head.outputs),
            "float": total,
            "bundle": sum(map(len, shown)),
        }
        if total < LEAST_FOUND:
            return entry | {"recall": None, "ap50": None}
        hits = sum(
            int(matches(one, true).sum()) for one, true in zip(shown, self.truth, strict=True)
        )
        precision = average_precision(self.found, self.truth)
        return entry | {"recall": round(hits / total, 4), "ap50": round(precision, 4)}


Reading = Classes | Text | Mask | Boxes
"""Compares what one kind of output says, sample by sample."""


def readings(
    layers: Mapping[str, int], results: Sequence[Arrays], samples: Sequence[Arrays]
) -> list[Reading]:
    """What can be read off the outputs of a float model, from what it gives for `samples`.

    `layers` is what `scored` finds in the model before any rewriting; scores that are no
    probabilities need it.
    """
    if not results:
        return []
    head = _head(results, samples)
    if head is not None:
        return [Boxes(head)]
    from_numbers = all(array.dtype.kind == "f" for array in samples[0].values())
    found: list[Reading] = []
    for name, first in results[0].items():
        shown = [result[name] for result in results]
        if not isinstance(first, np.ndarray) or first.dtype.kind != "f" or not first.size:
            continue
        if any(a.shape != first.shape or not np.isfinite(a).all() for a in shown):
            continue
        reading = _reading(name, shown, layers.get(name), from_numbers)
        if reading is None and _is_map(first.shape, samples[0], shown):
            reading = Mask(name)
        if reading is not None:
            found.append(reading)
    return found


def _reading(
    name: str, shown: list[np.ndarray], scores: int | None, from_numbers: bool
) -> Reading | None:
    """Classes or text; `scores` is how many scores a linear layer gives there."""
    axis = class_axis(shown[0].shape)
    if axis is None:
        return None
    size = shown[0].shape[axis]
    certain = all(_is_distribution(array, axis) for array in shown)
    if not certain and scores != size:
        return None
    blank = _blank(shown) if from_numbers else None
    if blank is not None:
        return Text(name, blank)
    named = any(word in name.lower() for word in CLASS_NAMES) or size in IMAGENET
    return Classes(name, axis) if certain or named else None


def known_channels(read: Sequence[Reading]) -> dict[str, Channels]:
    """The channels of each output whose kind is known."""
    found: dict[str, Channels] = {}
    for reading in read:
        if isinstance(reading, Boxes):
            channels = Channels(reading.head.axis, reading.head.splits)
            found |= dict.fromkeys(reading.head.outputs, channels)
        elif isinstance(reading, Text):
            found[reading.output] = Channels(-1)
        elif isinstance(reading, Classes):
            found[reading.output] = Channels(reading.axis)
    return found


def class_axis(shape: tuple[int, ...]) -> int | None:
    """The axis that classes would be along: the only wide one, else the last of three, the second
    of pictures."""
    wide = [axis for axis, size in enumerate(shape) if size > 1]
    if len(wide) == 1:
        return wide[0]
    if len(wide) == 2 and len(shape) <= 3 and wide[-1] == len(shape) - 1:
        return wide[-1]
    if len(shape) == 4 and len(wide) == 3 and wide[0] == 1:
        return 1
    return None


def _is_distribution(array: np.ndarray, axis: int) -> bool:
    """Whether each row is probabilities that sum up to one, or their logarithms."""
    values = array.astype(np.float64)
    if values.max(initial=-1) <= 0:
        values = np.exp(values)
    if values.min(initial=0) < -1e-4 or values.max(initial=0) > 1 + 1e-3:
        return False
    return bool(np.abs(values.sum(axis=axis) - 1).max(initial=0) < 1e-2)


def frames(array: np.ndarray) -> np.ndarray:
    """[T, C] of [1, T, C] or [T, 1, C]."""
    return np.asarray(array).reshape(-1, array.shape[-1])


def _blank(shown: list[np.ndarray]) -> int | None:
    """The blank of a reader of text: the first or last symbol, which the float model gives more
    often than any other, in front of and behind what it reads."""
    shape = shown[0].shape
    if (
        len(shape) != 3
        or min(shape[:2]) != 1
        or shape[-1] < LEAST_SYMBOLS
        or max(shape[:2]) < LEAST_FRAMES
    ):
        return None
    paths = [frames(array).argmax(axis=1) for array in shown]
    counts = np.bincount(np.concatenate(paths), minlength=shape[-1])
    blank = int(counts.argmax())
    read = [collapsed(path, blank) for path in paths]
    # Three symbols of which two differ, at the least: a path of blanks alone reads nothing.
    if blank not in (0, shape[-1] - 1) or len({symbol for line in read for symbol in line}) < 3:
        return None
    return blank


def _is_map(shape: tuple[int, ...], sample: Arrays, shown: list[np.ndarray]) -> bool:
    """A probability for each pixel of the picture that goes in."""
    size = _picture(sample)
    if len(shape) != 4 or size is None or shape not in ((1, 1, *size), (1, *size, 1)):
        return False
    return all(array.min() >= 0 and array.max() <= 1 for array in shown)


def _picture(sample: Arrays) -> tuple[int, int] | None:
    """(height, width) of the only input that is a picture."""
    pictures = [a.shape for a in sample.values() if a.ndim == 4 and a.dtype.kind in "fu"]
    if len(pictures) != 1:
        return None
    _, *rest = pictures[0]
    if rest[0] in (1, 3):
        return rest[1], rest[2]
    return (rest[0], rest[1]) if rest[2] in (1, 3) else None


def _head(results: Sequence[Arrays], samples: Sequence[Arrays]) -> Head | None:
    size = _picture(samples[0])
    same = all(r.keys() == results[0].keys() for r in results)
    if (
        size is None
        or not same
        or not all(isinstance(a, np.ndarray) for r in results for a in r.values())
    ):
        return None
    return recognise(results, size)


def scored(graph: ir.Graph) -> dict[str, int]:
    """How many outputs the linear layer has that makes an output of the graph, by its name."""
    found = {str(value.name): _layer_outputs(value) for value in graph.outputs}
    return {name: count for name, count in found.items() if count is not None}


def _layer_outputs(value: ir.Value) -> int | None:
    node = value.producer()
    while node is not None and (node.op_type in SHAPE_ONLY or _adds_constant(node)):
        moved = next((v for v in node.inputs if v is not None and not is_constant(v)), None)
        node = moved.producer() if moved is not None else None
    if (
        node is None
        or node.op_type not in ("Gemm", "MatMul", "Conv")
        or not is_constant(node.inputs[1])
    ):
        return None
    shape = shape_of(node.inputs[1])
    if node.op_type == "Conv":
        return shape[0]
    return shape[0] if node.op_type == "Gemm" and attribute_of(node, "transB", 0) else shape[-1]


def _adds_constant(node: ir.Node) -> bool:
    return node.op_type == "Add" and sum(is_constant(v) for v in node.inputs) == 1


def collapsed(path: np.ndarray, blank: int) -> list[int]:
    """The symbols of a path [T]: repeats as one, without blanks."""
    starts = np.flatnonzero(np.diff(path, prepend=-1))
    return [int(symbol) for symbol in path[starts] if symbol != blank]


def edits(got: Sequence[int], want: Sequence[int]) -> int:
    """Insertions, deletions and replacements between two sequences (Levenshtein)."""
    row = list(range(len(want) + 1))
    for index, symbol in enumerate(got, 1):
        before, row[0] = row[0], index
        for place, other in enumerate(want, 1):
            replaced = before + (symbol != other)
            before = row[place]
            row[place] = min(replaced, before + 1, row[place - 1] + 1)
    return row[-1]


def matches(found: Detections, truth: Detections) -> np.ndarray:
    """Which of `found`, best first, are the first to meet a true box of their class [n]."""
    free = np.ones(len(truth), bool)
    hit = np.zeros(len(found), bool)
    for index in range(len(found)):
        overlap = detections.overlaps(found.boxes[index], truth.boxes)
        overlap = np.where(free & (truth.classes == found.classes[index]), overlap, 0)
        if len(overlap) and overlap.max() >= MATCH:
            free[overlap.argmax()] = False
            hit[index] = True
    return hit


def average_precision(found: Sequence[Detections], truth: Sequence[Detections]) -> float:
    """The area below precision over recall at an overlap of 0.5, all images and classes in one list
    by score."""
    total = sum(map(len, truth))
    hits = np.concatenate([matches(one, true) for one, true in zip(found, truth, strict=True)])
    scores = np.concatenate([one.scores for one in found])
    if not total or not len(hits):
        return 0.0
    order = np.argsort(-scores, kind="stable")
    right = np.cumsum(hits[order])
    precision = right / np.arange(1, len(right) + 1)
    # At each recall, the best precision at that recall or a higher one.
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    steps = np.diff(right / total, prepend=0)
    return float((precision * steps).sum())
