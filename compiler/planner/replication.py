"""The best stages between given places where several TPUs may hold the same one and take requests
in turn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compiler.planner.problem import HOST, INFINITE, Objective
from compiler.planner.programme import Course, Step

# The best pace is known so well, as a share of itself.
_NEAR = 1e-4
# What rounding may add to a stage's time, as a share of it.
_ROUNDING = 1e-9


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
        needs = self._needs(limit)
        before, _, _ = self._sums(self.tpu, self.host, needs)
        # From the end: places in reverse, stages backwards.
        turned = [matrix[::-1, ::-1].T for matrix in (self.tpu, self.host, needs)]
        behind, _, _ = self._sums(*turned)
        behind = behind[:, ::-1]
        least = np.full_like(self.tpu, np.inf)
        ends = np.arange(len(needs))
        for used in range(self.tpus + 1):
            left = self.tpus - used - needs
            rest = np.where(left < 0, np.inf, behind[np.maximum(left, 0), ends])
            np.minimum(least, before[used][:, None] + self.tpu + rest, out=least)
        return least

    def _needs(self, pace: float) -> np.ndarray:
        """How many TPUs each stage needs; more than there are where it is not allowed."""
        most = self.tpus + 1
        if pace == INFINITE:
            return np.where(np.isfinite(self.tpu), 1, most)
        shares = np.minimum(self.tpu * (1 - _ROUNDING) / max(pace, 1.0), most)
        return np.maximum(np.ceil(shares), 1).astype(np.int64)

    def _best_pace(self) -> float:
        """The best pace of the TPUs, or one that is nearly as good."""
        low = high = max(self.least_pace, 1.0)
        reached = self._reached(high)
        while reached is None and high < _largest(self.tpu):
            low, high = high, 1.05 * high if self.least_pace else 2 * high
            reached = self._reached(high)
        if reached is None:
            return INFINITE
        high = min(high, max(reached, low))
        while high - low > _NEAR * high:
            middle = (low + high) / 2
            reached = self._reached(middle)
            if reached is None:
                low = middle
            else:
                high = max(reached, low)
        self.least_pace = low
        return high

    def _reached(self, pace: float) -> float | None:
        """The pace of a plan that is at least so fast; None where there is none."""
        needs = self._needs(pace)
        hosted = np.isfinite(self.host)
        counts = np.where(hosted, 0, needs)
        shares = np.where(hosted, 0.0, self.tpu / needs)
        fewest = np.zeros(len(needs), np.int64)
        reached = np.zeros(len(needs))
        for place in range(1, len(needs)):
            totals = fewest[:place] + counts[:place, place]
            begin = int(totals.argmin())
            fewest[place] = totals[begin]
            reached[place] = max(reached[begin], shares[begin, place])
        return float(reached[-1]) if fewest[-1] <= self.tpus else None

    def _least(self, pace: float) -> Course | None:
        """The plan with the least sum at this pace."""
        needs = self._needs(pace)
        sums, came, on_host = self._sums(self.tpu, self.host, needs)
        used = int(sums[:, -1].argmin())
        value = float(sums[used, -1])
        if value == INFINITE:
            return None
        found: list[tuple[int, int, int]] = []
        place = len(needs) - 1
        while place:
            begin = int(came[used, place])
            copies = 0 if on_host[used, place] else int(needs[begin, place])
            found.append((begin, place, copies))
            used, place = used - copies, begin
        return Course(_steps(found[::-1]), value, pace)

    def _sums(
        self, tpu: np.ndarray, host: np.ndarray, needs: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """By TPUs that may be used, and by place: the least sum to get there, where the last stage
        begins, and whether the host has that."""
        count = len(tpu)
        used = np.arange(self.tpus + 1)
        sums = np.full((self.tpus + 1, count), np.inf)
        sums[:, 0] = 0.0
        came = np.zeros(sums.shape, np.int64)
        on_host = np.zeros(sums.shape, bool)
        for place in range(1, count):
            begins = np.flatnonzero(needs[:place, place] <= self.tpus)
            hosted = np.flatnonzero(np.isfinite(host[:place, place]))
            origins = np.concatenate([begins, hosted])
            if not len(origins):
                continue
            left = used[:, None] - needs[begins, place]
            reached = np.where(left >= 0, sums[np.maximum(left, 0), begins], np.inf)
            through_tpu = reached + tpu[begins, place]
            through_host = sums[:, hosted] + host[hosted, place]
            steps = np.hstack([through_tpu, through_host])
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
