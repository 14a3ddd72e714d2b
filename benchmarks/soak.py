"""Streams and answers for an hour: nothing lost, nothing wrong, flat memory (tests/soak.py).

    python -m benchmarks.soak BUNDLE LANGUAGE_BUNDLE [SECONDS]

BUNDLE has one input `x` and one output `y` and segments for two Edge TPUs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.soak import soak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("language_bundle", type=Path)
    parser.add_argument("seconds", type=float, nargs="?", default=3600.0)
    options = parser.parse_args()
    found = soak(options.bundle, options.language_bundle, options.seconds)
    print(
        f"{found.streamed} samples streamed, {found.answered} requests answered, "
        f"{found.wrong} wrong or lost"
    )
    median = sorted(found.memory)[len(found.memory) // 2]
    print(f"memory {median:.0f} MB, {found.growth:+.1f} MB in the last third")


if __name__ == "__main__":
    main()
