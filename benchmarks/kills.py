"""Kills builds outright and looks at what they leave: the old bundle or the new one, whole, at any
moment.

    python -m benchmarks.kills [KILLS] [SEED]

Half of the kills end a whole build at a random moment. The others end the replacement alone, with
what a dead build left to be swept in front of it, at a random one of its calls of the system; every
other one of these has no system call that exchanges two folders. Each works on a fork of this
process, so that imports are paid once.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from compiler.driver import build as building
from compiler.driver.options import BuildOptions
from compiler.emit import bundle
from compiler.runtime import Bundle, RuntimeBundleError, folders

# What Python reports of a process's work on files; a kill comes in front of it.
CALLS = ("open", "os.", "shutil.", "ctypes.dlsym")


def fork(work: Callable[[], object], kill_at: int | None = None) -> int:
    """Do some work in a fork of this process, which ends itself in front of call number `kill_at`.
    Returns its id."""
    process = os.fork()
    if process:
        return process
    try:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        if kill_at is not None:
            _end_at(kill_at)
        work()
        os._exit(0)
    except BaseException:
        os._exit(1)


def _end_at(number: int) -> None:
    seen = 0

    def hook(event: str, _: tuple[object, ...]) -> None:
        nonlocal seen
        if event.startswith(CALLS):
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def ended(process: int) -> int:
    """How it ended: 0, a positive exit code, or the number of a signal below zero."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def put(source: Path, output: Path, exchange: bool = True) -> None:
    """Replace the bundle at `output` by a copy of another, as a build does at its end."""
    if not exchange:
        folders.exchange = lambda one, other: False
    with bundle.folder(output, force=True) as made:
        shutil.copytree(source, made, dirs_exist_ok=True)


def abandon(output: Path) -> None:
    """Leave beside `output` what a build leaves that is killed half way."""
    left = folders.beside(output, folders.BUILDING)
    (left / "bundle" / "segments").mkdir(parents=True, exist_ok=True)
    (left / "bundle" / "segments" / "00.onnx").write_bytes(b"half")
    (left / folders.LOCK).touch()


@dataclass
class Outcome:
    """What was found after each kill, and what was lost: neither the old bundle nor the new one,
    whole.

    `littered` kills left something to be swept, `most` things at a time.
    """

    found: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    missed: int = 0
    littered: int = 0
    most: int = 0

    def look(self, output: Path, old: bytes, new: bytes, what: str) -> None:
        try:
            Bundle.open(output)
            manifest = (output / "manifest.json").read_bytes()
            self.found["new" if manifest == new else "old" if manifest == old else "neither"] += 1
            if manifest not in (old, new):
                self.lost.append(what)
        except (RuntimeBundleError, OSError) as error:
            self.lost.append(f"{what}: {error}")


def replacements(
    bundles: tuple[Path, Path], output: Path, moments: list[int], exchange: bool
) -> Outcome:
    """Kill replacements in front of the calls of these numbers. `bundles` take turns at `output`."""
    outcome = Outcome()
    for turn, moment in enumerate(moments):
        old, new = bundles[turn % 2], bundles[1 - turn % 2]
        shutil.rmtree(output, ignore_errors=True)
        shutil.copytree(old, output)
        abandon(output)
        code = ended(fork(lambda new=new: put(new, output, exchange), moment))
        outcome.missed += code != -signal.SIGKILL
        manifests = [(path / "manifest.json").read_bytes() for path in (old, new)]
        outcome.look(output, *manifests, f"killed at call {moment}, exchange {exchange}")
    return outcome


def calls(bundles: tuple[Path, Path], output: Path, exchange: bool) -> int:
    """How many calls a replacement makes, so that a kill can come in front of any of them."""
    low, high = 1, 1 << 14
    while low < high:  # the first number that is never reached
        middle = (low + high) // 2
        if replacements(bundles, output, [middle], exchange).missed:
            high = middle
        else:
            low = middle + 1
    return low - 1


def builds(
    model: Path, bundles: tuple[Path, Path], output: Path, count: int, rng: random.Random
) -> Outcome:
    """Kill whole builds at moments of their time; those that end before do not count."""
    outcome = Outcome()
    manifests = [(path / "manifest.json").read_bytes() for path in bundles]
    started = time.perf_counter()
    ended(fork(lambda: build(model, output, 0)))
    seconds = time.perf_counter() - started
    killed = 0
    while killed < count:
        old = (output / "manifest.json").read_bytes()
        seed = 1 - manifests.index(old)
        process = fork(lambda seed=seed: build(model, output, seed))
        time.sleep(rng.uniform(0, 1.02 * seconds))
        os.kill(process, signal.SIGKILL)
        in_time = ended(process) == -signal.SIGKILL
        killed += in_time
        outcome.missed += not in_time
        # The machine may be busier or idler than when the first build was timed.
        seconds *= 1.01 if in_time else 0.95
        outcome.look(output, old, manifests[seed], f"build {killed}")
        remains = left(output)
        outcome.littered += bool(remains)
        outcome.most = max(outcome.most, len(remains))
    return outcome


def build(model: Path, output: Path, seed: int) -> None:
    building.build(model, output, BuildOptions(seed=seed, force=True))


def left(output: Path) -> list[str]:
    """What stands beside a bundle that should stand alone, and in the temporary folder."""
    beside = {p.name for p in output.parent.iterdir()} - {output.name}
    return sorted(beside | {p.name for p in Path(tempfile.gettempdir()).glob(f"{folders.PREFIX}*")})


def main(count: int, seed: int) -> int:
    from tests.conftest import save, small_network

    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tempfile.tempdir = str(folder / "temporary")
        for inner in ("temporary", "place"):
            (folder / inner).mkdir()
        model, output = save(folder / "model.onnx", small_network()), folder / "place" / "b"
        bundles = folder / "first", folder / "second"
        for number, path in enumerate(bundles):
            assert ended(fork(lambda path=path, number=number: build(model, path, number))) == 0
        bad = []
        for exchange in (True, False):
            last = calls(bundles, output, exchange)
            moments = [rng.randint(1, last) for _ in range(count // 4)]
            outcome = replacements(bundles, output, moments, exchange)
            how = "exchange" if exchange else "two renames"
            print(
                f"replacements by {how}: {len(moments)} of {last} calls, {dict(outcome.found)}, lost {outcome.lost}",
                flush=True,
            )
            bad += outcome.lost
        outcome = builds(model, bundles, output, count - 2 * (count // 4), rng)
        print(f"builds: {dict(outcome.found)}, {outcome.missed} ended before, lost {outcome.lost}")
        print(f"{outcome.littered} kills left something, never more than {outcome.most} folders")
        assert ended(fork(lambda: build(model, output, 0))) == 0
        print(f"after one more build: {left(output) or 'nothing is left'}")
        bad += [*outcome.lost, *left(output)]
    return 1 if bad else 0


if __name__ == "__main__":
    arguments = [int(a) for a in sys.argv[1:]]
    sys.exit(main(*(arguments + [200, 0][len(arguments) :])))
