"""A plan: the segments in the order they run, where every node is and why, and predictions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain

import onnx_ir as ir

from compiler import planner
from compiler.device.cost import Cost
from compiler.device.draft import layers_of
from compiler.partition.options import DeviceKind, PartitionOptions
from compiler.targets import Host, Layer, Target


@dataclass(frozen=True)
class Placement:
    """Where a node runs and the sentence that says why."""

    device: DeviceKind
    reason: str


@dataclass
class Placements:
    """Where every node goes and what it costs; `free` nodes may go either way."""

    of: dict[ir.Node, Placement]
    costs: Mapping[ir.Node, Cost]
    pinned: set[ir.Node]
    free: set[ir.Node]

    def on_host(self, node: ir.Node) -> bool:
        return self.of[node].device == "host"


@dataclass
class Segment:
    """Nodes that run together.

    index:           place in the order of execution
    tpu:             number of the Edge TPU that it is planned for, None for the host
    replicas:        numbers of further Edge TPUs that hold it and take requests in turn
    inputs, outputs: activations that cross its boundary
    macs:            multiply-accumulates of one inference
    parameter_bytes: bytes of its parameters, as they are stored where it runs
    cached:          parameter bytes that stay in the SRAM between inferences
    streamed:        parameter bytes that are sent at each inference
    times:           predicted seconds by what they are spent on
    """

    index: int
    tpu: int | None = None
    nodes: list[ir.Node] = field(default_factory=list)
    inputs: list[ir.Value] = field(default_factory=list)
    outputs: list[ir.Value] = field(default_factory=list)
    macs: int = 0
    parameter_bytes: int = 0
    cached: int = 0
    streamed: int = 0
    times: dict[str, float] = field(default_factory=dict)
    replicas: tuple[int, ...] = ()

    @property
    def device(self) -> DeviceKind:
        return "host" if self.tpu is None else "tpu"

    @property
    def seconds(self) -> float:
        return sum(self.times.values())

    @property
    def layers(self) -> list[Layer]:
        return list(chain.from_iterable(map(layers_of, self.nodes)))


def planned_host(options: PartitionOptions) -> tuple[int, float]:
    """How many segments the host is planned to run at once, and how many times as much it gets
    done than with one at a time: of a single request it runs one."""
    if options.sought == "latency":
        return 1, 1.0
    host = Host.load(options.host)
    return int(host.slots), host.slots_gain


@dataclass(frozen=True)
class Plan:
    """Segments in the order they run, the placement and cost of every node, and the options.

    `gap` bounds how far the plan is from the best one, as a share of its objective; None where no
    solver has looked. `host_slots` says how many segments of different requests the host runs at
    once; `p95` are the seconds in which 95% of the requests are answered that come at the rate of
    the options.
    """

    segments: list[Segment]
    placements: Mapping[ir.Node, Placement]
    costs: Mapping[ir.Node, Cost]
    options: PartitionOptions
    gap: float | None = None
    host_slots: int = 1
    p95: float | None = None

    @property
    def host_gain(self) -> float:
        """How many times as much the host gets done with its slots as with one segment at a
        time."""
        return Host.load(self.options.host).slots_gain if self.host_slots > 1 else 1.0

    @property
    def tasks(self) -> planner.Tasks:
        """The segments of one inference, with what each needs."""
        maker: dict[ir.Value, int] = {}
        needs: list[list[int]] = []
        devices: list[int] = []
        for index, segment in enumerate(self.segments):
            needs.append(sorted({maker[value] for value in segment.inputs if value in maker}))
            devices.append(planner.HOST if segment.tpu is None else segment.tpu)
            maker |= dict.fromkeys(segment.outputs, index)
        seconds = [segment.seconds for segment in self.segments]
        return planner.Tasks(seconds, devices, needs)

    @property
    def schedule(self) -> list[planner.Interval]:
        """When each segment of a single inference runs, in seconds from its start.

        Segments that do not need each other run at once where their devices differ.
        """
        return planner.schedule(self.tasks)

    @property
    def latency(self) -> float:
        """Predicted seconds of one inference."""
        return max((interval.end for interval in self.schedule), default=0.0)

    @property
    def loads(self) -> dict[int | None, float]:
        """Predicted seconds of one inference on the host (None) and on each Edge TPU; of those that
        take requests in turn, on the first."""
        found: dict[int | None, float] = {}
        for segment in self.segments:
            found[segment.tpu] = found.get(segment.tpu, 0.0) + segment.seconds
        return found

    @property
    def shares(self) -> dict[int | None, float]:
        """As `loads`, divided by the Edge TPUs that take requests in turn, and by what the host
        gains where it runs segments of several requests at once: the seconds between two results
        that each device alone would allow."""
        copies: dict[int | None, float] = {
            segment.tpu: 1 + len(segment.replicas) for segment in self.segments
        }
        copies[None] = self.host_gain
        return {device: load / copies[device] for device, load in self.loads.items()}

    @property
    def interval(self) -> float:
        """Predicted seconds between two results of the full pipeline."""
        return max(self.shares.values(), default=0.0)

    @property
    def bound_by(self) -> int | None:
        """What sets the interval: the number of an Edge TPU, None for the host."""
        shares = self.shares
        return max(shares, key=shares.__getitem__, default=None)

    @property
    def objective(self) -> float:
        """The seconds that the options ask to be small."""
        if self.p95 is not None:
            return self.p95
        return self.latency if self.options.sought == "latency" else self.interval

    def reload(self, target: Target) -> float:
        """Seconds that an inference takes longer where the segments of an Edge TPU do not share a
        caching token.

        They then evict each other's parameters, and all of them are sent at each run.
        """
        caching = [s for s in self.segments if s.tpu is not None and s.cached]
        count: dict[int | None, int] = {}
        for segment in caching:
            count[segment.tpu] = count.get(segment.tpu, 0) + 1
        evicted = sum(s.cached for s in caching if count[s.tpu] > 1)
        return evicted / target.stream
