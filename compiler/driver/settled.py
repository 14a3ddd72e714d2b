"""What a search settles on: a program, its goals, and the list of plans beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compiler.checks.difference import decibel
from compiler.checks.goals import Goal
from compiler.checks.trials import Trial
from compiler.partition import Program
from compiler.runtime.manifest import FrontierEntry


@dataclass(frozen=True)
class Point:
    """A plan of the frontier: the source nodes that it keeps in float, the predicted seconds, and
    what was measured in simulation; None where all is on the host, and nothing is lost.

    A plan with so many `fused` blocks has its `program`; others are built when they are picked.
    """

    kept: frozenset[str]
    seconds: float
    trial: Trial | None
    fused: int = 0
    program: Program | None = None

    def entry(self, goals: Sequence[Goal]) -> FrontierEntry:
        """The plan as the manifest has it."""
        figures: dict[str, float | None] = {}
        for goal in goals:
            measured = None if self.trial is None else goal.measured(self.trial.quality)
            figures[goal.name] = measured
        noise = 0.0 if self.trial is None else self.trial.noise
        entry: FrontierEntry = {
            "ms": round(1e3 * self.seconds, 6),
            "sqnr_db": decibel(1.0, noise),
            "figures": figures,
            "in_float": len(self.kept),
            "place": "host" if self.trial is None else "tpu",
        }
        if self.fused:
            entry["fused"] = self.fused
        return entry


@dataclass(frozen=True)
class Settled:
    """What a search settled on.

    goals:    what was looked for; empty where nothing was
    note:     what would reach it, where calibration samples do not
    trial:    what the simulation of the program gives
    frontier: plans from the fastest to the most accurate, where they were asked for
    """

    program: Program
    goals: tuple[Goal, ...] = ()
    note: str = ""
    trial: Trial | None = None
    frontier: tuple[Point, ...] = ()

    def frontier_entries(self) -> list[FrontierEntry]:
        """The frontier as the manifest has it."""
        found: list[FrontierEntry] = []
        for point in self.frontier:
            found.append(point.entry(self.goals))
        return found


def unbeaten(points: Sequence[Point]) -> tuple[Point, ...]:
    """Those that no other plan beats in time and noise, the fastest first. The host alone has no
    noise, so that it is the last one."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda point: (point.seconds, _noise(point))):
        if not kept or _noise(point) < _noise(kept[-1]):
            kept.append(point)
    return tuple(kept)


def _noise(point: Point) -> float:
    return 0.0 if point.trial is None else point.trial.noise
