"""The devices of a bundle: found by name, who runs which segment, and who takes over from a lost
one."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from compiler.runtime.devices import (
    DEVICE_TYPES,
    Cpu,
    Device,
    DeviceChoiceError,
    DeviceError,
    EdgeTpu,
    Simulated,
    edge_tpus,
    log,
)

ON_LOSS = ("move", "cpu", "stop")


def parse(text: str) -> list[Device]:
    """Devices by name: "auto" finds Edge TPUs, "cpu" takes none, "usb:0,pci:1" takes these, "sim:4"
    simulates four, "ray" or "ray:HEAD:6379" takes those of a Ray cluster (cluster.py).

    Raises DeviceChoiceError for what is not there.
    """
    if text == "cpu":
        return []
    if text == "auto":
        try:
            return list(edge_tpus())
        except OSError:
            return []
    kind, _, number = text.partition(":")
    if kind == "ray":
        return _cluster(text, number or None)
    if kind == "sim" and number.isdecimal() and 1 <= int(number) <= 64:
        return [Simulated(f"sim:{i}") for i in range(int(number))]
    names = list(dict.fromkeys(text.split(",")))
    if not all(map(_is_name, names)):
        raise DeviceChoiceError(
            f"'{text}': write auto, cpu, sim:2, ray, or names such as usb:0,pci:0"
        )
    try:
        found = {d.name: d for d in edge_tpus()}
    except OSError as error:
        raise DeviceChoiceError(f"'{text}': {error}; `doctor` tells more") from error
    for name in names:
        if name not in found:
            raise DeviceChoiceError(
                f"'{name}' is not there; libedgetpu finds {', '.join(found) or 'none'}"
            )
    return [found[name] for name in names]


def _cluster(text: str, address: str | None) -> list[Device]:
    try:
        from compiler.runtime import cluster
    except ImportError as error:
        raise DeviceChoiceError(
            f"'{text}': {error}: pip install 'coral-bundle[cluster]'"
        ) from error
    try:
        found = cluster.nodes(address)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise DeviceChoiceError(
            f"'{text}': no Ray cluster: {str(error).splitlines()[0]}"
        ) from error
    if not found:
        raise DeviceChoiceError(f"'{text}': no node has the resource {cluster.RESOURCE}")
    return found


def _is_name(text: str) -> bool:
    kind, _, number = text.partition(":")
    return kind in DEVICE_TYPES and number.isdecimal()


class Fleet:
    """The devices of one bundle: who runs which segment, and who takes over from one that is lost.

    Edge TPU k of the plan is the k-th that is there; where there are fewer, they share. Segments
    that edgetpu_compiler has not seen run on the CPU, and so does everything where no Edge TPU is
    left. A device that fails is opened anew once; when it fails again before a run went well, it is
    lost: with `on_loss` "move" the others take over, with "cpu" the CPU does, with "stop" the error
    ends the run.
    """

    def __init__(self, tpus: str | Sequence[Device], cpu: Cpu, on_loss: str = "move") -> None:
        tpus = parse(tpus) if isinstance(tpus, str) else tpus
        if on_loss not in ON_LOSS:
            raise ValueError(f"on_loss '{on_loss}': choose from {', '.join(ON_LOSS)}")
        self.tpus, self.cpu, self.on_loss = list(tpus), cpu, on_loss
        self.notices: list[str] = []
        self._places: list[Device] = list(tpus)
        self._failed: set[Device] = set()
        self._lock = threading.Lock()

    @classmethod
    def of(
        cls,
        devices: str | Sequence[Device],
        threads: int,
        *programs: Sequence[Mapping[str, Any]],
        on_loss: str = "move",
    ) -> Fleet:
        """For the segments of some programs; its notices say what a user would not expect of where
        they run."""
        fleet = cls(
            devices, Cpu(threads, alone=all(len(segments) == 1 for segments in programs)), on_loss
        )
        fleet._look([segment for segments in programs for segment in segments])
        return fleet

    @property
    def devices(self) -> list[Device]:
        """All that may be asked to run something."""
        return [self.cpu, *self.tpus]

    def device(self, segment: Mapping[str, Any]) -> Device:
        """Who runs a segment now."""
        if segment["tpu"] is None or not self._places:
            return self.cpu
        device = self._places[segment["tpu"] % len(self._places)]
        return self.cpu if isinstance(device, EdgeTpu) and segment["compiled"] is None else device

    def _look(self, segments: Sequence[Mapping[str, Any]]) -> None:
        planned = [s for s in segments if s["tpu"] is not None]
        if not planned:
            return
        number = len({s["tpu"] for s in planned})
        raw = [s for s in planned if s["compiled"] is None]
        if not self.tpus:
            self.tell(
                f"no Edge TPU: the {len(planned)} segments for {_tpus(number)} run on the CPU"
            )
        elif raw and any(isinstance(d, EdgeTpu) for d in self.tpus):
            self.tell(
                f"{len(raw)} segments are not compiled and run on the CPU: `compile` the bundle"
            )
        elif len(self.tpus) < number:
            self.tell(
                f"planned for {_tpus(number)}, {len(self.tpus)} there: they evict each other's parameters"
            )

    def tell(self, text: str) -> None:
        with self._lock:
            if text not in self.notices:
                self.notices.append(text)
                log.warning("%s", text)

    def worked(self, device: Device) -> None:
        self._failed.discard(device)

    def failed(self, device: Device, error: DeviceError) -> None:
        """Count a failure: the first is forgiven, the second loses the device. Raises the error
        where that ends all."""
        with self._lock:
            if device not in self._places:
                return
            if device not in self._failed:
                self._failed.add(device)
                log.warning(
                    "%s; opening it anew", str(error)
                )  # a record would keep the error, and that the device
                return
            if self.on_loss == "stop":
                raise error
            left = (
                [d for d in dict.fromkeys(self._places) if d is not device]
                if self.on_loss == "move"
                else []
            )
            orphans = iter(range(len(self._places)))
            if left:
                self._places = [
                    d if d is not device else left[next(orphans) % len(left)] for d in self._places
                ]
            elif self.on_loss == "move":
                self._places = []
            else:
                self._places = [self.cpu if d is device else d for d in self._places]
            heirs = f"{', '.join(d.name for d in left)} take over" if left else "the CPU takes over"
        self.tell(f"{error}; {device.name} is lost, {heirs}")


def _tpus(number: int) -> str:
    return f"{number} Edge TPU{'s' if number > 1 else ''}"
