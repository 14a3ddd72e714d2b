"""Looks at what Edge TPU users stumble over, and says what to do about it.

What is checked and how it is mended comes from coral.ai/docs, libedgetpu's and Raspberry Pi's issue
trackers: the USB ids and udev rules of libedgetpu, /dev/apex_0 of the gasket driver, kernels with
16 KiB pages that this driver cannot take (Raspberry Pi 5's default), PCIe settings in config.txt,
trip points under /sys/class/apex.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from compiler.runtime.devices import edge_tpus, library_name
from compiler.runtime.tflite_segment import interpreter_module

# USB ids before and after libedgetpu has sent the firmware.
USB_IDS = {("1a6e", "089a"): "waits for its firmware", ("18d1", "9302"): "ready"}
PCI_ID = ("0x1ac1", "0x089a")
USB3_SPEED = 5000  # Mbit/s, as /sys/bus/usb/devices/*/speed has it
_TOO_HOT = 85.0  # degrees Celsius where the Edge TPU's clock is reduced and a Pi's CPU throttles


@dataclass(frozen=True)
class Finding:
    """One check: `state` is "ok", "warn", "fail" or "none" (not here, and not wrong); `fix` says
    what to do."""

    name: str
    state: str
    text: str
    fix: str = ""


@dataclass(frozen=True)
class Machine:
    """Where to look: `root` stands before /dev, /sys, /proc and /boot, so that a test can show any
    machine."""

    root: Path = Path("/")
    page_size: int = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
    machine: str = platform.machine()
    library: str | None = None

    def read(self, path: str) -> str:
        """The text of a file, "" where there is none."""
        try:
            return (self.root / path).read_text("utf-8", "replace").replace("\0", "").strip()
        except OSError:
            return ""

    def glob(self, pattern: str) -> list[Path]:
        return sorted(self.root.glob(pattern))

    @property
    def model(self) -> str:
        return self.read("proc/device-tree/model")


def examine(machine: Machine | None = None) -> list[Finding]:
    """Every check, in the order in which things must work."""
    machine = machine or Machine()
    return [finding for check in CHECKS for finding in check(machine)]


def _python(_: Machine) -> Iterator[Finding]:
    yield Finding("Python", "ok", platform.python_version())


def _interpreter(_: Machine) -> Iterator[Finding]:
    try:
        name = interpreter_module().__name__.split(".")[0]
    except ImportError as error:
        yield Finding("TFLite interpreter", "fail", str(error), "pip install ai-edge-litert")
    else:
        yield Finding("TFLite interpreter", "ok", f"{name} {_version(name.replace('_', '-'))}")
    try:
        import onnxruntime
    except ImportError as error:
        yield Finding("onnxruntime", "fail", str(error), "pip install onnxruntime")
    else:
        yield Finding("onnxruntime", "ok", onnxruntime.__version__)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _library(machine: Machine) -> Iterator[Finding]:
    name = machine.library or library_name()
    try:
        loaded = ctypes.CDLL(name)
    except OSError as error:
        missing = "cannot open shared object" in str(error) or "image not found" in str(error)
        fix = (
            "install libedgetpu1-std (github.com/feranick/libedgetpu has builds for newer TFLite)"
            if missing
            else "install the build for this system and architecture"
        )
        yield Finding("libedgetpu", "fail", str(error), fix)
        return
    loaded.edgetpu_version.restype = ctypes.c_char_p
    text = (loaded.edgetpu_version() or b"").decode("utf-8", "replace")
    runtime = re.search(r"RuntimeVersion\((\d+)\)", text)
    if runtime and int(runtime.group(1)) < 14:
        yield Finding(
            "libedgetpu", "warn", text, "runtime 14 or newer runs what edgetpu_compiler 16 writes"
        )
    else:
        yield Finding("libedgetpu", "ok", text or name)
    try:
        found = [d.name for d in edge_tpus(machine.library)]
    except (OSError, AttributeError) as error:
        yield Finding("Edge TPUs", "fail", str(error), "install another build of libedgetpu")
        return
    if found:
        yield Finding("Edge TPUs", "ok", ", ".join(found))
    else:
        yield Finding("Edge TPUs", "fail", "libedgetpu finds none", "see the lines on USB and PCIe")


def _usb(machine: Machine) -> Iterator[Finding]:
    found = False
    for device in machine.glob("sys/bus/usb/devices/*"):
        at = device.relative_to(machine.root).as_posix()
        ids = machine.read(f"{at}/idVendor"), machine.read(f"{at}/idProduct")
        if ids not in USB_IDS:
            continue
        found, name = True, f"USB {device.name}"
        speed = machine.read(f"{at}/speed")
        if speed.isdecimal() and int(speed) < USB3_SPEED:
            fix = "use a blue USB 3 port and a USB 3 cable; some cables carry USB 2 only"
            yield Finding(
                name,
                "warn",
                f"{USB_IDS[ids]}, at {speed} Mbit/s: about ten times slower to send",
                fix,
            )
        else:
            yield Finding(name, "ok", f"{USB_IDS[ids]}, at {speed or '?'} Mbit/s")
        node = "dev/bus/usb/{:0>3}/{:0>3}".format(
            machine.read(f"{at}/busnum"), machine.read(f"{at}/devnum")
        )
        if (machine.root / node).exists() and not os.access(machine.root / node, os.W_OK):
            rule = (
                'SUBSYSTEM=="usb", ATTRS{idVendor}=="' + ids[0] + '", MODE="0664", GROUP="plugdev"'
            )
            fix = f"add {rule} to /etc/udev/rules.d/60-edgetpu.rules, join the group plugdev, plug it in again"
            yield Finding(name, "fail", f"/{node} is not writable", fix)
    if not found:
        yield Finding("USB", "none", "no Edge TPU on USB")


def _pcie(machine: Machine) -> Iterator[Finding]:
    cards = [
        p
        for p in machine.glob("sys/bus/pci/devices/*")
        if (
            machine.read(f"sys/bus/pci/devices/{p.name}/vendor"),
            machine.read(f"sys/bus/pci/devices/{p.name}/device"),
        )
        == PCI_ID
    ]
    nodes = machine.glob("dev/apex_*")
    if not cards and not nodes:
        yield Finding("PCIe", "none", "no Edge TPU on PCIe")
    else:
        yield from _driver(machine, cards, nodes)
        yield _pages(machine)
    if "Raspberry Pi 5" in machine.model:
        yield from _pi5_slot(machine)


def _driver(machine: Machine, cards: Sequence[Path], nodes: Sequence[Path]) -> Iterator[Finding]:
    for card in cards:
        yield Finding(f"PCIe {card.name}", "ok", "an Edge TPU")
    if not nodes:
        loaded = [m for m in ("gasket", "apex") if (machine.root / "sys/module" / m).exists()]
        text = f"no /dev/apex_0; loaded: {', '.join(loaded) or 'neither gasket nor apex'}"
        fix = "install gasket-dkms, patched for kernels from 6.2 on (github.com/feranick/gasket-driver), and reboot"
        yield Finding("driver", "fail", text, fix)
    for node in nodes:
        if os.access(node, os.R_OK | os.W_OK):
            yield Finding("driver", "ok", f"/dev/{node.name}")
        else:
            rule = 'SUBSYSTEM=="apex", MODE="0660", GROUP="apex"'
            fix = (
                f"add {rule} to /etc/udev/rules.d/65-apex.rules, join the group apex, log in again"
            )
            yield Finding("driver", "fail", f"/dev/{node.name} is not yours to open", fix)


def _pages(machine: Machine) -> Finding:
    size = f"{machine.page_size >> 10} KiB"
    if machine.page_size <= 4096:
        return Finding("page size", "ok", size)
    fix = "write kernel=kernel8.img into /boot/firmware/config.txt and reboot"
    return Finding("page size", "fail", f"{size}; the PCIe driver works with 4 KiB only", fix)


def _pi5_slot(machine: Machine) -> Iterator[Finding]:
    config = machine.read("boot/firmware/config.txt") or machine.read("boot/config.txt")
    lines = {line.strip() for line in config.splitlines()}
    command = machine.read("boot/firmware/cmdline.txt") or machine.read("boot/cmdline.txt")
    if not lines & {"dtparam=pciex1", "dtparam=pciex1=on"}:
        fix = "write dtparam=pciex1 into /boot/firmware/config.txt"
        yield Finding("PCIe slot", "warn", "not switched on by config.txt", fix)
    else:
        yield Finding("PCIe slot", "ok", "dtparam=pciex1")
    if "pcie_aspm=off" not in command:
        fix = "append pcie_aspm=off to the line in /boot/firmware/cmdline.txt"
        yield Finding(
            "PCIe power saving",
            "warn",
            "pcie_aspm=off is not set: the Edge TPU may go to sleep for good",
            fix,
        )
    if not any(
        line.startswith("dtoverlay=") and ("coral" in line or "hat-ai" in line) for line in lines
    ):
        fix = "write dtoverlay=pineboards-hat-ai, or your board's, into /boot/firmware/config.txt"
        yield Finding(
            "PCIe interrupts", "warn", "no overlay that gives the slot MSI-X interrupts", fix
        )


def _heat(machine: Machine) -> Iterator[Finding]:
    for node in machine.glob("sys/class/apex/apex_*"):
        yield from _temperature(
            machine, f"{node.name} temperature", f"sys/class/apex/{node.name}/temp"
        )
    zone = "sys/class/thermal/thermal_zone0/temp"
    yield from _temperature(machine, "CPU temperature", zone)
    throttled = machine.read("sys/devices/platform/soc/soc:firmware/get_throttled")
    if throttled and int(throttled, 16) & 0x5:
        fix = "use a power supply of 5 V and 5 A, and cool the board"
        yield Finding("throttling", "warn", f"the firmware slows the CPU down (0x{throttled})", fix)


def _temperature(machine: Machine, name: str, path: str) -> Iterator[Finding]:
    text = machine.read(path)
    if not text.lstrip("-").isdecimal():
        return
    degrees = int(text) / 1e3
    if degrees >= _TOO_HOT:
        yield Finding(
            name, "warn", f"{degrees:.0f} C: clocks are reduced", "add a heat sink or a fan"
        )
    else:
        yield Finding(name, "ok", f"{degrees:.0f} C")


def _compiler(machine: Machine) -> Iterator[Finding]:
    named = os.environ.get("EDGETPU_COMPILER")
    found = shutil.which(named or "edgetpu_compiler")
    if found:
        yield Finding("edgetpu_compiler", "ok", found)
    elif machine.machine in ("x86_64", "AMD64"):
        fix = "install edgetpu-compiler from Coral's Debian packages, or use --docker with an image that has it"
        yield Finding("edgetpu_compiler", "none", "not here; segments stay uncompiled", fix)
    else:
        fix = "copy the bundle to an x86-64 PC, run `compile` there, and copy it back"
        yield Finding("edgetpu_compiler", "none", f"there is none for {machine.machine}", fix)


CHECKS: tuple[Callable[[Machine], Iterator[Finding]], ...] = (
    _python,
    _interpreter,
    _library,
    _usb,
    _pcie,
    _heat,
    _compiler,
)
