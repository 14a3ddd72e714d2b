"""What a user asks of the partition."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from compiler import planner
from compiler.errors import OptionError
from compiler.targets import Host
from compiler.validation import require_choice, require_count, require_number

DeviceKind = Literal["tpu", "host"]
PlanObjective = Literal["latency", "throughput", "p95"]
PlacePolicy = Literal["tpu", "host", "auto"]
MOST_TPUS = 64
# Requests per second.
LEAST_RATE = 1e-3


@dataclass(frozen=True)
class PartitionOptions:
    """Choices that decide which node runs where.

    tpus:       how many Edge TPUs there are, 1 to 64
    objective:  "latency" makes one inference fast, "throughput" a pipeline of them, "p95" the
                slowest of twenty requests that come at `rate`
    rate:       requests per second that are planned for; only with "p95", which needs it
    place:      "tpu" gives an Edge TPU all that it takes, "auto" what is predicted to be faster
                there, "host" nothing. None is "tpu"; builds and plans make it "auto"
    needs_tpu:  with "auto", an Edge TPU gets something even where the host alone is as fast
    pins:       names of nodes (with * and ?) and the device that each is pinned to
    cuts:       names of nodes behind which a segment ends
    host:       name or file of the host, for predictions of its CPU and of the link that it drives
    seconds:    how much work a search may do, in seconds of an x86 core; a plan takes two to three
                searches. Work is counted, not time, so that a model has the same plan everywhere
    host_int8:  the host multiplies normalised rows in int8 too, by the weights of the Edge TPU
    kept:       names of nodes that stay on the host for accuracy
    only:       names of nodes (with * and ?) that may go to an Edge TPU; all of them by default
    host_bytes: how many bytes of weights a host segment may hold; it ends in front of a norm

    Raises OptionError for values that no partition can meet, and for a host that is not known.
    """

    tpus: int = 1
    objective: PlanObjective = "latency"
    place: PlacePolicy | None = None
    pins: Mapping[str, DeviceKind] = field(default_factory=dict)
    cuts: tuple[str, ...] = ()
    host: str = "pi5"
    seconds: float = 3.0
    host_int8: bool = False
    kept: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    host_bytes: int | None = None
    rate: float | None = None
    needs_tpu: bool = True

    def __post_init__(self) -> None:
        require_count("tpus", self.tpus, 1, MOST_TPUS)
        require_choice("objective", self.objective, get_args(PlanObjective))
        if self.objective == "p95" and self.rate is None:
            raise OptionError("p95: needs a rate of requests, e.g. 30/s", "objective")
        if self.objective != "p95" and self.rate is not None:
            raise OptionError(f"{self.rate:g}: only the objective p95 takes a rate", "rate")
        if self.rate is not None:
            require_number("rate", self.rate, LEAST_RATE)
        if self.place is not None:
            require_choice("place", self.place, get_args(PlacePolicy))
        for device in self.pins.values():
            require_choice("pins", device, get_args(DeviceKind))
        require_number("seconds", self.seconds, 0)
        if self.host_bytes is not None:
            require_count("host_bytes", self.host_bytes, 1)
        Host.load(self.host)

    @property
    def sought(self) -> planner.Objective:
        """What a single plan is best in; plans for a load are chosen among such."""
        return "throughput" if self.objective == "throughput" else "latency"
