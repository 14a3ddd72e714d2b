"""Random models through the whole compiler (tests/fuzz): exact passes, int8 as good as it can be,
equal builds.

    python -m benchmarks.fuzz [NUMBER] [FIRST SEED]

Prints what fails with its seed, and how far bundles are from what rounding alone does.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from tests.fuzz.check import check
from tests.fuzz.graphs import T, random_model


class Seeded:
    """Draws from a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def integer(self, low: int, high: int) -> int:
        return self._random.randint(low, high)

    def choice(self, options: Sequence[T]) -> T:
        return self._random.choice(options)


def one(seed: int) -> tuple[float, float] | str:
    with tempfile.TemporaryDirectory() as folder:
        try:
            return check(random_model(Seeded(seed)), Path(folder))
        except Exception as error:
            return f"seed {seed}: {type(error).__name__}: {str(error)[:300]}"


def main(number: int, first: int) -> int:
    with ProcessPoolExecutor() as pool:
        results = list(pool.map(one, range(first, first + number), chunksize=10))
    failed = [r for r in results if isinstance(r, str)]
    figures = np.array([r for r in results if not isinstance(r, str)])
    print(*failed, sep="\n")
    lost = np.maximum(0, figures[:, 1] - figures[:, 0])
    print(
        f"{number} models, {len(failed)} failed; SQNR median {np.median(figures[:, 0]):.1f} dB, lost against rounding "
        f"alone: median {np.median(lost):.2f} dB, 99% below {np.percentile(lost, 99):.2f}, most {lost.max():.2f}"
    )
    return bool(failed)


if __name__ == "__main__":
    arguments = [int(a) for a in sys.argv[1:]]
    sys.exit(main(*(arguments + [10_000, 0][len(arguments) :])))
