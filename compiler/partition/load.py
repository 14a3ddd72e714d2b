"""Plans under load: how long requests take that come at a given rate."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import onnx_ir as ir

from compiler import planner
from compiler.partition.plan import Plan
from compiler.targets import Host

# Of a hundred requests so many are answered in time.
SHARE = 0.95

Cut = tuple[ir.Model, Plan]
"""A model as it was cut, and the plan."""


def repeated(plan: Plan, copies: int) -> Plan:
    """The plan on several groups of Edge TPUs that take requests in turn."""
    own = max((segment.tpu + 1 for segment in plan.segments if segment.tpu is not None), default=0)
    segments = []
    for segment in plan.segments:
        further: tuple[int, ...] = ()
        if segment.tpu is not None:
            further = tuple(segment.tpu + own * copy for copy in range(1, copies))
        segments.append(replace(segment, replicas=further))
    return replace(plan, segments=segments)


def best_under_load(cuts: Iterable[Cut], rate: float) -> Cut:
    """Of plans, each with the host running one segment at a time and several, the one with which
    95% of the requests are answered soonest; then the one with the least latency."""
    found: list[Cut] = []
    for model, plan in cuts:
        slots = int(Host.load(plan.options.host).slots)
        for count in sorted({1, slots}):
            variant = replace(plan, host_slots=count)
            found.append((model, replace(variant, p95=p95(variant, rate))))
    return min(found, key=lambda cut: (cut[1].p95, cut[1].latency))


def p95(plan: Plan, rate: float) -> float:
    """Seconds in which 95% of the requests are answered, of simulated ones that come at `rate`."""
    tasks = plan.tasks
    if plan.host_slots > 1:
        # Each of the segments at once is slower than one alone.
        slower = plan.host_slots / Host.load(plan.options.host).slots_gain
        seconds = [
            time * slower if device == planner.HOST else time
            for time, device in zip(tasks.seconds, tasks.devices, strict=True)
        ]
        tasks = replace(tasks, seconds=seconds)
    turns = {s.tpu: [s.tpu, *s.replicas] for s in plan.segments if s.tpu is not None}
    at = planner.arrivals(rate, len(tasks.seconds))
    taken = planner.latencies(tasks, turns, {planner.HOST: plan.host_slots}, at)
    return planner.percentile(taken, SHARE)
