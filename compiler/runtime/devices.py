"""What segments run on: Edge TPUs through libedgetpu, the CPU, simulated Edge TPUs; and who takes
over from a lost one.

An Edge TPU is found, opened and named as libedgetpu does: "usb:0", "pci:1". Its public C interface,
edgetpu_c.h, lists them, and TFLite loads the library as an external delegate.
"""

from __future__ import annotations

import ctypes
import logging
import platform
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from compiler.runtime.bundle import RuntimeBundleError
from compiler.runtime.onnx_segment import HostSegment
from compiler.runtime.tflite_segment import TFLiteSegment, load_delegate

log = logging.getLogger("compiler.runtime")
log.addHandler(logging.NullHandler())  # notices are on the runner; who wants them logged says so

LIBRARIES = {"Linux": "libedgetpu.so.1", "Darwin": "libedgetpu.1.dylib", "Windows": "edgetpu.dll"}
ON_LOSS = ("move", "cpu", "stop")
_TYPES = ("pci", "usb")  # enum edgetpu_device_type


class DeviceError(Exception):
    """A device that cannot be opened, failed in a run, or went away; another one may do its work."""


class DeviceChoiceError(ValueError):
    """Devices that were asked for and are not there."""


class Executable(Protocol):
    """A loaded segment: arrays in and out in the order of the manifest."""

    def run(self, arrays: list[np.ndarray]) -> list[np.ndarray]: ...


class Device:
    """Runs segments, one at a time: `lock` is held during a run."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lock = threading.Lock()

    def open(self, folder: Path, segment: Mapping[str, Any]) -> Executable:
        """Load a segment of the bundle in `folder`. Raises DeviceError, or RuntimeBundleError for a
        broken file."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


class Cpu(Device):
    """onnxruntime for host segments; TFLite's CPU kernels for those of Edge TPUs that are not
    there."""

    def __init__(self, threads: int, alone: bool = False) -> None:
        super().__init__("cpu")
        self.threads, self.alone = threads, alone

    def open(self, folder: Path, segment: Mapping[str, Any]) -> Executable:
        path = folder / segment["files"][0]["path"]
        try:
            if segment["device"] == "tpu":
                return TFLiteSegment(path, self.threads)
            return HostSegment(path, self.threads, self.alone, segment.get("in_place"))
        except (ValueError, RuntimeError) as error:
            raise RuntimeBundleError(f"{path}: cannot be loaded: {error}") from error


class EdgeTpu(Device):
    """An Edge TPU behind libedgetpu. `options` go to the delegate beside `device`, e.g.
    {"Performance": "High"}."""

    def __init__(
        self, name: str, library: str | None = None, options: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(name)
        self.library = library or library_name()
        self.options = {"device": name, **(options or {})}

    def open(self, folder: Path, segment: Mapping[str, Any]) -> Executable:
        assert segment["compiled"] is not None, "the fleet gives an Edge TPU compiled segments only"
        path = folder / segment["compiled"]["path"]
        try:
            delegate = load_delegate()(self.library, self.options)
            return _Guarded(self.name, TFLiteSegment(path, 1, delegate))
        except (ValueError, RuntimeError, OSError) as error:
            said = " ".join(str(error).split()) or f"{self.library} does not say why"
            raise DeviceError(f"{self.name}: cannot be opened for {path.name}: {said}") from error


class Simulated(Device):
    """Stands for an Edge TPU: runs on the CPU and takes the time that was predicted, times
    `slowdown`.

    `broken` is asked before each run and may raise DeviceError, for tests of what happens then.
    """

    def __init__(
        self, name: str, slowdown: float = 1.0, broken: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(name)
        self.slowdown, self.broken = slowdown, broken

    def open(self, folder: Path, segment: Mapping[str, Any]) -> Executable:
        seconds = self.slowdown * sum(segment["predicted_ms"].values()) / 1e3
        return _Timed(Cpu(1).open(folder, segment), seconds, self.broken)


class _Guarded:
    """Errors of a delegate are the device's."""

    def __init__(self, name: str, segment: TFLiteSegment) -> None:
        self._name, self._segment = name, segment

    def run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        try:
            return self._segment.run(arrays)
        except RuntimeError as error:
            raise DeviceError(f"{self._name}: {' '.join(str(error).split())}") from error


class _Timed:
    def __init__(self, inner: Executable, seconds: float, broken: Callable[[], None]) -> None:
        self._inner, self._seconds, self._broken = inner, seconds, broken

    def run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        ends = time.perf_counter() + self._seconds
        self._broken()
        results = self._inner.run(arrays)
        time.sleep(max(0.0, ends - time.perf_counter()))
        return results


def library_name() -> str:
    return LIBRARIES.get(platform.system(), LIBRARIES["Linux"])


class _Record(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int), ("path", ctypes.c_char_p))


def edge_tpus(library: str | None = None) -> list[EdgeTpu]:
    """The Edge TPUs that libedgetpu finds, those on PCIe first. Raises OSError where the library
    cannot be loaded."""
    name = library or library_name()
    loaded = ctypes.CDLL(name)
    loaded.edgetpu_list_devices.restype = ctypes.POINTER(_Record)
    loaded.edgetpu_list_devices.argtypes = [ctypes.POINTER(ctypes.c_size_t)]
    loaded.edgetpu_free_devices.argtypes = [ctypes.POINTER(_Record)]
    count = ctypes.c_size_t()
    records = loaded.edgetpu_list_devices(ctypes.byref(count))
    kinds = sorted(_TYPES[records[i].type] for i in range(count.value))
    if count.value:
        loaded.edgetpu_free_devices(records)
    return [EdgeTpu(f"{kind}:{kinds[:i].count(kind)}", library) for i, kind in enumerate(kinds)]


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
    return kind in _TYPES and number.isdecimal()


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
