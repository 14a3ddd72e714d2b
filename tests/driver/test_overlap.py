"""How long parts of a chunk take that overlap, by hand."""

from __future__ import annotations

import pytest

from compiler.driver.overlap import Step, makespan


def test_one_part_runs_segment_after_segment() -> None:
    steps = [Step(None, 1.0), Step(0, 2.0), Step(None, 3.0)]
    assert makespan(steps, 1) == pytest.approx(6.0)
    assert makespan([], 2) == 0.0


def test_the_host_works_while_the_edge_tpu_does() -> None:
    # Host 0-1 first, 1-2 second; Edge TPU 1-3 first, 3-5 second; host 3-6 first, 6-9 second.
    steps = [Step(None, 1.0), Step(0, 2.0), Step(None, 3.0)]
    assert makespan(steps, 2) == pytest.approx(9.0)


def test_a_busy_host_is_the_bound() -> None:
    steps = [Step(None, 2.0), Step(0, 0.5), Step(None, 2.0), Step(0, 0.5), Step(None, 2.0)]
    # The host is never idle: the Edge TPU's time is hidden.
    assert makespan(steps, 2) == pytest.approx(12.0)
    assert makespan(steps, 1) == pytest.approx(7.0)


def test_a_part_waits_for_the_one_before_it_in_each_segment() -> None:
    # Two Edge TPUs: without that rule the second part could not be late either.
    steps = [Step(0, 3.0), Step(1, 1.0)]
    assert makespan(steps, 2) == pytest.approx(7.0)
