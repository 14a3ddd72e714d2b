"""Settles how a language model's prefill runs: the fastest plan within a quality goal, or one of
the frontier, with what was measured of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from compiler.driver.fused import NOT_FUSED, Candidate, Choices, Fusing, Profile
from compiler.driver.options import LANGUAGE_QUALITY, BuildOptions
from compiler.errors import OptionError
from compiler.partition import Plan
from compiler.runtime.manifest import FrontierEntry, GoalEntry, Manifest

# How often a plan is chosen anew because its divergence is larger than its blocks' by themselves.
MOST_ROUNDS = 3


@dataclass(frozen=True)
class Settled:
    """What was chosen.

    fusing:     which blocks are fused, and in how many parts a chunk is run
    seconds:    what a chunk is predicted to take; None where nothing was looked for
    divergence: measured on held-out rows, of all tokens of a prefill
    goal:       what it had to be at most
    offered:    plans from the fastest to the most accurate one, where they were asked for
    """

    fusing: Fusing = NOT_FUSED
    seconds: float | None = None
    divergence: float | None = None
    goal: float | None = None
    offered: tuple[Candidate, ...] = ()

    @property
    def note(self) -> str:
        """What would reach the goal."""
        if not self.fusing.layers:
            return "no plan that fuses nothing is more accurate; --place host may be"
        return "blocks cost more together than by themselves: set a smaller kl"


@dataclass(frozen=True)
class Search:
    """What a search asks for, each built when it is called.

    plan:       of prefill, in so many parts, with all blocks fused or with none
    errors:     by layer, the divergence that its block adds
    divergence: measured of prefill with some blocks fused
    """

    plan: Callable[[Fusing], Plan]
    errors: Callable[[], dict[int, float]]
    divergence: Callable[[Fusing], float]
    layers: int
    parts: tuple[int, ...]

    def choices(self) -> Choices:
        every = frozenset(range(self.layers))
        profiles = {}
        for parts in self.parts:
            fused = self.plan(Fusing(every, parts))
            profiles[parts] = Profile.of(fused, self.plan(Fusing(parts=parts)))
        plain = self.plan(NOT_FUSED)
        host_alone = all(segment.tpu is None for segment in plain.segments)
        return Choices(profiles, self.errors(), self.divergence(NOT_FUSED), host_alone)


def is_wanted(options: BuildOptions) -> bool:
    """Whether the user asks for anything but the plan by default."""
    return bool(options.quality) or options.frontier or options.pick is not None


def settle(search: Search, options: BuildOptions) -> Settled:
    """The plan that options ask for. Raises OptionError for a number that the frontier does not
    have."""
    goal = (options.quality or {}).get(LANGUAGE_QUALITY)
    choices = search.choices()
    offered = choices.offered()
    shown = tuple(offered) if options.frontier or options.pick is not None else ()
    if options.pick is not None:
        if options.pick > len(offered):
            raise OptionError(f"{options.pick}: there are {len(offered)} plans", "pick")
        chosen = offered[options.pick - 1]
        measured = search.divergence(chosen.fusing)
    elif goal is not None:
        chosen, measured = _within(goal, search, choices)
    else:
        chosen = choices.candidate(frozenset())
        measured = choices.plain
    return Settled(chosen.fusing, chosen.seconds, measured, goal, shown)


def _within(goal: float, search: Search, choices: Choices) -> tuple[Candidate, float]:
    """The fastest plan that reaches the goal, and what was measured of it; the nearest one where
    none does."""
    expected = goal
    for _ in range(MOST_ROUNDS):
        chosen = choices.fastest_within(expected)
        if not chosen.fusing.layers:
            return chosen, choices.plain
        measured = search.divergence(chosen.fusing)
        if measured <= goal:
            break
        # Together the blocks cost so much more than by themselves.
        more = (measured - choices.plain) / (chosen.divergence - choices.plain)
        expected = choices.plain + (goal - choices.plain) / max(more, 1.0)
    return chosen, measured


def enter(manifest: Manifest, settled: Settled) -> None:
    """Put into a manifest what was settled."""
    language, quality = manifest["language"], manifest["quality"]
    language["parts"] = settled.fusing.parts
    if settled.seconds is not None:
        language["chunk_ms"] = round(1e3 * settled.seconds, 6)
    if settled.divergence is not None:
        quality["prefill_divergence"] = round(settled.divergence, 6)
    frontier: list[FrontierEntry] = [candidate.entry() for candidate in settled.offered]
    if frontier:
        quality["frontier"] = frontier
    if settled.goal is None or settled.divergence is None:
        return
    is_met = settled.divergence <= settled.goal
    goal: GoalEntry = {
        "figure": "kl",
        "wanted": settled.goal,
        "measured": round(settled.divergence, 6),
        "met": is_met,
    }
    if not is_met:
        goal["note"] = settled.note
    quality["goals"] = [goal]
