"""Random models through the whole compiler (tests/fuzz).

    python -m benchmarks.fuzz [NUMBER] [FIRST SEED]
    python -m benchmarks.fuzz --structural [NUMBER] [FIRST SEED]

The first: passes are exact, int8 is as good as it can be, builds are equal. The second: models of
all operators, types and opsets give what onnxruntime gives for the file itself. Prints what fails
with its seed; of the first, how far bundles are from what rounding alone does; of the second, the
models that are refused, with the reason.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from tests.fuzz.agree import Outcome, agrees
from tests.fuzz.check import check
from tests.fuzz.graphs import T, random_model

Result = TypeVar("Result")


class Seeded:
    """Draws from a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def integer(self, low: int, high: int) -> int:
        return self._random.randint(low, high)

    def choice(self, options: Sequence[T]) -> T:
        return self._random.choice(options)


def rounded(seed: int) -> tuple[float, float] | str:
    with tempfile.TemporaryDirectory() as folder:
        try:
            return check(random_model(Seeded(seed)), Path(folder))
        except Exception as error:
            return f"seed {seed}: {type(error).__name__}: {str(error)[:300]}"


def structural(seed: int) -> tuple[int, Outcome]:
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        try:
            return seed, agrees(seed, Path(folder))
        except Exception as error:
            return seed, Outcome("broken", f"{type(error).__name__}: {error}")


def over_seeds(one: Callable[[int], Result], number: int, first: int, jobs: int) -> list[Result]:
    with ProcessPoolExecutor(jobs) as pool:
        return list(pool.map(one, range(first, first + number), chunksize=10))


def report_rounded(results: Sequence[tuple[float, float] | str]) -> bool:
    """Whether any model failed."""
    failed = [r for r in results if isinstance(r, str)]
    figures = np.array([r for r in results if not isinstance(r, str)])
    print(*failed, sep="\n")
    print(f"{len(results)} models, {len(failed)} failed", end="\n" if not len(figures) else "; ")
    if len(figures):
        lost = np.maximum(0, figures[:, 1] - figures[:, 0])
        print(
            f"SQNR median {np.median(figures[:, 0]):.1f} dB, lost against rounding alone: median "
            f"{np.median(lost):.2f} dB, 99% below {np.percentile(lost, 99):.2f}, "
            f"most {lost.max():.2f}"
        )
    return bool(failed)


def report_structural(results: Sequence[tuple[int, Outcome]]) -> bool:
    """Whether any model failed."""
    for seed, outcome in results:
        if outcome.failed or outcome.status == "refused":
            print(f"seed {seed}: {outcome.status}: {' '.join(outcome.detail.split())[:300]}")
    found = Counter(outcome.status for _, outcome in results)
    counts = [f"{number} {status}" for status, number in found.most_common()]
    print(f"{len(results)} models: {', '.join(counts)}")
    return any(outcome.failed for _, outcome in results)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fuzz",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "number", type=int, nargs="?", help="models; default 10000, structural 2000"
    )
    parser.add_argument("first", type=int, nargs="?", default=0, help="first seed")
    parser.add_argument(
        "--structural",
        action="store_true",
        help="all operators, types and opsets, against onnxruntime",
    )
    parser.add_argument("--jobs", type=int, help="processes; default one for each core")
    chosen = parser.parse_args()
    if chosen.structural:
        return report_structural(
            over_seeds(structural, chosen.number or 2000, chosen.first, chosen.jobs)
        )
    return report_rounded(over_seeds(rounded, chosen.number or 10_000, chosen.first, chosen.jobs))


if __name__ == "__main__":
    sys.exit(main())
