"""Looks at what Edge TPU users stumble over, and says what to do about it.

What is checked and how it is mended comes from coral.ai/docs and from the issue trackers of
libedgetpu and Raspberry Pi: USB ids and udev rules, /dev/apex_0 of the gasket driver, kernels with
16 KiB pages, PCIe settings in config.txt, temperatures under /sys/class/apex.
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

# The vendor and product that an Edge TPU on USB shows before libedgetpu has sent it its firmware,
# and after.
USB_IDS = {("1a6e", "089a"): "waits for its firmware", ("18d1", "9302"): "ready"}
PCI_ID = ("0x1ac1", "0x089a")
USB3_SPEED = 5000  # Mbit/s, as /sys/bus/usb/devices/*/speed has it
_TOO_HOT = 85.0  # degrees Celsius where the Edge TPU's clock is reduced and a Pi's CPU throttles
_DRIVER_PAGE = 4096  # bytes of a page that the PCIe driver works with
_OLDEST_RUNTIME = 14  # of libedgetpu, that runs what edgetpu_compiler 16 writes
# Bits of the Raspberry Pi firmware's get_throttled: under-voltage and throttling as they are now.
# Higher bits say that it has happened since the start.
_THROTTLED_NOW = 0x1 | 0x4


@dataclass(frozen=True)
class Finding:
    """What a check has found: `state` is "ok", "warn", "fail" or "none" (not here, and not wrong),
    and `fix` says what to do."""

    name: str
    state: str
    text: str
    fix: str = ""


@dataclass(frozen=True)
class Machine:
    """Where to look: `root` stands before /dev, /sys, /proc and /boot, so that a test can show any
    machine. `library` is libedgetpu's path, None for the system's."""

    root: Path = Path("/")
    page_size: int = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
    machine: str = platform.machine()
    library: str | None = None

    def read(self, path: str) -> str:
        """The text of a file, "" where there is none."""
        try:
            text = (self.root / path).read_text("utf-8", "replace")
        except OSError:
            return ""
        return text.replace("\0", "").strip()  # device-tree strings end with a NUL

    def read_boot(self, name: str) -> str:
        """The text of a file of a Raspberry Pi's boot partition, which older systems mount at
        /boot."""
        return self.read(f"boot/firmware/{name}") or self.read(f"boot/{name}")

    def exists(self, path: str) -> bool:
        return (self.root / path).exists()

    def glob(self, pattern: str) -> list[Path]:
        return sorted(self.root.glob(pattern))

    @property
    def model(self) -> str:
        """The name of a single-board computer, "" of others."""
        return self.read("proc/device-tree/model")


def examine(machine: Machine | None = None) -> list[Finding]:
    """What all checks find, in the order in which things must work."""
    machine = machine or Machine()
    findings: list[Finding] = []
    for check in CHECKS:
        findings += check(machine)
    return findings


# Software: Python, the two libraries that run segments, libedgetpu.


def _python(_: Machine) -> Iterator[Finding]:
    yield Finding("Python", "ok", platform.python_version())


def _interpreter(_: Machine) -> Iterator[Finding]:
    name = "TFLite interpreter"
    try:
        module = interpreter_module()
    except ImportError as error:
        yield Finding(name, "fail", str(error), "pip install ai-edge-litert")
        return
    package = module.__name__.split(".")[0]
    version = _package_version(package.replace("_", "-"))
    yield Finding(name, "ok", f"{package} {version}")


def _package_version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _onnxruntime(_: Machine) -> Iterator[Finding]:
    try:
        import onnxruntime
    except ImportError as error:
        yield Finding("onnxruntime", "fail", str(error), "pip install onnxruntime")
        return
    yield Finding("onnxruntime", "ok", onnxruntime.__version__)


def _library(machine: Machine) -> Iterator[Finding]:
    """libedgetpu, and what it finds: the same library that runs segments."""
    name = machine.library or library_name()
    try:
        loaded = ctypes.CDLL(name)
    except OSError as error:
        yield _library_not_loaded(str(error))
        return
    yield _library_version(loaded, name)
    yield _edge_tpus(machine)


def _library_not_loaded(error: str) -> Finding:
    # What the dynamic linkers of Linux and macOS say where there is no such file. Any other words
    # are of a file for another processor or C library.
    missing = "cannot open shared object" in error or "image not found" in error
    if missing:
        fix = "install libedgetpu1-std (github.com/feranick/libedgetpu has builds for newer TFLite)"
    else:
        fix = "install the build for this system and architecture"
    return Finding("libedgetpu", "fail", error, fix)


def _library_version(loaded: ctypes.CDLL, name: str) -> Finding:
    loaded.edgetpu_version.restype = ctypes.c_char_p
    text = (loaded.edgetpu_version() or b"").decode("utf-8", "replace")
    # Some builds of others do not name a version, which is no reason to warn.
    runtime = re.search(r"RuntimeVersion\((\d+)\)", text)
    if runtime is not None and int(runtime.group(1)) < _OLDEST_RUNTIME:
        fix = f"runtime {_OLDEST_RUNTIME} or newer runs what edgetpu_compiler 16 writes"
        return Finding("libedgetpu", "warn", text, fix)
    return Finding("libedgetpu", "ok", text or name)


def _edge_tpus(machine: Machine) -> Finding:
    try:
        devices = edge_tpus(machine.library)
    except (OSError, AttributeError) as error:
        return Finding("Edge TPUs", "fail", str(error), "install another build of libedgetpu")
    if not devices:
        fix = "see the lines on USB and PCIe"
        return Finding("Edge TPUs", "fail", "libedgetpu finds none", fix)
    names = ", ".join(device.name for device in devices)
    return Finding("Edge TPUs", "ok", names)


# USB: the port's speed, and who may open the device.


def _usb(machine: Machine) -> Iterator[Finding]:
    found = False
    for device in machine.glob("sys/bus/usb/devices/*"):
        folder = device.relative_to(machine.root).as_posix()
        ids = machine.read(f"{folder}/idVendor"), machine.read(f"{folder}/idProduct")
        if ids in USB_IDS:
            found = True
            yield _usb_speed(machine, folder, USB_IDS[ids])
            yield from _usb_permission(machine, folder, ids[0])
    if not found:
        yield Finding("USB", "none", "no Edge TPU on USB")


def _usb_speed(machine: Machine, folder: str, status: str) -> Finding:
    name = f"USB {Path(folder).name}"
    speed = machine.read(f"{folder}/speed")
    if speed.isdecimal() and int(speed) < USB3_SPEED:
        text = f"{status}, at {speed} Mbit/s: about ten times slower to send"
        fix = "use a blue USB 3 port and a USB 3 cable; some cables carry USB 2 only"
        return Finding(name, "warn", text, fix)
    return Finding(name, "ok", f"{status}, at {speed or '?'} Mbit/s")


def _usb_permission(machine: Machine, folder: str, vendor: str) -> Iterator[Finding]:
    """libusb writes to the device's node, which only root may without a udev rule."""
    bus = machine.read(f"{folder}/busnum")
    number = machine.read(f"{folder}/devnum")
    node = f"dev/bus/usb/{bus:0>3}/{number:0>3}"
    if not machine.exists(node) or os.access(machine.root / node, os.W_OK):
        return
    rule = f'SUBSYSTEM=="usb", ATTRS{{idVendor}}=="{vendor}", MODE="0664", GROUP="plugdev"'
    fix = (
        f"add {rule} to /etc/udev/rules.d/60-edgetpu.rules, join the group plugdev, "
        "plug it in again"
    )
    yield Finding(f"USB {Path(folder).name}", "fail", f"/{node} is not writable", fix)


# PCIe: the gasket driver, and on a Raspberry Pi 5 the slot.


def _pcie(machine: Machine) -> Iterator[Finding]:
    cards = _pci_cards(machine)
    nodes = machine.glob("dev/apex_*")
    if not cards and not nodes:
        yield Finding("PCIe", "none", "no Edge TPU on PCIe")
        return
    for card in cards:
        yield Finding(f"PCIe {card}", "ok", "an Edge TPU")
    if not nodes:
        yield _driver_not_loaded(machine)
    for node in nodes:
        yield _apex_permission(node)
    yield _page_size(machine)


def _pci_cards(machine: Machine) -> list[str]:
    cards = []
    for device in machine.glob("sys/bus/pci/devices/*"):
        folder = f"sys/bus/pci/devices/{device.name}"
        ids = machine.read(f"{folder}/vendor"), machine.read(f"{folder}/device")
        if ids == PCI_ID:
            cards.append(device.name)
    return cards


def _driver_not_loaded(machine: Machine) -> Finding:
    modules = [name for name in ("gasket", "apex") if machine.exists(f"sys/module/{name}")]
    loaded = ", ".join(modules) or "neither gasket nor apex"
    fix = (
        "install gasket-dkms, patched for kernels from 6.2 on "
        "(github.com/feranick/gasket-driver), and reboot"
    )
    return Finding("driver", "fail", f"no /dev/apex_0; loaded: {loaded}", fix)


def _apex_permission(node: Path) -> Finding:
    if os.access(node, os.R_OK | os.W_OK):
        return Finding("driver", "ok", f"/dev/{node.name}")
    rule = 'SUBSYSTEM=="apex", MODE="0660", GROUP="apex"'
    fix = f"add {rule} to /etc/udev/rules.d/65-apex.rules, join the group apex, log in again"
    return Finding("driver", "fail", f"/dev/{node.name} is not yours to open", fix)


def _page_size(machine: Machine) -> Finding:
    """Raspberry Pi 5 starts a kernel with 16 KiB pages unless config.txt names another."""
    size = f"{machine.page_size >> 10} KiB"
    if machine.page_size <= _DRIVER_PAGE:
        return Finding("page size", "ok", size)
    fix = "write kernel=kernel8.img into /boot/firmware/config.txt and reboot"
    return Finding("page size", "fail", f"{size}; the PCIe driver works with 4 KiB only", fix)


def _pi5_slot(machine: Machine) -> Iterator[Finding]:
    """A Raspberry Pi 5 needs three settings before a card in its slot shows up and stays."""
    if "Raspberry Pi 5" not in machine.model:
        return
    config = machine.read_boot("config.txt")
    settings = [line.strip() for line in config.splitlines()]
    yield _pi5_slot_switch(settings)
    yield from _pi5_power_saving(machine.read_boot("cmdline.txt"))
    yield from _pi5_interrupts(settings)


def _pi5_slot_switch(settings: Sequence[str]) -> Finding:
    if "dtparam=pciex1" in settings or "dtparam=pciex1=on" in settings:
        return Finding("PCIe slot", "ok", "dtparam=pciex1")
    fix = "write dtparam=pciex1 into /boot/firmware/config.txt"
    return Finding("PCIe slot", "warn", "not switched on by config.txt", fix)


def _pi5_power_saving(kernel_arguments: str) -> Iterator[Finding]:
    if "pcie_aspm=off" in kernel_arguments:
        return
    text = "pcie_aspm=off is not set: the Edge TPU may go to sleep for good"
    fix = "append pcie_aspm=off to the line in /boot/firmware/cmdline.txt"
    yield Finding("PCIe power saving", "warn", text, fix)


def _pi5_interrupts(settings: Sequence[str]) -> Iterator[Finding]:
    overlays = [line for line in settings if line.startswith("dtoverlay=")]
    # Boards for the slot bring an overlay each; these are the names that the known ones have.
    if any("coral" in line or "hat-ai" in line for line in overlays):
        return
    text = "no overlay that gives the slot MSI-X interrupts"
    fix = "write dtoverlay=pineboards-hat-ai, or your board's, into /boot/firmware/config.txt"
    yield Finding("PCIe interrupts", "warn", text, fix)


# Heat and power: what makes a machine slower than measured.


def _heat(machine: Machine) -> Iterator[Finding]:
    for node in machine.glob("sys/class/apex/apex_*"):
        path = f"sys/class/apex/{node.name}/temp"
        yield from _temperature(machine, f"{node.name} temperature", path)
    yield from _temperature(machine, "CPU temperature", "sys/class/thermal/thermal_zone0/temp")


def _temperature(machine: Machine, name: str, path: str) -> Iterator[Finding]:
    """A temperature in a file of millidegrees Celsius, if it is there."""
    text = machine.read(path)
    if not text.lstrip("-").isdecimal():
        return
    degrees = int(text) / 1e3
    shown = f"{degrees:.0f} C"
    if degrees >= _TOO_HOT:
        yield Finding(name, "warn", f"{shown}: clocks are reduced", "add a heat sink or a fan")
    else:
        yield Finding(name, "ok", shown)


def _throttling(machine: Machine) -> Iterator[Finding]:
    flags = machine.read("sys/devices/platform/soc/soc:firmware/get_throttled")
    if flags and int(flags, 16) & _THROTTLED_NOW:
        text = f"the firmware slows the CPU down (0x{flags})"
        fix = "use a power supply of 5 V and 5 A, and cool the board"
        yield Finding("throttling", "warn", text, fix)


def _edgetpu_compiler(machine: Machine) -> Iterator[Finding]:
    """Nobody needs it to run a bundle, so that it is missing is no warning."""
    command = os.environ.get("EDGETPU_COMPILER") or "edgetpu_compiler"
    path = shutil.which(command)
    if path is not None:
        yield Finding("edgetpu_compiler", "ok", path)
    elif machine.machine in ("x86_64", "AMD64"):
        fix = (
            "install edgetpu-compiler from Coral's Debian packages, "
            "or name a Docker image that has it"
        )
        yield Finding("edgetpu_compiler", "none", "not here; segments stay uncompiled", fix)
    else:
        # Google publishes it for x86-64 only.
        fix = "copy the bundle to an x86-64 PC, run `compile` there, and copy it back"
        yield Finding("edgetpu_compiler", "none", f"there is none for {machine.machine}", fix)


CHECKS: tuple[Callable[[Machine], Iterator[Finding]], ...] = (
    _python,
    _interpreter,
    _onnxruntime,
    _library,
    _usb,
    _pcie,
    _pi5_slot,
    _heat,
    _throttling,
    _edgetpu_compiler,
)
