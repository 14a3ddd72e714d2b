"""What segments run on: Edge TPUs through libedgetpu, the CPU, and simulated Edge TPUs.

Edge TPUs have libedgetpu's names: "usb:0", "pci:1". Its public C interface, edgetpu_c.h, lists
them, and TFLite loads the library as an external delegate, which opens one of them.
"""

from __future__ import annotations

import ctypes
import logging
import platform
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from compiler.runtime.bundle import RuntimeBundleError
from compiler.runtime.manifest import SegmentEntry
from compiler.runtime.onnx_segment import HostSegment
from compiler.runtime.tflite_segment import TFLiteSegment, load_delegate

log = logging.getLogger("compiler.runtime")
# Silent unless the program sets up logging: notices are on the runner too.
log.addHandler(logging.NullHandler())

LIBRARIES = {"Linux": "libedgetpu.so.1", "Darwin": "libedgetpu.1.dylib", "Windows": "edgetpu.dll"}
DEVICE_TYPES = ("pci", "usb")  # in the order of edgetpu_c.h's enum edgetpu_device_type


class DeviceError(Exception):
    """A device that cannot be opened, failed in a run, or went away; another may do its work."""


class DeviceChoiceError(ValueError):
    """Devices that were asked for and are not there."""


class Executable(Protocol):
    """A segment that is loaded on a device."""

    def run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """Arrays in the order of the segment's inputs in the manifest; results in that of its
        outputs. Does not change `arrays`, so that a run that failed can be repeated elsewhere.

        Raises DeviceError where the device is at fault; any other error is the segment's.
        """
        ...


class Device:
    """Something that runs segments, `slots` at a time: `lock` is held while it runs or loads one,
    and `loading` besides while it loads one.

    Derive from it to run segments on something else. `name` stands in notices and errors. A device
    on another machine may keep there what its segments give (`holds_tensors`): these are then a
    `RemoteExecutable` too (remote.py).
    """

    holds_tensors = False

    def __init__(self, name: str, slots: int = 1) -> None:
        self.name = name
        self.slots = slots
        self.lock = threading.Lock() if slots == 1 else threading.Semaphore(slots)
        self.loading = threading.Lock()

    def open(self, folder: Path, segment: SegmentEntry) -> Executable:
        """Load a segment, given by its entry in the manifest of the bundle in `folder`.

        Raises DeviceError where the device is at fault, RuntimeBundleError where the file is.
        """
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


class Cpu(Device):
    """The CPU: onnxruntime for host segments, and TFLite's kernels for those of an Edge TPU that is
    not there.

    `slots` segments run at once, each with its share of the `threads`. `spin` lets threads wait for
    work without sleeping, which is faster where no other segment wants the cores.
    """

    def __init__(self, threads: int, spin: bool = False, slots: int = 1) -> None:
        super().__init__("cpu", slots)
        self.threads = max(1, threads // slots)
        self.spin = spin and slots == 1

    def open(self, folder: Path, segment: SegmentEntry) -> Executable:
        path = folder / segment["files"][0]["path"]
        try:
            if segment["device"] == "tpu":
                return _Copies(lambda: TFLiteSegment(path, self.threads))
            return HostSegment(path, self.threads, self.spin, segment.get("in_place"))
        except Exception as error:  # onnxruntime's errors have no base class but Exception
            raise RuntimeBundleError(f"{path}: cannot be loaded: {_in_one_line(error)}") from error


class _Copies:
    """A segment that runs once at a time: each slot that wants to run it meanwhile makes a copy."""

    def __init__(self, make: Callable[[], Executable]) -> None:
        self._make = make
        self._idle = [make()]

    def run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        try:
            copy = self._idle.pop()
        except IndexError:
            copy = self._make()
        try:
            return copy.run(arrays)
        finally:
            self._idle.append(copy)


class EdgeTpu(Device):
    """An Edge TPU behind libedgetpu, which runs segments that edgetpu_compiler has compiled.

    `name` is libedgetpu's: "usb:0". `library` is the path or name of libedgetpu, None for the
    system's. `options` go to the delegate beside the device, such as {"Performance": "High"}.
    """

    def __init__(
        self, name: str, library: str | None = None, options: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(name)
        self.library = library or library_name()
        self.options = {"device": name, **(options or {})}

    def open(self, folder: Path, segment: SegmentEntry) -> Executable:
        assert segment["compiled"] is not None, "the fleet gives an Edge TPU compiled segments only"
        path = folder / segment["compiled"]["path"]
        try:
            # Each segment has a delegate of its own; libedgetpu shares the device between them.
            delegate = load_delegate(self.library, self.options)
            # One thread: the Edge TPU computes, the CPU only copies.
            return _DelegatedSegment(self.name, TFLiteSegment(path, 1, delegate))
        except (ValueError, RuntimeError, OSError) as error:
            reason = _in_one_line(error) or f"{self.library} gives no reason"
            raise DeviceError(f"{self.name}: cannot be opened for {path.name}: {reason}") from error


class Link:
    """What connects Edge TPUs to the host: one transfer at a time."""


class Simulated(Device):
    """Stands for an Edge TPU: computes on the CPU, and takes as long as was predicted.

    `slowdown` multiplies the predicted time; 0 is as fast as the CPU. `broken` is called before
    each run and may raise DeviceError, so that a test can lose the device. `link` is its own unless
    it is given one that others have too; only `simulate` (simulation.py) looks at it.
    """

    def __init__(
        self,
        name: str,
        slowdown: float = 1.0,
        broken: Callable[[], None] = lambda: None,
        link: Link | None = None,
    ) -> None:
        super().__init__(name)
        self.slowdown = slowdown
        self.broken = broken
        self.link = link or Link()

    def open(self, folder: Path, segment: SegmentEntry) -> Executable:
        predicted_ms = sum(segment["predicted_ms"].values())
        seconds = self.slowdown * predicted_ms / 1e3
        return _TimedSegment(Cpu(1).open(folder, segment), seconds, self.broken)


class _DelegatedSegment:
    """A segment on a delegate, whose errors are those of the device."""

    def __init__(self, device: str, segment: TFLiteSegment) -> None:
        self._device = device
        self._segment = segment

    def run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        try:
            return self._segment.run(arrays)
        except RuntimeError as error:
            raise DeviceError(f"{self._device}: {_in_one_line(error)}") from error


class _TimedSegment:
    """A segment of which each run takes at least `seconds`."""

    def __init__(self, segment: Executable, seconds: float, broken: Callable[[], None]) -> None:
        self._segment = segment
        self._seconds = seconds
        self._broken = broken

    def run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        end = time.perf_counter() + self._seconds
        self._broken()
        results = self._segment.run(arrays)
        time.sleep(max(0.0, end - time.perf_counter()))
        return results


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def library_name() -> str:
    """What libedgetpu is called on this system."""
    return LIBRARIES.get(platform.system(), LIBRARIES["Linux"])


class _DeviceRecord(ctypes.Structure):
    """struct edgetpu_device of edgetpu_c.h."""

    _fields_ = (("type", ctypes.c_int), ("path", ctypes.c_char_p))


def edge_tpus(library: str | None = None) -> list[EdgeTpu]:
    """The Edge TPUs that libedgetpu finds, those on PCIe first; `library` as for `EdgeTpu`.

    Raises OSError where the library cannot be loaded.
    """
    loaded = ctypes.CDLL(library or library_name())
    loaded.edgetpu_list_devices.restype = ctypes.POINTER(_DeviceRecord)
    loaded.edgetpu_list_devices.argtypes = [ctypes.POINTER(ctypes.c_size_t)]
    loaded.edgetpu_free_devices.argtypes = [ctypes.POINTER(_DeviceRecord)]
    count = ctypes.c_size_t()
    records = loaded.edgetpu_list_devices(ctypes.byref(count))
    kinds = [DEVICE_TYPES[records[index].type] for index in range(count.value)]
    if count.value:
        loaded.edgetpu_free_devices(records)
    # libedgetpu numbers the devices of each kind on their own: "pci:0", "pci:1", "usb:0".
    found = []
    for kind in DEVICE_TYPES:
        for number in range(kinds.count(kind)):
            found.append(EdgeTpu(f"{kind}:{number}", library))
    return found
