"""The devices of a bundle: found by name, which of them runs which segment, and which takes over
from one that is lost."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

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
from compiler.runtime.manifest import ProgramEntry, SegmentEntry

ON_LOSS = ("move", "cpu", "stop")
_MOST_SIMULATED = 64


def parse(text: str) -> list[Device]:
    """Devices by name: "auto" is every Edge TPU that libedgetpu finds, "cpu" none, "usb:0,pci:1"
    these two, "sim:4" four simulated ones, "ray" or "ray:HEAD:6379" those of a Ray cluster
    (cluster.py).

    Raises DeviceChoiceError for what is not there.
    """
    if text == "cpu":
        return []
    if text == "auto":
        return _all_edge_tpus()
    kind, _, rest = text.partition(":")
    if kind == "ray":
        return _of_cluster(text, rest or None)
    simulated = parse_simulated(text)
    if simulated is not None:
        return simulated
    names = list(dict.fromkeys(text.split(",")))
    if not all(_is_name(name) for name in names):
        raise DeviceChoiceError(
            f"'{text}': write auto, cpu, sim:2, ray, or names such as usb:0,pci:0"
        )
    return _named(text, names)


def parse_simulated(text: str, slowdown: float = 1.0) -> list[Device] | None:
    """The devices of "sim:4"; None for any other text."""
    kind, _, rest = text.partition(":")
    if kind != "sim" or not rest.isdecimal() or not 1 <= int(rest) <= _MOST_SIMULATED:
        return None
    return [Simulated(f"sim:{number}", slowdown) for number in range(int(rest))]


def _all_edge_tpus() -> list[Device]:
    try:
        return list(edge_tpus())
    except OSError:
        return []  # without libedgetpu there are none


def _is_name(text: str) -> bool:
    kind, _, number = text.partition(":")
    return kind in DEVICE_TYPES and number.isdecimal()


def _named(text: str, names: Sequence[str]) -> list[Device]:
    try:
        found = {device.name: device for device in edge_tpus()}
    except OSError as error:
        raise DeviceChoiceError(f"'{text}': {error}; `doctor` tells more") from error
    for name in names:
        if name not in found:
            there = ", ".join(found) or "none"
            raise DeviceChoiceError(f"'{name}' is not there; libedgetpu finds {there}")
    return [found[name] for name in names]


def _of_cluster(text: str, address: str | None) -> list[Device]:
    try:
        from compiler.runtime import cluster
    except ImportError as error:
        raise DeviceChoiceError(
            f"'{text}': {error}: pip install 'coral-bundle[cluster]'"
        ) from error
    try:
        found = cluster.nodes(address)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise DeviceChoiceError(f"'{text}': no Ray cluster: {reason}") from error
    if not found:
        raise DeviceChoiceError(f"'{text}': no node has the resource {cluster.RESOURCE}")
    return found


def tpu_numbers(segment: SegmentEntry) -> list[int]:
    """The Edge TPUs that a segment is planned for, in the order in which they take requests; none
    for one of the host."""
    if segment["tpu"] is None:
        return []
    return [segment["tpu"], *segment.get("replicas", [])]


@dataclass(frozen=True)
class HostThreads:
    """How segments share the CPU: `workers` run at once, each with its share of `count` threads.

        Runner(bundle, threads=HostThreads(4, workers=2))

    By default there are as many workers as the plan took the host to have, and no more than threads
    (`host_slots` in the manifest; one where it does not say).
    """

    count: int = 2
    workers: int | None = None

    @classmethod
    def of(cls, threads: int | HostThreads) -> HostThreads:
        """A number of threads that share the work by default, or what is given."""
        return threads if isinstance(threads, HostThreads) else cls(threads)

    def workers_for(self, programs: Sequence[ProgramEntry]) -> int:
        """How many segments of some programs, which share the CPU, run at once."""
        if self.workers is not None:
            return self.workers
        planned = [program["prediction"].get("host_slots", 1) for program in programs]
        return min(self.count, *planned)


class Fleet:
    """Which device runs which segment, and which takes over from one that is lost.

    The plan numbers its Edge TPUs, and each number is a place. At first place k has the k-th Edge
    TPU that is there; where there are fewer, several numbers share one. A segment with replicas has
    several places, which take requests in turn. Segments that edgetpu_compiler has not compiled run
    on the CPU, and so does everything where no Edge TPU is left.

    A device that fails is opened anew once. When it fails again before a run went well, it is lost,
    and `on_loss` decides about its places: "move" gives them to the other Edge TPUs in turn, "cpu"
    to the CPU, and "stop" to nobody: the error ends the run.

    `tpus` are devices, or their names as `parse` takes them. Raises ValueError for an unknown
    `on_loss`, DeviceChoiceError for devices that are not there.
    """

    def __init__(self, tpus: str | Sequence[Device], cpu: Cpu, on_loss: str = "move") -> None:
        if isinstance(tpus, str):
            tpus = parse(tpus)
        if on_loss not in ON_LOSS:
            raise ValueError(f"on_loss '{on_loss}': choose from {', '.join(ON_LOSS)}")
        self.tpus = list(tpus)
        self.cpu = cpu
        self.on_loss = on_loss
        self.notices: list[str] = []
        self._places: list[Device] = list(tpus)
        self._failed_once: set[Device] = set()
        self._lock = threading.Lock()

    @classmethod
    def of(
        cls,
        devices: str | Sequence[Device],
        threads: int | HostThreads,
        *programs: ProgramEntry,
        on_loss: str = "move",
    ) -> Fleet:
        """The fleet for some programs. Its notices say what a user would not expect of where they
        run."""
        threads = HostThreads.of(threads)
        # Threads may spin where a program is one segment: nothing else wants the cores meanwhile.
        spin = all(len(program["segments"]) == 1 for program in programs)
        fleet = cls(devices, Cpu(threads.count, spin, threads.workers_for(programs)), on_loss)
        segments = chain.from_iterable(program["segments"] for program in programs)
        planned = [segment for segment in segments if segment["tpu"] is not None]
        fleet._notice_missing(planned)
        return fleet

    @property
    def devices(self) -> list[Device]:
        """All that may be asked to run something."""
        return [self.cpu, *self.tpus]

    def device(self, segment: SegmentEntry, request: int = 0) -> Device:
        """The device that runs a segment of a request now, which has a number for its turn."""
        numbers = tpu_numbers(segment)
        places = self._places
        if not numbers or not places:
            return self.cpu
        number = numbers[request % len(numbers)]
        device = places[number % len(places)]
        # libedgetpu runs compiled files only; other devices run the plain one.
        if isinstance(device, EdgeTpu) and segment["compiled"] is None:
            return self.cpu
        return device

    def _notice_missing(self, planned: Sequence[SegmentEntry]) -> None:
        """Say what of the plan is not there; `planned` are the segments for Edge TPUs."""
        if not planned:
            return
        number = len(set(chain.from_iterable(map(tpu_numbers, planned))))
        uncompiled = sum(segment["compiled"] is None for segment in planned)
        has_edge_tpu = any(isinstance(device, EdgeTpu) for device in self.tpus)
        if not self.tpus:
            wanted = _edge_tpus(number)
            self.tell(f"no Edge TPU: the {len(planned)} segments for {wanted} run on the CPU")
        elif uncompiled and has_edge_tpu:
            self.tell(
                f"{uncompiled} segments are not compiled and run on the CPU: `compile` the bundle"
            )
        elif len(self.tpus) < number:
            self.tell(
                f"planned for {_edge_tpus(number)}, {len(self.tpus)} there: "
                "they evict each other's parameters"
            )

    def tell(self, text: str) -> None:
        """Add a notice, once."""
        with self._lock:
            if text not in self.notices:
                self.notices.append(text)
                log.warning("%s", text)

    def worked(self, device: Device) -> None:
        """Note that a run went well: an earlier failure of the device is forgotten."""
        self._failed_once.discard(device)

    def failed(self, device: Device, error: DeviceError) -> None:
        """Note that a device failed; whoever noticed then asks `device` where to try again.

        The first failure is forgiven, the second loses the device. Raises the error where `on_loss`
        is "stop".
        """
        with self._lock:
            if device not in self._places:
                return  # another thread saw it fail as well, and its places are taken already
            if device not in self._failed_once:
                self._failed_once.add(device)
                # As text: a log record that is kept would keep the error, and that the device open.
                log.warning("%s", f"{error}; opening it anew")
                return
            if self.on_loss == "stop":
                raise error
            heirs = self._hand_over(device)
        self.tell(f"{error}; {device.name} is lost, {heirs}")

    def _hand_over(self, lost: Device) -> str:
        """Give the places of a lost device to others, and say who has them; `_lock` is held."""
        if self.on_loss == "cpu":
            self._places = [self.cpu if device is lost else device for device in self._places]
            return "the CPU takes over"
        left = [device for device in dict.fromkeys(self._places) if device is not lost]
        if not left:
            self._places = []
            return "the CPU takes over"
        # In turn, so that not one of them gets all the work.
        places = []
        orphans = 0
        for device in self._places:
            if device is lost:
                places.append(left[orphans % len(left)])
                orphans += 1
            else:
                places.append(device)
        # A new list: `device` reads the old one or this one, without the lock.
        self._places = places
        names = ", ".join(device.name for device in left)
        return f"{names} take over"


def _edge_tpus(number: int) -> str:
    return f"{number} Edge TPU{'s' if number > 1 else ''}"
