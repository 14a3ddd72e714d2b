"""What must hold of a model of tests/fuzz/recipes.py: its bundle gives what onnxruntime gives for
the file itself."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import onnx

from compiler.checks.verify import Difference
from compiler.driver import build as building
from compiler.driver import quantizing
from compiler.driver.options import BuildOptions
from compiler.errors import CompilerError
from compiler.graph.reference import Reference
from compiler.partition import PartitionOptions, PlacePolicy
from compiler.quantize import samples as sampling
from compiler.runtime import Bundle, Pipeline
from tests.fuzz.check import GOOD_DB, SLACK_DB
from tests.fuzz.growth import Array, open_session
from tests.fuzz.recipes import random_model
from tests.fuzz.simulate import simulated

# Seconds that a build and a run may take.
PATIENCE = 120
# How far a float may be from onnxruntime's, as a share of the tensor's largest. Models grow such
# that a rounding is not magnified by more than about 20 by one node. Of float16, onnxruntime rounds
# between nodes, we do not.
TOLERANCE = {"e": 5e-2, "f": 1e-3, "d": 1e-3}


@dataclass(frozen=True)
class Outcome:
    """`status` is "agrees", "refused", "redrawn" (onnxruntime does not take the file), or else what
    is wrong."""

    status: str
    detail: str = ""

    @property
    def failed(self) -> bool:
        return self.status not in ("agrees", "refused", "redrawn")


class HangError(Exception):
    """Something took longer than it may."""


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise HangError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def agrees(seed: int, folder: Path, places: Sequence[PlacePolicy] = ("host", "tpu")) -> Outcome:
    """Draws a model, builds it for each place and compares."""
    model, samples = random_model(seed)
    path = folder / "model.onnx"
    onnx.save(model, path)
    try:
        onnx.checker.check_model(model, full_check=True)
        session = open_session(str(path))  # type: ignore[arg-type]
        names = [o.name for o in session.get_outputs()]
        wanted = [dict(zip(names, session.run(names, sample), strict=True)) for sample in samples]
    except Exception as error:
        return Outcome("redrawn", str(error))
    if not all(np.isfinite(a).all() for row in wanted for a in _flat(row) if a.dtype.kind == "f"):
        return Outcome("redrawn", "not finite")
    np.savez(folder / "samples.npz", **{n: np.stack([s[n] for s in samples]) for n in samples[0]})
    jumps = {p.key.removeprefix("jumps/") for p in model.metadata_props if p.value == "1"}
    for place in places:
        outcome = _outcome(path, folder, place, samples, wanted, jumps)
        if outcome.status != "agrees":
            return outcome
    return Outcome("agrees")


def _outcome(
    path: Path, folder: Path, place: PlacePolicy, samples: Any, wanted: Any, jumps: set[str]
) -> Outcome:
    options = BuildOptions(
        calibration=folder / "samples.npz",
        force=True,
        partitioning=PartitionOptions(place=place, seconds=0.2),
    )
    try:
        with limited(PATIENCE):
            building.build(path, folder / "bundle", options)
            pipeline = Pipeline(Bundle.open(folder / "bundle"))
            got = [pipeline.run(sample) for sample in samples]
    except HangError as error:
        return Outcome("hang", f"{place}: {error}")
    except CompilerError as error:
        clean = error.exit_code == 2 and "\n" not in str(error)
        return Outcome("refused" if clean else "internal", f"{place}: {error.code} {error}")
    except Exception as error:
        return Outcome("crash", f"{place}: {type(error).__name__}: {error}")
    manifest = json.loads((folder / "bundle" / "manifest.json").read_text())
    if all(segment["device"] == "host" for segment in manifest["segments"]):
        return _floats_agree(place, got, wanted)
    return _rounded_agree(path, options, samples, got, wanted, jumps)


def _floats_agree(
    place: str, got: list[dict[str, Array]], wanted: list[dict[str, Array]]
) -> Outcome:
    for ours, theirs in zip(got, wanted, strict=True):
        for name, want in theirs.items():
            why = _difference(ours[name], want)
            if why:
                return Outcome("wrong", f"{place}: '{name}' {why}")
    return Outcome("agrees")


def _difference(got: Array, want: Array) -> str:
    """In words, "" where there is none."""
    if isinstance(want, list):
        if not isinstance(got, list) or len(got) != len(want):
            return "is another sequence"
        return next((why for a, b in zip(got, want, strict=True) if (why := _difference(a, b))), "")
    if want is None:
        return "" if got is None else "holds something"
    got, want = np.asarray(got), np.asarray(want)
    if got.shape != want.shape or got.dtype != want.dtype:
        return f"is {got.dtype} {list(got.shape)}, not {want.dtype} {list(want.shape)}"
    if want.dtype.kind != "f":
        return (
            ""
            if np.array_equal(got, want)
            else f"differs: {got.reshape(-1)[:4]}, not {want.reshape(-1)[:4]}"
        )
    if not want.size:
        return ""
    most = float(np.abs(want).max())
    error = float(np.abs(got.astype(np.float64) - want).max())
    near = error <= TOLERANCE[want.dtype.char] * max(most, 1e-3)
    return "" if near else f"differs by {error:.3g} of {most:.3g}"


def _rounded_agree(
    path: Path, options: BuildOptions, samples: Any, got: Any, wanted: Any, jumps: set[str]
) -> Outcome:
    """Floats in front of which nothing jumps are as near as rounding alone would be, or good
    enough. All have the right type, and the right shape where nothing jumps."""
    judged = []
    for ours, theirs in zip(got, wanted, strict=True):
        for name, want in theirs.items():
            if not isinstance(want, np.ndarray):
                continue
            found = np.asarray(ours[name])
            if found.dtype != want.dtype or (name not in jumps and found.shape != want.shape):
                return Outcome(
                    "wrong",
                    f"tpu: '{name}' is {found.dtype} {list(found.shape)}, "
                    f"not {want.dtype} {list(want.shape)}",
                )
            if want.dtype.kind == "f" and name not in jumps and want.size:
                judged.append(name)
    low = {name: _sqnr(got, wanted, name) for name in judged}
    low = {name: found for name, found in low.items() if found < GOOD_DB}
    if not low:
        return Outcome("agrees")
    imported = building.read(path, options)
    loaded = sampling.load(options.calibration, imported.graph.inputs)
    program = quantizing.quantize(
        building.plan_program(imported, options), loaded.split()[0], options
    )
    with Reference(simulated(program)) as reference:
        rounded = [reference.run(sample) for sample in samples]
    for name, ours in low.items():
        ideal = _sqnr(rounded, wanted, name)
        if ours < ideal - SLACK_DB:
            return Outcome("wrong", f"tpu: '{name}' has {ours} dB, int8 allows {ideal}")
    return Outcome("agrees")


def _sqnr(got: Any, wanted: Any, name: str) -> float:
    difference = Difference()
    for one, other in zip(got, wanted, strict=True):
        difference.add(np.asarray(one[name]), np.asarray(other[name]))
    return difference.plain_sqnr_db


def _flat(row: dict[str, Array]) -> Iterator[np.ndarray]:
    for value in row.values():
        if isinstance(value, list):
            yield from (np.asarray(v) for v in value)
        elif value is not None:
            yield np.asarray(value)
