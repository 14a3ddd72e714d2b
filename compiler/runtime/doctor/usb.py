"""Edge TPUs on USB: the port's speed and power, resets, and who may open or holds the device."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from compiler.runtime.doctor.machine import Finding, Machine, holders

# The vendor and product that an Edge TPU on USB shows before libedgetpu has sent it its firmware,
# and after.
USB_IDS = {("1a6e", "089a"): "waits for its firmware", ("18d1", "9302"): "ready"}
USB3_SPEED = 5000  # Mbit/s, as /sys/bus/usb/devices/*/speed has it
# Where systems write what the kernel says; reading it from /dev/kmsg would take root.
_KERNEL_LOGS = ("var/log/kern.log", "var/log/messages", "var/log/syslog")
# Bytes at the end of a log that are looked at.
_LOG_BYTES = 4 << 20
# libedgetpu resets a device once when it sends it its firmware.
_MANY_RESETS = 5


def devices(machine: Machine) -> Iterator[Finding]:
    """Each Edge TPU on USB: its speed, its power, and who may use it."""
    found = False
    for device in machine.glob("sys/bus/usb/devices/*"):
        folder = device.relative_to(machine.root).as_posix()
        ids = machine.read(f"{folder}/idVendor"), machine.read(f"{folder}/idProduct")
        if ids in USB_IDS:
            found = True
            yield _usb_speed(machine, folder, USB_IDS[ids])
            yield from _hub(machine, folder)
            yield from _usb_permission(machine, folder, ids[0])
            yield from _held(machine, folder)
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
    node = _node(machine, folder)
    if not machine.exists(node) or os.access(machine.root / node, os.W_OK):
        return
    rule = f'SUBSYSTEM=="usb", ATTRS{{idVendor}}=="{vendor}", MODE="0664", GROUP="plugdev"'
    fix = (
        f"add {rule} to /etc/udev/rules.d/60-edgetpu.rules, join the group plugdev, "
        "plug it in again"
    )
    yield Finding(f"USB {Path(folder).name}", "fail", f"/{node} is not writable", fix)


def _node(machine: Machine, folder: str) -> str:
    bus = machine.read(f"{folder}/busnum")
    number = machine.read(f"{folder}/devnum")
    return f"dev/bus/usb/{bus:0>3}/{number:0>3}"


def _hub(machine: Machine, folder: str) -> Iterator[Finding]:
    """A hub that takes its power from the computer shares it out; a name such as 2-1.4 is that of a
    port of the hub 2-1."""
    name = Path(folder).name
    above, dot, _ = name.rpartition(".")
    if not dot:
        return
    hub = f"{Path(folder).parent.as_posix()}/{above}"
    # bmAttributes of USB's configuration descriptor: bit 6 says that a device has its own power.
    attributes = machine.read(f"{hub}/bmAttributes")
    if attributes and not int(attributes, 16) & 0x40:
        text = f"behind the hub {above}, which has no power of its own"
        fix = "plug it into the computer itself, or into a hub with a power supply"
        yield Finding(f"USB {name} power", "warn", text, fix)


def _held(machine: Machine, folder: str) -> Iterator[Finding]:
    """A device serves one process at a time."""
    name = f"USB {Path(folder).name}"
    for holder in holders(machine, f"/{_node(machine, folder)}"):
        fix = "stop it first: an Edge TPU serves one process at a time"
        yield Finding(name, "warn", f"held by {holder}", fix)


def resets(machine: Machine) -> Iterator[Finding]:
    """Devices that the kernel resets again and again, by what it wrote to its log."""
    counts: dict[str, int] = {}
    ports = [path.name for path in machine.glob("sys/bus/usb/devices/*") if "-" in path.name]
    for log in _KERNEL_LOGS:
        text = machine.read_end(log, _LOG_BYTES)
        for port in re.findall(r"usb (\S+): reset \S+ USB device", text):
            counts[port] = counts.get(port, 0) + 1
        if counts:
            break  # other logs repeat the same lines
    for port in ports:
        ids = tuple(
            machine.read(f"sys/bus/usb/devices/{port}/{field}")
            for field in ("idVendor", "idProduct")
        )
        count = counts.get(port, 0)
        if ids in USB_IDS and count >= _MANY_RESETS:
            text = f"the kernel has reset it {count} times: too little power, or a bad cable"
            fix = (
                "use the cable that came with it, a port of the computer itself or a powered hub; "
                "on a Raspberry Pi 5 with its own 27 W supply, usb_max_current_enable=1 in "
                "config.txt"
            )
            yield Finding(f"USB {port} resets", "warn", text, fix)
