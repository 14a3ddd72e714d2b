"""What a user asks of the partition."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from compiler import planner
from compiler.errors import OptionError

DeviceKind = Literal["tpu", "host"]
PlacePolicy = Literal["tpu", "host", "auto"]


@dataclass(frozen=True)
class PartitionOptions:
    """Choices that decide which node runs where.

    tpus:       how many Edge TPUs there are
    objective:  "latency" makes one inference fast, "throughput" a pipeline of them
    place:      "tpu" gives an Edge TPU all that it takes, "auto" what is predicted to be faster
                there, "host" nothing
    pins:       names of nodes (with * and ?) and the device that each is pinned to
    cuts:       names of nodes behind which a segment ends
    host:       name or file of the host CPU, for predictions
    seconds:    about how long an x86 core searches. Work is counted, not time, so that the same
                model has the same plan on every machine
    host_int8:  the host multiplies normalised rows in int8 too, by the weights of the Edge TPU
    kept:       names of nodes that stay on the host for accuracy
    host_bytes: how many bytes of weights a host segment may hold; it ends in front of a norm

    Raises OptionError for values that no partition can meet.
    """

    tpus: int = 1
    objective: planner.Objective = "latency"
    place: PlacePolicy = "tpu"
    pins: Mapping[str, DeviceKind] = field(default_factory=dict)
    cuts: tuple[str, ...] = ()
    host: str = "pi5"
    seconds: float = 3.0
    host_int8: bool = False
    kept: tuple[str, ...] = ()
    host_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.tpus < 1:
            raise OptionError(f"tpus is {self.tpus}; there is at least one Edge TPU")
        _check_choice("objective", self.objective, get_args(planner.Objective))
        _check_choice("place", self.place, get_args(PlacePolicy))
        for pattern, device in self.pins.items():
            _check_choice(f"pin of '{pattern}'", device, get_args(DeviceKind))
        if self.host_bytes is not None and self.host_bytes < 1:
            raise OptionError(f"host_bytes is {self.host_bytes}; give a positive number of bytes")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise OptionError(f"{name} is '{value}'; choose from {', '.join(choices)}")
