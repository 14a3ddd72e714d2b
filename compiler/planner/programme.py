"""The best stages between given places, by dynamic programming."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compiler.planner.problem import HOST, INFINITE, Objective


@dataclass(frozen=True)
class Step:
    """A stage between two places. `copies` TPUs take requests in turn; `device` is the first."""

    device: int
    begin: int
    end: int
    copies: int = 1


@dataclass(frozen=True)
class Course:
    """The best plan of a programme: its stages, and what they take.

    value  what was to be small
    limit  what no TPU's stage exceeds, divided by its copies
    """

    steps: list[Step]
    value: float
    limit: float


@dataclass(frozen=True)
class Programme:
    """Stages that follow each other, each from one place to a later one, or empty.

    devices  of the stages, in order
    tpu      matrix of the time of a TPU's stage, from the place where it begins to the one where it
             ends; infinite where there is no such stage, 0 on the diagonal
    host     the same of the host
    limit    what no device may exceed
    """

    devices: Sequence[int]
    tpu: np.ndarray
    host: np.ndarray
    limit: float = INFINITE

    def best(self, objective: Objective) -> Course | None:
        """The best plan from the first place to the last; None where there is none.

        Of the plans of a pipeline with the same pace, one with a low sum.
        """
        fastest = self._host_least(self.limit)
        if fastest is None or self._host_time(fastest) > self.limit:
            return None
        if objective == "latency":
            ends = self._ends(self._held(self.limit))
            assert ends is not None
            return Course(self._steps(ends), self._sum(ends), self.limit)
        pace = self._best_pace(self._host_time(fastest))
        fastest = self._host_least(pace)
        assert fastest is not None
        # Where the host sets the pace, TPUs need not be faster.
        limit = max(pace, self._host_time(fastest))
        least = self._ends(self._held(limit))
        ends = fastest if self._host_time(least) > limit else least
        assert ends is not None
        return Course(self._steps(ends), limit, limit)

    def least_through(self, limit: float) -> np.ndarray:
        """Of each TPU's stage the least sum of a plan that has it, with none above `limit`."""
        held = self._held(limit)
        before = self._reached(held)
        least = np.full_like(held, np.inf)
        behind = np.full(len(held), np.inf)
        behind[-1] = 0.0
        for device, reached in zip(reversed(self.devices), reversed(before), strict=True):
            stage = self.host if device == HOST else held
            with_rest = stage + behind[None, :]
            if device != HOST:
                np.minimum(least, reached[:, None] + with_rest, out=least)
            behind = with_rest.min(axis=1)
        return least

    def _held(self, limit: float) -> np.ndarray:
        return np.where(self.tpu <= limit, self.tpu, np.inf)

    def _reached(self, tpu: np.ndarray) -> list[np.ndarray]:
        """The least sum to each place before each stage."""
        reached = np.full(len(tpu), np.inf)
        reached[0] = 0.0
        before = []
        for device in self.devices:
            before.append(reached)
            stage = self.host if device == HOST else tpu
            reached = (reached[:, None] + stage).min(axis=0)
        return before

    def _steps(self, ends: Sequence[int]) -> list[Step]:
        begins = [0, *ends[:-1]]
        steps = map(Step, self.devices, begins, ends)
        return [step for step in steps if step.end > step.begin]

    def _sum(self, ends: Sequence[int]) -> float:
        total, begin = 0.0, 0
        for device, end in zip(self.devices, ends, strict=True):
            total += float((self.host if device == HOST else self.tpu)[begin, end])
            begin = end
        return total

    def _host_least(self, pace: float) -> list[int] | None:
        """The plan with the least time of the host with no TPU's stage above `pace`."""
        allowed = np.isfinite(self.tpu) & (self.tpu <= pace)
        return self._ends(np.where(allowed, 0.0, np.inf))

    def _host_time(self, ends: list[int] | None) -> float:
        """The time of the host in a plan; infinite where there is none."""
        if ends is None:
            return INFINITE
        total, begin = 0.0, 0
        for device, end in zip(self.devices, ends, strict=True):
            if device == HOST:
                total += float(self.host[begin, end])
            begin = end
        return total

    def _ends(self, tpu: np.ndarray) -> list[int] | None:
        """The plan with the least sum, with these times of the TPUs."""
        places = np.arange(len(tpu))
        reached = np.where(places == 0, 0.0, np.inf)
        came_from = []
        for device in self.devices:
            steps = reached[:, None] + (self.host if device == HOST else tpu)
            came = steps.argmin(axis=0)
            came_from.append(came)
            reached = steps[came, places]
        if reached[-1] == INFINITE:
            return None
        ends: list[int] = []
        place = len(tpu) - 1
        for came in reversed(came_from):
            ends.append(place)
            place = int(came[place])
        return ends[::-1]

    def _best_pace(self, host_least: float) -> float:
        """The pace of the TPUs with which the pipeline is fastest; the host takes `host_least` at
        least."""
        pace = self._pace_of_tpus()
        if self._host_time(self._host_least(pace)) <= max(pace, host_least):
            return pace
        # The host has less to do where TPUs have more: search the pace at which both are equal.
        paces = np.unique(self.tpu[(self.tpu >= pace) & (self.tpu <= self.limit)])
        paces = paces[np.isfinite(paces)]
        low, high = 0, len(paces) - 1
        while low < high:
            middle = (low + high) // 2
            if self._interval_at(paces[middle]) <= paces[middle]:
                high = middle
            else:
                low = middle + 1
        # Just below the pace at which the host keeps up, the host itself may set a better one.
        candidates = [float(paces[i]) for i in sorted({max(low - 1, 0), low})]
        return min(candidates, key=self._interval_at)

    def _pace_of_tpus(self) -> float:
        """The least that the slowest TPU takes, whatever the host does."""
        allowed = np.where(np.isfinite(self.host), 0.0, np.inf)
        reached = np.full(len(self.tpu), np.inf)
        reached[0] = 0.0
        for device in self.devices:
            stage = allowed if device == HOST else self.tpu
            reached = np.maximum(reached[:, None], stage).min(axis=0)
        return float(reached[-1])

    def _interval_at(self, pace: float) -> float:
        return max(pace, self._host_time(self._host_least(pace)))
