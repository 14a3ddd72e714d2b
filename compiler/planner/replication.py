"""The best stages between given places where several TPUs may hold the same one and take requests
in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compiler.planner.problem import HOST, INFINITE, Objective
from compiler.planner.programme import Course, Step

# The best pace is known so well, as a share of itself.
_NEAR = 1e-4
# What rounding may add to a stage's time, as a share of it.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Column:
    """The stages that end at one place: where they begin, and their times; first those of TPUs,
    then those of the host."""

    begins: np.ndarray
    tpu: np.ndarray
    hosted: np.ndarray
    host: np.ndarray


class Replication:
    """As `Programme`, with any number of stages on `tpus` TPUs in all.

    Places are sorted: no stage ends before it begins. The host does the same in all plans. At a
    pace, a stage needs as many TPUs as paces go into its time. Times of `tpu` may rise between
    calls of `best`, and do not fall.
    """

    def __init__(self, tpus: int, tpu: np.ndarray, host: np.ndarray, limit: float) -> None:
        self.tpus, self.tpu, self.host, self.limit = tpus, tpu, host, limit
        # No plan is faster.
        self.least_pace = 0.0

    def best(self, objective: Objective) -> Course | None:
        """The best plan from the first place to the last; None where there is none."""
        if objective == "latency":
            return self._least(self.limit)
        pace = self._best_pace()
        course = self._least(pace)
        if course is None:
            return None
        host = sum(float(self.host[s.begin, s.end]) for s in course.steps if s.device == HOST)
        if host > pace:
            # TPUs need not be faster than the host.
            course = self._least(host)
            assert course is not None
        return Course(course.steps, max(self.least_pace, host), max(pace, host))

    def least_through(self, limit: float) -> np.ndarray:
        """Of each TPU's stage the least sum of a plan that has it, at this pace."""
        before, _, _ = self._sums(self._columns(self.tpu, self.host), limit)
        # From the end: places in reverse, stages backwards.
        turned = self._columns(self.tpu[::-1, ::-1].T, self.host[::-1, ::-1].T)
        behind = self._sums(turned, limit)[0][:, ::-1]
        needs = self._needs(self.tpu, limit)
        begins, ends = np.nonzero(needs <= self.tpus)
        copies = needs[begins, ends]
        rest = np.full(len(begins), np.inf)
        for used in range(self.tpus + 1):
            left = self.tpus - used - copies
            on_the_way = before[used, begins] + behind[np.maximum(left, 0), ends]
            np.minimum(rest, np.where(left < 0, np.inf, on_the_way), out=rest)
        least = np.full_like(self.tpu, np.inf)
        least[begins, ends] = rest + self.tpu[begins, ends]
        return least

    def _columns(self, tpu: np.ndarray, host: np.ndarray) -> list[Column]:
        """The stages that end at each place."""
        tpu, host = np.ascontiguousarray(tpu.T), np.ascontiguousarray(host.T)
        columns = []
        for place in range(len(tpu)):
            begins = np.flatnonzero(np.isfinite(tpu[place, :place]))
            hosted = np.flatnonzero(np.isfinite(host[place, :place]))
            columns.append(Column(begins, tpu[place, begins], hosted, host[place, hosted]))
        return columns

    def _needs(self, times: np.ndarray, pace: float) -> np.ndarray:
        """How many TPUs stages of these times need; more than there are where they cannot be."""
        most = self.tpus + 1
        if pace == INFINITE:
            return np.where(np.isfinite(times), 1, most)
        shares = np.minimum(times * (1 - _ROUNDING) / max(pace, 1.0), most)
        return np.maximum(np.ceil(shares), 1).astype(np.int64)

    def _best_pace(self) -> float:
        """The best pace of the TPUs, or one that is nearly as good."""
        columns = self._columns(self.tpu, self.host)
        low = high = max(self.least_pace, 1.0)
        reached = self._reached(high, columns)
        while reached is None and high < _largest(self.tpu):
            low, high = high, 1.05 * high if self.least_pace else 2 * high
            reached = self._reached(high, columns)
        if reached is None:
            return INFINITE
        high = min(high, max(reached, low))
        while high - low > _NEAR * high:
            middle = (low + high) / 2
            reached = self._reached(middle, columns)
            if reached is None:
                low = middle
            else:
                high = max(reached, low)
        self.least_pace = low
        return high

    def _reached(self, pace: float, columns: Sequence[Column]) -> float | None:
        """The pace of a plan that is at least so fast; None where there is none."""
        fewest = np.zeros(len(columns), np.int64)
        reached = np.zeros(len(columns))
        for place, column in enumerate(columns[1:], 1):
            needs = self._needs(column.tpu, pace)
            origins = np.concatenate([column.begins, column.hosted])
            copies = np.concatenate([needs, np.zeros(len(column.hosted), np.int64)])
            if not len(origins):
                fewest[place] = self.tpus + 1
                continue
            totals = fewest[origins] + copies
            best = int(totals.argmin())
            share = column.tpu[best] / needs[best] if best < len(needs) else 0.0
            fewest[place] = totals[best]
            reached[place] = max(reached[origins[best]], share)
        return float(reached[-1]) if fewest[-1] <= self.tpus else None

    def _least(self, pace: float) -> Course | None:
        """The plan with the least sum at this pace."""
        sums, came, on_host = self._sums(self._columns(self.tpu, self.host), pace)
        used = int(sums[:, -1].argmin())
        value = float(sums[used, -1])
        if value == INFINITE:
            return None
        found: list[tuple[int, int, int]] = []
        place = len(self.tpu) - 1
        while place:
            begin = int(came[used, place])
            copies = 0
            if not on_host[used, place]:
                copies = int(self._needs(self.tpu[begin, place], pace))
            found.append((begin, place, copies))
            used, place = used - copies, begin
        return Course(_steps(found[::-1]), value, pace)

    def _sums(
        self, columns: Sequence[Column], pace: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """By TPUs that may be used, and by place: the least sum to get there, where the last stage
        begins, and whether the host has that."""
        used = np.arange(self.tpus + 1)
        sums = np.full((self.tpus + 1, len(columns)), np.inf)
        sums[:, 0] = 0.0
        came = np.zeros(sums.shape, np.int64)
        on_host = np.zeros(sums.shape, bool)
        for place, column in enumerate(columns[1:], 1):
            needs = self._needs(column.tpu, pace)
            possible = np.flatnonzero(needs <= self.tpus)
            begins = column.begins[possible]
            origins = np.concatenate([begins, column.hosted])
            if not len(origins):
                continue
            left = used[:, None] - needs[possible]
            reached = np.where(left >= 0, sums[np.maximum(left, 0), begins], np.inf)
            through_host = sums[:, column.hosted] + column.host
            steps = np.hstack([reached + column.tpu[possible], through_host])
            best = steps.argmin(axis=1)
            sums[:, place] = steps[used, best]
            came[:, place] = origins[best]
            on_host[:, place] = best >= len(begins)
        return sums, came, on_host


def _largest(times: np.ndarray) -> float:
    return float(times[np.isfinite(times)].max(initial=0.0))


def _steps(found: Sequence[tuple[int, int, int]]) -> list[Step]:
    """Steps of (begin, end, copies), whose TPUs are numbered in order; no copies: the host's."""
    steps = []
    device = 0
    for begin, end, copies in found:
        if copies:
            steps.append(Step(device, begin, end, copies))
            device += 1
        else:
            steps.append(Step(HOST, begin, end))
    return steps
