"""Runs a bundle against the float model and says how far apart they are, over all and segment by
segment."""

from __future__ import annotations

import math
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from compiler.graph.reference import Reference
from compiler.partition import Program
from compiler.quantize.calibrate import batches
from compiler.quantize.samples import Sample
from compiler.runtime import Bundle, Pipeline
from compiler.runtime.pipeline import convert

# A perfect match has no noise; JSON has no infinity.
PERFECT_DB = 200.0
# What an infinity on one side only counts as, and the most that counts: far off, but with a square
# that float64 holds.
HUGE = 1e100


class Difference:
    """Accumulates the difference between a tensor and its float reference over samples."""

    def __init__(self) -> None:
        self.signal = self.noise = self.product = self.energy = self.largest = 0.0
        self.agree = self.count = 0

    def add(self, got: np.ndarray, want: np.ndarray) -> None:
        """Where the float model itself gives NaN or infinity, the same is right; elsewhere they are
        an error.

        So is what one of them lacks, where the shape depends on data.
        """
        if got.shape != want.shape:
            got, want = _same_shape(got, want)
        a, b = got.astype(np.float64).reshape(-1), want.astype(np.float64).reshape(-1)
        alike = ~np.isfinite(b) & ((a == b) | (np.isnan(a) & np.isnan(b)))
        a[alike] = b[alike] = 0
        a, b = (np.clip(np.nan_to_num(array), -HUGE, HUGE) for array in (a, b))
        self.signal += float(b @ b)
        self.noise += float((a - b) @ (a - b))
        self.product += float(a @ b)
        self.energy += float(a @ a)
        self.largest = max(self.largest, float(np.abs(a - b).max(initial=0)))
        if a.size:
            self.agree += int(np.argmax(a)) == int(np.argmax(b))
            self.count += 1

    @property
    def sqnr_db(self) -> float:
        """Signal to quantization noise, 10 log10(sum want^2 / sum (got - want)^2), at most
        PERFECT_DB."""
        if self.noise == 0:
            return PERFECT_DB
        if self.signal == 0:
            return -PERFECT_DB
        return round(
            float(np.clip(10 * math.log10(self.signal / self.noise), -PERFECT_DB, PERFECT_DB)), 2
        )

    @property
    def cosine(self) -> float:
        norm = math.sqrt(self.signal) * math.sqrt(self.energy)
        return round(self.product / norm, 6) if norm else float(self.signal == self.energy)

    def report(self, classes: bool) -> dict[str, Any]:
        entry = {
            "sqnr_db": self.sqnr_db,
            "cosine": self.cosine,
            "max_error": float(f"{self.largest:.6g}"),
        }
        return entry | (
            {"top1_agreement": round(self.agree / self.count, 4)} if classes and self.count else {}
        )


def _same_shape(got: np.ndarray, want: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both with zeros behind what they have, along each axis."""
    if got.ndim != want.ndim:
        got, want = got.reshape(-1), want.reshape(-1)
    most = np.maximum(got.shape, want.shape)
    return np.pad(got, [(0, n) for n in most - got.shape]), np.pad(
        want, [(0, n) for n in most - want.shape]
    )


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

    def report(self) -> dict[str, Any]:
        """Cosine with the float model's, and Spearman's correlation of the similarities of all
        pairs of samples."""
        cosines = [float(a @ b) for a, b in zip(self.got, self.want, strict=True)]
        entry = {
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


def verify(
    bundle: Bundle,
    program: Program,
    samples: Iterable[Sample],
    expected: Iterable[Sample],
    progress: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Compares with `expected`, what the model as imported gives for `samples`.

    Measures each output, and each TPU segment fed with float inputs (its own loss) and in the
    pipeline. The float model and the bundle are not in memory at the same time: what the one gives
    waits on disk for the other. Nor are all borders, which onnxruntime keeps until a run ends.
    """
    outputs: dict[str, Difference] = defaultdict(Difference)
    embeddings: dict[str, Embeddings] = defaultdict(Embeddings)
    own: dict[int, Difference] = defaultdict(Difference)
    total: dict[int, Difference] = defaultdict(Difference)
    tpu = [s for s in program.plan.segments if s.device == "tpu"]
    boundaries = {
        str(v.name): v for s in tpu for v in [*s.inputs, *s.outputs] if not v.is_graph_input()
    }
    samples, count = list(samples), 0
    with tempfile.TemporaryDirectory(prefix="verify-") as folder:
        saved = {name: f"{i}.npy" for i, name in enumerate(boundaries)}
        for names in batches(boundaries):
            with Reference(program.model, [boundaries[n] for n in names]) as inner:
                for index, sample in enumerate(samples):
                    for name, array in inner.run(sample, names).items():
                        np.save(Path(folder) / f"{index}.{saved[name]}", array)
        pipeline = Pipeline(bundle)
        for number, (sample, wanted) in enumerate(zip(samples, expected, strict=True)):
            values: dict[str, np.ndarray] = dict(pipeline.check_inputs(sample))
            for index, segment in enumerate(pipeline.segments):
                pipeline.advance(index, values)
                if segment["device"] == "tpu":
                    around = [t["name"] for t in [*segment["inputs"], *segment["outputs"]]]
                    floats = {
                        n: np.load(Path(folder) / f"{number}.{saved[n]}")
                        if n in saved
                        else sample[n]
                        for n in around
                    }
                    alone = pipeline.run_segment(index, floats)
                    _compare(segment, alone, floats, own[index])
                    _compare(segment, values, floats, total[index])
            for name, array in pipeline.results(values).items():
                if isinstance(array, np.ndarray | np.generic) and array.dtype.kind == "f":
                    outputs[name].add(np.asarray(array), np.asarray(wanted[name]))
                    mask = sample.get("attention_mask")
                    if (
                        mask is not None
                        and array.ndim == 3
                        and mask.shape == array.shape[:2] == (1, mask.size)
                    ):
                        embeddings[name].add(array, wanted[name], mask)
            count += 1
            progress()
    shapes = {o["name"]: o["shape"] for o in pipeline.outputs}
    return {
        "samples": count,
        "outputs": {name: d.report(is_classifier(shapes[name])) for name, d in outputs.items()},
        **(
            {"embeddings": {name: e.report() for name, e in embeddings.items()}}
            if embeddings
            else {}
        ),
        "segments": {
            str(i): {"sqnr_db": own[i].sqnr_db, "cumulative_sqnr_db": total[i].sqnr_db}
            for i in sorted(own)
        },
    }


def _compare(
    segment: Mapping[str, Any],
    got: Mapping[str, np.ndarray],
    want: Mapping[str, np.ndarray],
    difference: Difference,
) -> None:
    for tensor in segment["outputs"]:
        name = tensor["name"]
        difference.add(convert(got[name], {**tensor, "dtype": "float32"}), want[name])


def is_classifier(shape: list[int] | None) -> bool:
    """One row of scores: a single dimension above one, of at least two."""
    wide = [d for d in shape or () if d is None or d > 1]
    return len(wide) == 1


def worst_segment(quality: Mapping[str, Any]) -> tuple[str, float] | None:
    """(index, SQNR) of the TPU segment that loses most by itself."""
    segments = quality["segments"]
    if not segments:
        return None
    index = min(segments, key=lambda i: segments[i]["sqnr_db"])
    return index, segments[index]["sqnr_db"]
