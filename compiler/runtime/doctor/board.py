"""Heat and power: what makes a machine slower than measured."""

from __future__ import annotations

from collections.abc import Iterator

from compiler.runtime.doctor.machine import Finding, Machine

_TOO_HOT = 85.0  # degrees Celsius where the Edge TPU's clock is reduced and a Pi's CPU throttles
# Bits of the Raspberry Pi firmware's get_throttled: under-voltage and throttling as they are now.
# Higher bits say that it has happened since the start.
_THROTTLED_NOW = 0x1 | 0x4


def heat(machine: Machine) -> Iterator[Finding]:
    """Temperatures of Edge TPUs on PCIe and of the CPU."""
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


def throttling(machine: Machine) -> Iterator[Finding]:
    """Whether a Raspberry Pi's firmware slows it down at this moment."""
    flags = machine.read("sys/devices/platform/soc/soc:firmware/get_throttled")
    if flags and int(flags, 16) & _THROTTLED_NOW:
        text = f"the firmware slows the CPU down (0x{flags})"
        fix = "use a power supply of 5 V and 5 A, and cool the board"
        yield Finding("throttling", "warn", text, fix)
