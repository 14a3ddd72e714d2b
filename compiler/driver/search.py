"""Looks for the fastest plan whose results reach the goal, and for plans of other speeds.

The plan without any search is tried first, in a simulation on a few calibration samples. Only where
it misses the goal, its roundings are measured (checks/trials.py), and regions around the worst ones
(driver/regions.py) may run on the host. What is chosen is planned and quantized anew, and tried
again; where it misses still, the search goes on from there, a few rounds at the most. Work is
counted in runs of samples, so that a model has the same plan everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from compiler.checks import verdict
from compiler.checks.goals import Goal, default_goal, require_measured
from compiler.checks.readings import Text
from compiler.checks.simulation import Simulation, can_simulate
from compiler.checks.trials import Trial, Trials, measure
from compiler.checks.verify import HeldOut
from compiler.driver.options import BuildOptions
from compiler.driver.regions import Choice, choices
from compiler.driver.settled import Point, Settled, unbeaten
from compiler.errors import OptionError
from compiler.graph import element_count, is_static, origin_of
from compiler.partition import PartitionOptions, Plan, Program, partition
from compiler.partition.placement import is_pinned
from compiler.planner.selection import Selection, spread
from compiler.progress import Progress
from compiler.quantize.samples import Sample, Samples

# Plans are tried on as many samples as CHEAP_WORK allows, between these; one of PART in any case.
LEAST_SAMPLES = 4
# A few lines of text show few errors of characters.
LEAST_TEXTS = 16
PART = 8
MOST_SAMPLES = 256
# Multiply-accumulates that take an x86 core about a second; a value that is rounded counts for
# VALUE_WORK of them.
CHEAP_WORK = 4e9
VALUE_WORK = 20
MOST_ROUNDS = 3
# Plans that a round tries, about.
MOST_TRIALS = 6
# How much slower than the fastest plan one may be that nobody asked for, unless that one is bad.
MOST_SLOWER = 2.0
# How much slower one may be where the host alone is faster anyway.
SLOWER = 1.25
# What is left of the noise must be less than this for another round to be worth it.
WORTH = 0.9
# Of plans that are nearly as fast as the fastest one that will do, the most accurate is taken.
NEAR = 1.03
# A plan with another step must be so much faster to be preferred, and where results are no
# embeddings, have at most so much more noise (0.3 dB).
FASTER = 0.98
MORE_NOISE = 1.07
# Noise as a share of what varies: what is good enough for a default (34 dB), and what is broken.
GOOD = 4e-4
BROKEN = 0.1
# Plans of a frontier.
MOST_PLANS = 8
# How long the planner may look for a plan that is only compared with others.
PLANNING_SECONDS = 0.3

Quantized = Callable[[PartitionOptions], Program]


@dataclass(frozen=True)
class _State:
    """A program that was tried."""

    program: Program
    kept: frozenset[str]
    trial: Trial


@dataclass(frozen=True)
class Search:
    """What a search works on: samples, what is known of the outputs, and how to partition and
    quantize the model, which gives another program each time."""

    calibration: Samples
    truth: HeldOut
    options: BuildOptions
    quantized: Quantized
    progress: Progress

    def run(self) -> Settled:
        """The plan to build."""
        program = self.quantized(self.options.partitioning)
        if not _tpu_nodes(program):
            alone = (self._host_point(program),) if self.lists_plans else ()
            return Settled(program, self._asked(), frontier=alone)
        if not self._applies() or not can_simulate(program):
            return self._unsearched(program)
        samples = self._samples(program)
        self.progress("trying the plan", 1)
        with Simulation(program) as simulation:
            trials = Trials(simulation, samples, self.truth)
            if not trials.can_tell:
                return self._unsearched(program)
            state = _State(program, frozenset(), trials.trial(simulation.roundings))
            goals = self._goals(trials, state.trial)
            if not self.lists_plans and self._are_met(goals, state.trial):
                return Settled(program, goals, "", state.trial)
            found = self._choices(program, trials)
            points: tuple[Point, ...] = ()
            if self.lists_plans:
                points = self._frontier(state, trials, found)
            if self._are_met(goals, state.trial):
                return Settled(program, goals, "", state.trial, points)
            chosen = self._chosen(state, trials, found, goals)
        first = state
        state, note = self._refined(first, chosen, goals, samples)
        if self.lists_plans and state.kept != first.kept:
            built = Point(state.kept, state.program.plan.objective, state.trial)
            points = unbeaten([*points, built])
        return Settled(state.program, goals, note, state.trial, points)

    @property
    def lists_plans(self) -> bool:
        """Whether the user asks for the frontier, or for a plan of it."""
        return self.options.frontier or self.options.pick is not None

    def tried(self, program: Program, fused: int) -> Point | None:
        """A program with so many blocks fused, and what its simulation gives; None where it cannot
        be simulated."""
        if not can_simulate(program):
            return None
        with Simulation(program) as simulation:
            trials = Trials(simulation, self._samples(program), self.truth)
            trial = trials.trial(simulation.roundings)
        return Point(frozenset(), program.plan.objective, trial, fused, program)

    def is_faster(self, settled: Settled, program: Program) -> bool:
        """Whether a program is so much faster than what was settled that it may be preferred."""
        return program.plan.objective <= FASTER * settled.program.plan.objective

    def preferred(self, settled: Settled, point: Point) -> Settled:
        """What was settled, or the program of another point, where that is faster and as good.

        Embeddings have to reach their goal only, as what a user asked for: a goal on their cosine
        says all that they are used for. Other results keep what a faster plan would cost them.
        """
        trial, program = point.trial, point.program
        if settled.trial is None or trial is None or program is None:
            return settled
        if not self.is_faster(settled, program):
            return settled
        are_met = bool(settled.goals)
        for goal in settled.goals:
            are_met = are_met and goal.tightened().is_met(trial.quality)
        is_near = trial.noise <= MORE_NOISE * settled.trial.noise
        says_all = bool(self.options.quality) or "embeddings" in trial.quality
        if are_met and (is_near or says_all):
            return Settled(program, settled.goals, "", trial, settled.frontier)
        return settled

    def offering(self, settled: Settled, points: Sequence[Point]) -> Settled:
        """What was settled, with more plans in its frontier."""
        if not settled.frontier:
            return settled
        return replace(settled, frontier=unbeaten([*settled.frontier, *points]))

    def picked(self, settled: Settled) -> Settled:
        """The plan of the frontier that the user wants, or what was settled where any will do.
        Raises OptionError for a number that the frontier does not have."""
        number = self.options.pick
        if number is None:
            return settled
        points = settled.frontier
        if number > len(points):
            plans = "is 1 plan" if len(points) == 1 else f"are {len(points)} plans"
            raise OptionError(f"{number}: there {plans} to pick from", "pick")
        point = points[number - 1]
        place = "host" if point.trial is None else None
        program = point.program or self._rebuilt(point.kept, place)
        return Settled(program, settled.goals, "", point.trial, points)

    def _unsearched(self, program: Program) -> Settled:
        """A program that nothing was looked for beyond. Raises OptionError where the user asks for
        more plans."""
        if self.lists_plans:
            option = "frontier" if self.options.frontier else "pick"
            raise OptionError(
                "the errors of this model's plans cannot be simulated, so there is no list of them",
                option,
            )
        return Settled(program, self._asked())

    def _asked(self) -> tuple[Goal, ...]:
        """The goals that the user gave."""
        return tuple(Goal(name, value) for name, value in (self.options.quality or {}).items())

    def _applies(self) -> bool:
        """Whether there are samples to search by, and choices to make."""
        options = self.options
        partitioning = options.partitioning
        is_fixed = options.keep_float or partitioning.cuts or partitioning.place == "host"
        return (
            options.quality is not None
            and not is_fixed
            and not self.calibration.random
            and options.lowering[0] == "direct"
        )

    def _samples(self, program: Program) -> list[Sample]:
        """Calibration samples, evenly spread."""
        total = len(self.calibration)
        affordable = max(int(CHEAP_WORK / _work(program)), total // PART)
        counted = any(isinstance(reading, Text) for reading in self.truth.readings())
        least = LEAST_TEXTS if counted else LEAST_SAMPLES
        count = min(max(affordable, least), MOST_SAMPLES, total)
        return [self.calibration.loaders[index * total // count]() for index in range(count)]

    def _goals(self, trials: Trials, trial: Trial) -> tuple[Goal, ...]:
        asked = self._asked()
        for goal in asked:
            require_measured(goal, trial.quality)
        if asked:
            return asked
        default = default_goal(trials.truth.readings(), trial.quality)
        return () if default is None else (default,)

    def _are_met(self, goals: Sequence[Goal], trial: Trial) -> bool:
        """Whether results are good enough; where nobody asked for more, also where only classes
        that are nearly equal in float are exchanged."""
        if not self.options.quality and trial.noise <= GOOD:
            return True
        return all(goal.is_met(trial.quality) for goal in goals)

    def _choices(self, program: Program, trials: Trials) -> list[Choice]:
        """What may move to the host."""
        most_runs = self._most_runs(program)
        step = self.progress("finding what contributes to the error", 0)
        noises = measure(trials, most_runs, step)
        pins = self.options.partitioning.pins
        movable = [node for node in _tpu_nodes(program) if not is_pinned(node, pins)]
        return choices(program, trials.simulation.roundings, noises, set(movable))

    def _most_runs(self, program: Program) -> int:
        """Runs of samples to measure roundings with: as many as the build takes without a search,
        or what is cheap."""
        build_runs = len(self.calibration) + 4 * len(self.truth.samples)
        return max(build_runs, int(CHEAP_WORK / _work(program)))

    def _chosen(
        self, state: _State, trials: Trials, found: Sequence[Choice], goals: Sequence[Goal]
    ) -> list[_Offer]:
        """Plans in the order to build them: the fastest one that reaches the goals in simulation,
        after more accurate ones that are nearly as fast, then faster ones."""
        offers = _Offers(self, state, trials, [choice for choice in found if choice.nodes])
        if not offers.count:
            return []
        wanted = [goal.tightened() for goal in goals]
        # Noise falls along the choices, so those that reach the goals are the last ones.
        low, high = 0, offers.count - 1
        while low < high:
            middle = (low + high) // 2
            if self._are_met(wanted, offers.trial(middle)):
                high = middle
            else:
                low = middle + 1
        # Predictions do not tell times apart that are so near to each other.
        most = NEAR * offers.of(low).plan.objective
        last = low
        while last + 1 < offers.count and offers.of(last + 1).plan.objective <= most:
            last += 1
        return [offers.of(index) for index in range(last, max(low - MOST_ROUNDS, 0) - 1, -1)]

    def _refined(
        self,
        first: _State,
        offered: Sequence[_Offer],
        goals: Sequence[Goal],
        samples: Sequence[Sample],
    ) -> tuple[_State, str]:
        """Build what was chosen, and look again where it misses the goals still; with a note where
        nothing reaches them."""
        host = self._host_seconds(first.program)
        limit = self._limit(first, host)
        state = first
        for _ in range(MOST_ROUNDS):
            offer = _affordable(offered, limit)
            if offer is None:
                break
            program = self._rebuilt(offer.kept)
            with Simulation(program) as simulation:
                trials = Trials(simulation, samples, self.truth)
                trial = trials.trial(simulation.roundings)
                offered = []
                if trial.noise > WORTH * state.trial.noise:
                    break
                state = _State(program, offer.kept, trial)
                if self._are_met(goals, trial):
                    return state, ""
                if len(samples) * MOST_TRIALS > self._most_runs(program):
                    # Another round would take longer than the build did.
                    break
                offered = self._chosen(state, trials, self._choices(program, trials), goals)
        is_pinned_there = "tpu" in self.options.partitioning.pins.values()
        if state.trial.noise > BROKEN and host <= limit and not is_pinned_there:
            # What is mostly error is worse than nothing from the Edge TPU.
            program = self._rebuilt(frozenset(), "host")
            return _State(program, frozenset(), state.trial), ""
        return state, self._needs(goals, offered, host)

    def _limit(self, first: _State, host: float) -> float:
        """How many seconds a plan may take. A bad one is no faster than it should be, but no plan
        may be much slower than the host alone, which loses nothing."""
        seconds = first.program.plan.objective
        slower = MOST_SLOWER * seconds
        if self.options.quality or verdict.findings(first.trial.quality):
            return max(host, slower)
        return max(min(host, slower), SLOWER * seconds)

    def _needs(self, goals: Sequence[Goal], offered: Sequence[_Offer], host: float) -> str:
        """What reaches goals that the plan does not."""
        wanted = " and ".join(map(str, goals))
        seconds = offered[0].plan.objective if offered else host
        if seconds < host and not self.options.quality:
            flags = " ".join(f"--quality {goal}" for goal in goals)
            return f"a plan of about {1e3 * seconds:.3g} ms comes nearer: {flags}"
        where = f"on the host alone, in {1e3 * host:.3g} ms: --place host"
        if all(goal.is_below_float for goal in goals):
            return f"{wanted} is reached {where}"
        return f"float32 itself may not reach {wanted}; it comes nearest {where}"

    def _host_seconds(self, program: Program) -> float:
        """What the host alone takes, as the manifest has it; for requests at a rate, as planned."""
        if program.alone is None or self.options.partitioning.objective == "p95":
            return self.planned(program, frozenset(), place="host").objective
        return program.alone.in_float

    def _host_point(self, program: Program) -> Point:
        return Point(frozenset(), self._host_seconds(program), None)

    def _rebuilt(self, kept: Collection[str], place: str | None = None) -> Program:
        return self.quantized(self._partitioning(kept, place))

    def planned(self, program: Program, kept: Collection[str], place: str | None = None) -> Plan:
        """The plan that a program would get, roughly."""
        options = self._partitioning(kept, place)
        quick = replace(options, seconds=min(options.seconds, PLANNING_SECONDS))
        return partition(program.model, program.target, quick)

    def _partitioning(self, kept: Collection[str], place: str | None) -> PartitionOptions:
        options = self.options.partitioning
        if place is not None:
            return replace(options, place=place, pins={})  # type: ignore[arg-type]
        return replace(options, kept=tuple(sorted({*options.kept, *kept})))

    def _frontier(
        self, first: _State, trials: Trials, found: Sequence[Choice]
    ) -> tuple[Point, ...]:
        """Plans from the fastest to the most accurate, the host alone last."""
        choices = [choice for choice in found if choice.nodes]
        offers = _Offers(self, first, trials, choices)
        ranked = [Selection((i,), c.seconds, c.noise) for i, c in enumerate(choices)]
        points = [Point(frozenset(), first.program.plan.objective, first.trial)]
        for selection in spread(ranked, MOST_PLANS):
            (index,) = selection.choice
            offer = offers.of(index)
            if offer.uses_tpu:
                points.append(Point(offer.kept, offer.plan.objective, offers.trial(index)))
        return unbeaten([*points, self._host_point(first.program)])


@dataclass(frozen=True)
class _Offer:
    """Source nodes to keep in float, and about the plan that this gives."""

    kept: frozenset[str]
    plan: Plan

    @property
    def uses_tpu(self) -> bool:
        return any(segment.device == "tpu" for segment in self.plan.segments)


class _Offers:
    """Choices as plans, each planned once, when it is looked at."""

    def __init__(
        self, search: Search, state: _State, trials: Trials, found: Sequence[Choice]
    ) -> None:
        self.count = len(found)
        self._search = search
        self._state = state
        self._trials = trials
        self._found = found
        self._offers: dict[int, _Offer] = {}

    def of(self, index: int) -> _Offer:
        if index not in self._offers:
            names = {origin_of(node) for node in self._found[index].nodes}
            kept = self._state.kept | names
            self._offers[index] = _Offer(kept, self._search.planned(self._state.program, kept))
        return self._offers[index]

    def trial(self, index: int) -> Trial:
        """What is left of the roundings where that plan has nodes on the Edge TPU."""
        on_host = {n for s in self.of(index).plan.segments if s.tpu is None for n in s.nodes}
        return self._trials.trial(self._trials.simulation.active(on_host))


def _affordable(offered: Sequence[_Offer], limit: float) -> _Offer | None:
    """The first plan that takes at most `limit` seconds and uses the Edge TPU."""
    for offer in offered:
        if offer.uses_tpu and offer.plan.objective <= limit:
            return offer
    return None


def _tpu_nodes(program: Program) -> list[ir.Node]:
    found = []
    for segment in program.plan.segments:
        if segment.device == "tpu":
            found += segment.nodes
    return found


def _work(program: Program) -> float:
    """About what a run of a sample in simulation takes, in multiply-accumulates."""
    work = 1.0
    for node in program.model.graph:
        work += program.plan.costs[node].macs
        for value in node.outputs:
            if is_static(value):
                work += VALUE_WORK * element_count(value)
    return work
