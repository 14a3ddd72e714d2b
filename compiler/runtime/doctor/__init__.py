"""Looks at what Edge TPU users stumble over, and says what to do about it.

What is checked and how it is mended comes from coral.ai/docs and from the issue trackers of
libedgetpu, gasket-driver and Raspberry Pi: USB ids and udev rules, resets of USB devices that get
too little power, /dev/apex_0 of the gasket driver, kernels that it does not build for, kernels with
16 KiB pages, PCIe settings in config.txt, temperatures under /sys/class/apex.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from compiler.runtime.doctor import board, pcie, software, usb
from compiler.runtime.doctor.machine import Finding, Machine

__all__ = ["Finding", "Machine", "examine"]

Check = Callable[[Machine], Iterator[Finding]]

# In the order in which things must work.
CHECKS: tuple[Check, ...] = (
    software.python,
    software.interpreter,
    software.onnxruntime,
    software.library,
    usb.devices,
    usb.resets,
    pcie.devices,
    pcie.pi5_slot,
    board.heat,
    board.throttling,
    software.edgetpu_compiler,
)


def examine(machine: Machine | None = None) -> list[Finding]:
    """What all checks find, in the order in which things must work."""
    machine = machine or Machine()
    findings: list[Finding] = []
    for check in CHECKS:
        findings += check(machine)
    return findings
