"""What segments run on: Edge TPUs through libedgetpu, the CPU, simulated Edge TPUs.

An Edge TPU is found, opened and named as libedgetpu does: "usb:0", "pci:1". Its public C interface,
edgetpu_c.h, lists them, and TFLite loads the library as an external delegate.
"""

from __future__ import annotations

import ctypes
import logging
import platform
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from compiler.runtime.bundle import RuntimeBundleError
from compiler.runtime.onnx_segment import HostSegment
from compiler.runtime.tflite_segment import TFLiteSegment, load_delegate

log = logging.getLogger("compiler.runtime")
log.addHandler(logging.NullHandler())  # notices are on the runner; who wants them logged says so

LIBRARIES = {"Linux": "libedgetpu.so.1", "Darwin": "libedgetpu.1.dylib", "Windows": "edgetpu.dll"}
DEVICE_TYPES = ("pci", "usb")  # enum edgetpu_device_type


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
    kinds = sorted(DEVICE_TYPES[records[i].type] for i in range(count.value))
    if count.value:
        loaded.edgetpu_free_devices(records)
    return [EdgeTpu(f"{kind}:{kinds[:i].count(kind)}", library) for i, kind in enumerate(kinds)]
