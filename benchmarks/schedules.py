"""Random programs on random devices, with random delays and losses (tests/schedules.py): every
result is compared with that of the segments in order.

    python -m benchmarks.schedules [COUNT]
"""

from __future__ import annotations

import argparse
import time

from tests.schedules import run_one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("count", type=int, nargs="?", default=2000)
    count = parser.parse_args().count
    began = time.perf_counter()
    for seed in range(count):
        run_one(seed)
    seconds = time.perf_counter() - began
    print(f"{count} random schedules in {seconds:.0f} s: all results equal, each answered once")


if __name__ == "__main__":
    main()
