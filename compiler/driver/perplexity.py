"""How well a bundled language model predicts text, beside its float model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from compiler.frontends import Source, decoder
from compiler.frontends.decoder import ProgramShape, sample
from compiler.graph.reference import Reference
from compiler.progress import Progress, silent
from compiler.runtime.language import LanguageModel
from compiler.runtime.manifest import MeasuredEntry, PerplexityEntry


@dataclass(frozen=True)
class _Prediction:
    """Of one token: cross-entropies of bundle and float model, their divergence, whether both have
    the same likeliest token."""

    bundle_loss: float
    float_loss: float
    divergence: float
    same: bool


def measure(
    model: LanguageModel,
    rows: Sequence[np.ndarray],
    expected: Sequence[np.ndarray],
    progress: Progress = silent,
) -> MeasuredEntry:
    """The manifest's figures of a bundled model on rows of token numbers [tokens], of one length.

    `expected` are the float model's logits (`float_logits`). Of each row the first chunk is
    prefilled and the rest decoded. Perplexity is the exponential of the mean cross-entropy;
    `ratio_error` its standard error, relative to the float model's.
    """
    step = progress("verifying", len(rows))
    predictions: list[_Prediction] = []
    for row, logits in zip(rows, expected, strict=True):
        predictions += _compare(model, row, logits)
        step()
    return {"samples": len(rows), "perplexity": _figures(predictions)}


def float_logits(
    source: Source, rows: Sequence[np.ndarray], chunk: int, progress: Progress = silent
) -> list[np.ndarray]:
    """Logits [tokens, vocabulary] of the float model behind the first `chunk` tokens of each row
    and every later one but the last.

    It is gone when this returns: beside the bundle it would be most of the memory of a build.
    """
    step = progress("running the float model", len(rows))
    predicted = len(rows[0]) - 1
    first = min(chunk, predicted) - 1
    shape = ProgramShape(1, predicted, predicted, all_logits=True)
    graph = decoder.write(source, shape)
    found = []
    with Reference(graph) as reference:
        for row in rows:
            logits = reference.run(sample(graph.graph, row, shape), ["logits"])["logits"][0]
            found.append(logits[first:].copy())
            step()
    return found


def loss(logits: np.ndarray, target: int) -> float:
    """Cross-entropy of `logits` [vocabulary] with the token `target`, in nats."""
    return -float(_log_softmax(logits)[target])


def divergence(logits: np.ndarray, wanted: np.ndarray) -> float:
    """Kullback-Leibler divergence of the distribution of `logits` [vocabulary] from that of
    `wanted`, in nats."""
    got, want = _log_softmax(logits), _log_softmax(wanted)
    return float(np.exp(want) @ (want - got))


def _compare(model: LanguageModel, row: np.ndarray, expected: np.ndarray) -> Iterator[_Prediction]:
    """The predictions behind the first chunk of a row, whose float logits are [tokens,
    vocabulary]."""
    slot = model.slots[0]
    slot.tokens.clear()
    first = min(model.chunk, len(row) - 1)
    logits = model.prefill(slot, row[:first].tolist())
    for position in range(first - 1, len(row) - 1):
        if position >= first:
            logits = model.decode({0: int(row[position])})[0]
        target = int(row[position + 1])
        wanted = expected[position - first + 1]
        yield _Prediction(
            loss(logits, target),
            loss(wanted, target),
            divergence(logits, wanted),
            bool(np.argmax(logits) == np.argmax(wanted)),
        )


def _figures(predictions: Sequence[_Prediction]) -> PerplexityEntry:
    count = len(predictions)
    losses = np.array([(p.bundle_loss, p.float_loss) for p in predictions])
    ours, theirs = np.exp(np.mean(losses, axis=0)).tolist()
    differences = losses[:, 0] - losses[:, 1]
    ratio = ours / theirs
    diverged = sum(p.divergence for p in predictions)
    same = sum(p.same for p in predictions)
    return {
        "tokens": count,
        "bundle": round(ours, 4),
        "float": round(theirs, 4),
        "ratio": round(ratio, 4),
        "ratio_error": round(ratio * float(differences.std()) / math.sqrt(count), 4),
        "divergence": round(diverged / count, 4),
        "top1_agreement": round(same / count, 4),
    }


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max()
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum())
    return result
