"""Runs a bundle against the float model and measures how far apart they are, over all and segment
by segment."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, cast

import numpy as np

from compiler import files
from compiler.checks.agreement import known_channels, readings
from compiler.checks.channels import slice_text
from compiler.checks.difference import Difference
from compiler.checks.equality import Equality, tensors_of
from compiler.checks.readings import Boxes, Reading
from compiler.checks.segments import Arrays, Boundaries, float_tensors, outputs_in_float
from compiler.graph import origin_of
from compiler.partition import Program
from compiler.quantize.samples import Sample
from compiler.runtime import Bundle, Pipeline
from compiler.runtime.manifest import (
    DetectionQualityEntry,
    EmbeddingQualityEntry,
    MeasuredEntry,
    SegmentQualityEntry,
    TaskEntry,
)
from compiler.runtime.state import State

# Of an output, at most so many values are counted: two arrays of 4 MiB.
MOST_VALUES = 1 << 20
# An output that takes at most so few different values, ...
FEW_VALUES = 32
# ... where float has at least so many times more, has lost what it says.
MANY_MORE = 8


@dataclass(frozen=True)
class HeldOut:
    """What a bundle is verified with.

    `samples` were not calibrated on; `expected` is what the float model gives for them; `layers` is
    what `agreement.scored` finds in the model as its user wrote it, `rounded` what
    `agreement.rounded` does; `told` is what its file says of its outputs; `starts` are the numbers
    of the samples that begin sequences, where they are steps of such.
    """

    samples: Sequence[Sample]
    expected: Sequence[Mapping[str, Any]]
    layers: Mapping[str, int] = field(default_factory=dict)
    rounded: Set[str] = frozenset()
    told: TaskEntry | None = None
    starts: Sequence[int] = ()

    def readings(self) -> list[Reading]:
        """What can be read off the outputs."""
        return readings(self.layers, self.expected, self.samples, self.told, bool(self.starts))


def verify(
    bundle: Bundle, program: Program, held_out: HeldOut, progress: Callable[[], None] = lambda: None
) -> MeasuredEntry:
    """The figures of each output, and of each TPU segment: fed with the float model's tensors (its
    own loss), and in the pipeline (the loss of all before it too).

    The float model and the bundle are not in memory at the same time: what the one gives at the
    boundaries of segments waits on disk for the other. `progress` is called after each sample.

    Sequences run in a closed loop: behind its first step, the bundle goes on from its own state.
    """
    outputs = Outputs(held_out)
    state = State.of(bundle.manifest)
    own: dict[int, _Differences] = defaultdict(_Differences)
    cumulative: dict[int, _Differences] = defaultdict(_Differences)
    with files.temporary("verify") as folder:
        boundaries = Boundaries(program, folder.path)
        boundaries.save(held_out.samples)
        pipeline = Pipeline(bundle)
        pairs = zip(held_out.samples, held_out.expected, strict=True)
        for number, (sample, wanted) in enumerate(pairs):
            given = sample
            if held_out.starts and number not in held_out.starts:
                given = state.following(sample)
            reached: dict[str, np.ndarray] = dict(pipeline.check_inputs(given))
            for index, segment in enumerate(pipeline.segments):
                pipeline.advance(index, reached)
                if segment["device"] != "tpu":
                    continue
                floats = {
                    tensor["name"]: boundaries.load(number, tensor["name"], sample)
                    for tensor in [*segment["inputs"], *segment["outputs"]]
                }
                alone = pipeline.run_segment(index, floats)
                own[index].add(outputs_in_float(segment, alone), floats)
                cumulative[index].add(outputs_in_float(segment, reached), floats)
            results = pipeline.results(reached)
            outputs.add(results, wanted, sample)
            state.take(results)
            progress()
    segments = {str(index): _segment_entry(own[index], cumulative[index]) for index in sorted(own)}
    measured: MeasuredEntry = {
        "samples": len(held_out.samples),
        **outputs.report(),
        "segments": segments,
    }
    if held_out.starts:
        measured["sequences"] = len(held_out.starts)
    return measured


def worst_segment(quality: Mapping[str, Any]) -> tuple[str, float] | None:
    """(index, SQNR) of the TPU segment that is least accurate by itself, of those where the
    samples vary enough to tell."""
    measured = {}
    for index, segment in quality["segments"].items():
        if segment["sqnr_db"] is not None:
            measured[index] = segment["sqnr_db"]
    return _lowest(measured)


def worst_node(program: Program, segment: int, samples: Iterable[Sample]) -> str | None:
    """The source node of a segment whose result its scale suits least: float values, rounded to the
    scale alone."""
    (part,) = (found for found in program.plan.segments if found.index == segment)
    values = {}
    for node in part.nodes:
        for value in node.outputs:
            if str(value.name) in program.quants:
                values[str(value.name)] = value
    differences = _Differences()
    for _, tensors in float_tensors(program.model, values, samples):
        rounded = {}
        for name, array in tensors.items():
            quant = program.quants[name]
            rounded[name] = quant.dequantize(quant.quantize(array))
        differences.add(rounded, tensors)
    worst = _lowest(differences.sqnr_db())
    if worst is None:
        return None
    producer = values[worst[0]].producer()
    return None if producer is None else origin_of(producer)


def _lowest(figures: Mapping[str, float]) -> tuple[str, float] | None:
    """The name of the lowest figure, the first of equals, and the figure."""
    if not figures:
        return None
    name = min(figures, key=lambda name: figures[name])
    return name, figures[name]


class _Differences:
    """Differences of several tensors, by name."""

    def __init__(self) -> None:
        self._of: dict[str, Difference] = {}

    def add(self, got: Arrays, want: Arrays) -> None:
        """Add one sample of the tensors in `got`."""
        for name, array in got.items():
            self._of.setdefault(name, Difference()).add(array, want[name])

    def sqnr_db(self) -> dict[str, float]:
        """Of the tensors that vary enough to tell."""
        figures = {name: difference.sqnr_db for name, difference in self._of.items()}
        return {name: db for name, db in figures.items() if db is not None}

    def lowest_sqnr_db(self) -> float | None:
        return min(self.sqnr_db().values(), default=None)

    def lowest_plain_sqnr_db(self) -> float:
        return min(difference.plain_sqnr_db for difference in self._of.values())


def _segment_entry(own: _Differences, cumulative: _Differences) -> SegmentQualityEntry:
    """The worst output of a segment counts."""
    return {
        "sqnr_db": own.lowest_sqnr_db(),
        "cumulative_sqnr_db": cumulative.lowest_sqnr_db(),
        "cumulative_plain_sqnr_db": cumulative.lowest_plain_sqnr_db(),
    }


class Embeddings:
    """Compares sentence embeddings: the mean of states [1, S, K] over a sample's own tokens, as
    vectors of length 1."""

    def __init__(self) -> None:
        self.got: list[np.ndarray] = []
        self.want: list[np.ndarray] = []

    def add(self, got: np.ndarray, want: np.ndarray, mask: np.ndarray) -> None:
        """Add the states of one sample; `mask` [1, S] is 0 for padding."""
        self.got.append(_embedding(got, mask))
        self.want.append(_embedding(want, mask))

    def report(self) -> EmbeddingQualityEntry:
        """Cosine with the float model's embeddings, and Spearman's correlation of the similarities
        of all pairs of samples, which is what a search is made of."""
        pairs = zip(self.got, self.want, strict=True)
        cosines = [float(got @ want) for got, want in pairs]
        entry: EmbeddingQualityEntry = {
            "cosine": round(float(np.mean(cosines)), 6),
            "least_cosine": round(min(cosines), 6),
        }
        ours = _similarity_ranks(self.got)
        theirs = _similarity_ranks(self.want)
        # A single pair has no order.
        if len(ours) > 1:
            entry["spearman"] = round(float(np.corrcoef(ours, theirs)[0, 1]), 6)
        return entry


def _embedding(states: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The unit vector [K] of states [1, S, K]."""
    weights = mask.reshape(-1, 1).astype(np.float64)
    vector = (states[0] * weights).sum(axis=0)
    length = float(np.linalg.norm(vector))
    unit: np.ndarray = vector / max(length, 1e-30)
    return unit


def _similarity_ranks(vectors: Sequence[np.ndarray]) -> np.ndarray:
    """Ranks of the similarities of all pairs of unit vectors [count (count - 1) / 2]."""
    matrix = np.array(vectors)
    similarities = (matrix @ matrix.T)[np.triu_indices(len(matrix), 1)]
    return np.argsort(np.argsort(similarities)).astype(np.float64)


class Values:
    """Counts how many different values an output takes, over as many samples as fit
    `MOST_VALUES`."""

    def __init__(self) -> None:
        self._got: list[np.ndarray] = []
        self._want: list[np.ndarray] = []
        self._room = MOST_VALUES

    def add(self, got: np.ndarray, want: np.ndarray) -> None:
        if got.shape != want.shape or want.size > self._room:
            return
        self._room -= want.size
        self._got.append(np.atleast_1d(got))
        self._want.append(np.atleast_1d(want))

    def report(self, difference: Difference) -> dict[str, Any]:
        """`distinct` of the part with the fewest, where float has many more than the bundle."""
        parts = difference.parts()
        if parts is None or not self._got:
            return {}
        axis, channels = parts
        got = np.stack(self._got)
        want = np.stack(self._want)
        lost = []
        for part in channels:
            # Axis 0 counts samples.
            few = len(np.unique(got.take(part, axis + 1)))
            many = len(np.unique(want.take(part, axis + 1)))
            if few <= FEW_VALUES and many >= MANY_MORE * few:
                lost.append((few, many, slice_text(axis, part)))
        if not lost:
            return {}
        few, many, where = min(lost)
        return {"distinct": {"slice": where, "bundle": few, "float": many}}


class Outputs:
    """Compares the outputs of a model: their figures, and what a user reads off them."""

    def __init__(self, held_out: HeldOut) -> None:
        self._read = held_out.readings()
        self._known = known_channels(self._read)
        self._floats = _float_outputs(held_out.expected)
        self._rounded = held_out.rounded
        self._differences: dict[str, Difference] = {}
        self._equalities: dict[str, Equality] = defaultdict(Equality)
        self._values: dict[str, Values] = defaultdict(Values)
        self._embeddings: dict[str, Embeddings] = defaultdict(Embeddings)

    def add(self, results: Mapping[str, Any], wanted: Mapping[str, Any], sample: Sample) -> None:
        for name, result in results.items():
            if name not in self._floats:
                self._equalities[name].add(result, wanted[name])
            if name not in self._floats and name not in self._rounded:
                continue
            if isinstance(wanted[name], list):
                self._add_sequence(name, result, wanted[name])
            else:
                self._add_numbers(name, np.asarray(result), np.asarray(wanted[name]), sample)
        for reading in self._read:
            reading.add(results, wanted, sample)

    def _difference(self, name: str) -> Difference:
        if name not in self._differences:
            self._differences[name] = Difference(self._known.get(name))
        return self._differences[name]

    def _add_sequence(self, name: str, got: Any, want: Any) -> None:
        """Add each tensor as a sample; one that only one sequence has is held against zeros."""
        difference = self._difference(name)
        for ours, theirs in zip_longest(tensors_of(got), tensors_of(want)):
            if ours is None:
                difference.add(np.zeros_like(theirs), theirs)
            elif theirs is None:
                difference.add(ours, np.zeros_like(ours))
            else:
                difference.add(ours, theirs)

    def _add_numbers(self, name: str, got: np.ndarray, want: np.ndarray, sample: Sample) -> None:
        self._difference(name).add(got, want)
        self._values[name].add(got, want)
        mask = sample.get("attention_mask")
        # States [1, S, K] of a text of S tokens.
        if mask is None or mask.shape != (1, mask.size) or got.ndim != 3:
            return
        if got.shape[:2] == mask.shape:
            self._embeddings[name].add(got, want, mask)

    def report(self) -> MeasuredEntry:
        """`outputs`, and `embeddings` and `detections` of models that give such."""
        outputs: dict[str, Any] = {}
        for name, difference in self._differences.items():
            outputs[name] = difference.report() | self._values[name].report(difference)
        for name, equality in self._equalities.items():
            outputs[name] = outputs.get(name, {}) | equality.report()
        found: MeasuredEntry = {"outputs": outputs}
        if self._embeddings:
            found["embeddings"] = {name: e.report() for name, e in self._embeddings.items()}
        for reading in self._read:
            figures = reading.report()
            if isinstance(reading, Boxes):
                found["detections"] = cast(DetectionQualityEntry, figures)
            else:
                outputs[reading.output] |= figures
        return found


def _float_outputs(expected: Sequence[Mapping[str, Any]]) -> set[str]:
    """Names of the outputs that hold floats, in tensors or sequences of them; others hold integers,
    booleans or text."""
    found = set()
    for results in expected:
        for name, result in results.items():
            # An empty sequence does not tell; other samples may.
            if any(tensor.dtype.kind == "f" for tensor in tensors_of(result)):
                found.add(name)
    return found
