"""Runs a bundle against the float model and says how far apart they are, over all and segment by
segment."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from compiler import files
from compiler.checks.agreement import Boxes, known_channels, readings
from compiler.checks.difference import Difference, slice_text
from compiler.graph import origin_of
from compiler.graph.reference import Reference
from compiler.partition import Program
from compiler.quantize.calibrate import batches
from compiler.quantize.samples import Sample
from compiler.runtime import Bundle, Pipeline
from compiler.runtime.manifest import (
    DetectionQualityEntry,
    EmbeddingQualityEntry,
    MeasuredEntry,
    SegmentQualityEntry,
)
from compiler.runtime.pipeline import convert

# Values of an output that are counted, and when few of them are worth a word.
MOST_VALUES = 1 << 20
FEW_VALUES, MANY_MORE = 32, 8


class Embeddings:
    """Sentence embeddings, the mean over a sample's own tokens, of states [1, S, K] and of the
    float model's."""

    def __init__(self) -> None:
        self.got: list[np.ndarray] = []
        self.want: list[np.ndarray] = []

    def add(self, got: np.ndarray, want: np.ndarray, mask: np.ndarray) -> None:
        weights = mask.reshape(-1, 1).astype(np.float64)
        for found, states in ((self.got, got), (self.want, want)):
            vector = (states[0] * weights).sum(axis=0)
            found.append(vector / max(float(np.linalg.norm(vector)), 1e-30))

    def report(self) -> EmbeddingQualityEntry:
        """Cosine with the float model's, and Spearman's correlation of the similarities of all
        pairs of samples."""
        cosines = [float(a @ b) for a, b in zip(self.got, self.want, strict=True)]
        entry: EmbeddingQualityEntry = {
            "cosine": round(float(np.mean(cosines)), 6),
            "least_cosine": round(min(cosines), 6),
        }
        ours, theirs = (_ranks(np.array(vectors)) for vectors in (self.got, self.want))
        if len(ours) > 1:
            entry["spearman"] = round(float(np.corrcoef(ours, theirs)[0, 1]), 6)
        return entry


def _ranks(vectors: np.ndarray) -> np.ndarray:
    """Ranks of the similarities of all pairs of unit vectors [count, K]."""
    pairs = (vectors @ vectors.T)[np.triu_indices(len(vectors), 1)]
    return np.argsort(np.argsort(pairs)).astype(np.float64)


class Values:
    """How many different values an output takes, of as many as fit `MOST_VALUES`."""

    def __init__(self) -> None:
        self.kept: list[tuple[np.ndarray, np.ndarray]] = []
        self.room = MOST_VALUES

    def add(self, got: np.ndarray, want: np.ndarray) -> None:
        if got.shape == want.shape and want.size <= self.room:
            self.kept.append((got, want))
            self.room -= want.size

    def report(self, difference: Difference) -> dict[str, Any]:
        """`distinct` of the part with the fewest, where float has many more than the bundle."""
        parts = difference.parts()
        if parts is None or not self.kept:
            return {}
        axis, channels = parts
        got, want = (np.stack([np.atleast_1d(pair[i]) for pair in self.kept]) for i in (0, 1))
        counted = []
        for part in channels:
            few, many = (len(np.unique(array.take(part, axis + 1))) for array in (got, want))
            if few <= FEW_VALUES and many >= MANY_MORE * few:
                counted.append((few, many, slice_text(axis, part)))
        if not counted:
            return {}
        few, many, where = min(counted)
        return {"distinct": {"slice": where, "bundle": few, "float": many}}


@dataclass(frozen=True)
class HeldOut:
    """What a bundle is verified with: `samples`, what the float model gives for them (`expected`),
    and what `agreement.scored` finds in the model as its user wrote it (`layers`)."""

    samples: Sequence[Sample]
    expected: Sequence[Mapping[str, Any]]
    layers: Mapping[str, int] = field(default_factory=dict)


class _Outputs:
    """Compares the outputs of a model: their figures, and what a user reads off them."""

    def __init__(self, held_out: HeldOut) -> None:
        self._read = readings(held_out.layers, held_out.expected, held_out.samples)
        self._known = known_channels(self._read)
        self._differences: dict[str, Difference] = {}
        self._values: dict[str, Values] = defaultdict(Values)
        self._embeddings: dict[str, Embeddings] = defaultdict(Embeddings)

    def add(self, results: Mapping[str, Any], wanted: Mapping[str, Any], sample: Sample) -> None:
        for name, array in results.items():
            if isinstance(array, np.ndarray | np.generic) and array.dtype.kind == "f":
                got, want = np.asarray(array), np.asarray(wanted[name])
                self._differences.setdefault(name, Difference(self._known.get(name))).add(got, want)
                self._values[name].add(got, want)
                mask = sample.get("attention_mask")
                if (
                    mask is not None
                    and got.ndim == 3
                    and mask.shape == got.shape[:2] == (1, mask.size)
                ):
                    self._embeddings[name].add(got, want, mask)
        for reading in self._read:
            reading.add(results, wanted, sample)

    def report(self) -> MeasuredEntry:
        """`outputs`, and `embeddings` and `detections` of models that give such."""
        outputs: dict[str, Any] = {}
        for name, difference in self._differences.items():
            outputs[name] = difference.report() | self._values[name].report(difference)
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


def verify(
    bundle: Bundle, program: Program, held_out: HeldOut, progress: Callable[[], None] = lambda: None
) -> MeasuredEntry:
    """Measures each output, and each TPU segment fed with float inputs (its own loss) and in the
    pipeline.

    The float model and the bundle are not in memory at the same time: what the one gives at the
    borders of segments waits on disk for the other. Nor are all borders, which onnxruntime keeps
    until a run ends.
    """
    outputs = _Outputs(held_out)
    own: dict[int, dict[str, Difference]] = {}
    total: dict[int, dict[str, Difference]] = {}
    with files.temporary("verify") as folder:
        boundaries = _Borders(program, folder.path)
        boundaries.save(held_out.samples)
        pipeline = Pipeline(bundle)
        for number, (sample, wanted) in enumerate(
            zip(held_out.samples, held_out.expected, strict=True)
        ):
            reached: dict[str, np.ndarray] = dict(pipeline.check_inputs(sample))
            for index, segment in enumerate(pipeline.segments):
                pipeline.advance(index, reached)
                if segment["device"] == "tpu":
                    around = [t["name"] for t in [*segment["inputs"], *segment["outputs"]]]
                    floats = {name: boundaries.load(number, name, sample) for name in around}
                    alone = pipeline.run_segment(index, floats)
                    _compare(segment, alone, floats, own.setdefault(index, {}))
                    _compare(segment, reached, floats, total.setdefault(index, {}))
            outputs.add(pipeline.results(reached), wanted, sample)
            progress()
    segments = {str(i): _segment(own[i], total[i]) for i in sorted(own)}
    return {"samples": len(held_out.samples), **outputs.report(), "segments": segments}


class _Borders:
    """What the float model gives between segments, on disk."""

    def __init__(self, program: Program, folder: Path) -> None:
        tpu = [s for s in program.plan.segments if s.device == "tpu"]
        crossing = [v for s in tpu for v in [*s.inputs, *s.outputs] if not v.is_graph_input()]
        self._values = {str(v.name): v for v in crossing}
        self._model = program.model
        self._folder = folder
        self._numbers = {name: index for index, name in enumerate(self._values)}

    def save(self, samples: Sequence[Sample]) -> None:
        for names in batches(self._values):
            with Reference(self._model, [self._values[n] for n in names]) as inner:
                for index, sample in enumerate(samples):
                    for name, array in inner.run(sample, names).items():
                        np.save(self._path(index, name), array)

    def load(self, number: int, name: str, sample: Sample) -> np.ndarray:
        """A tensor of the float model for the sample with this number; the sample's own where it is
        an input."""
        if name not in self._numbers:
            return sample[name]
        array: np.ndarray = np.load(self._path(number, name))
        return array

    def _path(self, number: int, name: str) -> Path:
        return self._folder / f"{number}.{self._numbers[name]}.npy"


def _compare(
    segment: Mapping[str, Any],
    got: Mapping[str, np.ndarray],
    want: Mapping[str, np.ndarray],
    differences: dict[str, Difference],
) -> None:
    for tensor in segment["outputs"]:
        name = tensor["name"]
        ours = convert(got[name], {**tensor, "dtype": "float32"})
        differences.setdefault(name, Difference()).add(ours, want[name])


def _segment(own: Mapping[str, Difference], total: Mapping[str, Difference]) -> SegmentQualityEntry:
    """The worst output of a segment counts."""
    alone = [d.sqnr_db for d in own.values()]
    reached = [d.sqnr_db for d in total.values()]
    return {
        "sqnr_db": min((db for db in alone if db is not None), default=None),
        "cumulative_sqnr_db": min((db for db in reached if db is not None), default=None),
        "cumulative_plain_sqnr_db": min(d.plain_sqnr_db for d in total.values()),
    }


def worst_segment(quality: Mapping[str, Any]) -> tuple[str, float] | None:
    """(index, SQNR) of the TPU segment that loses most by itself, of those where the samples vary
    enough to tell."""
    told = {i: s["sqnr_db"] for i, s in quality["segments"].items() if s["sqnr_db"] is not None}
    if not told:
        return None
    index = min(told, key=lambda i: told[i])
    return index, told[index]


def worst_node(program: Program, segment: int, samples: Iterable[Sample]) -> str | None:
    """The source node of a segment whose result its scale suits least: float values, rounded to the
    scale alone."""
    (part,) = (s for s in program.plan.segments if s.index == segment)
    values = {
        str(v.name): v for node in part.nodes for v in node.outputs if str(v.name) in program.quants
    }
    differences: dict[str, Difference] = defaultdict(Difference)
    for names in batches(values):
        with Reference(program.model, [values[n] for n in names]) as inner:
            for sample in samples:
                for name, array in inner.run(sample, names).items():
                    quant = program.quants[name]
                    differences[name].add(quant.dequantize(quant.quantize(array)), array)
    figures = {name: d.sqnr_db for name, d in differences.items()}
    told = {name: db for name, db in figures.items() if db is not None}
    if not told:
        return None
    producer = values[min(told, key=lambda name: told[name])].producer()
    return None if producer is None else origin_of(producer)
