"""Streams and answers for an hour: nothing lost, nothing wrong, flat memory (tests/soak.py).

    python -m benchmarks.soak BUNDLE LANGUAGE_BUNDLE [SECONDS]

BUNDLE has one input `x` and one output `y` and segments for two Edge TPUs.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.soak import soak

if __name__ == "__main__":
    arguments = sys.argv[1:]
    result = soak(
        Path(arguments[0]),
        Path(arguments[1]),
        float(arguments[2]) if len(arguments) > 2 else 3600.0,
    )
    print(
        f"{result.streamed} samples streamed, {result.answered} requests answered, "
        f"{result.wrong} wrong or lost"
    )
    middle = result.memory[len(result.memory) // 2]
    print(f"memory {middle:.0f} MB, {result.growth:+.1f} MB in the last third")
