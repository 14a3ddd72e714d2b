"""Edge TPUs on PCIe: the gasket driver, and on a Raspberry Pi 5 the slot."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from compiler.runtime.doctor.machine import Finding, Machine, holders

PCI_ID = ("0x1ac1", "0x089a")
_DRIVER_PAGE = 4096  # bytes of a page that the PCIe driver works with


def devices(machine: Machine) -> Iterator[Finding]:
    """Each card, its driver, and who may use it."""
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
        for holder in holders(machine, f"/dev/{node.name}"):
            fix = "stop it first: an Edge TPU serves one process at a time"
            yield Finding(f"PCIe {node.name}", "warn", f"held by {holder}", fix)
    if nodes:
        yield _versions(machine)
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
    kernel = machine.read("proc/sys/kernel/osrelease") or "unknown"
    built = [path.parts[-1] for path in machine.glob(f"lib/modules/{kernel}/updates/dkms/gasket*")]
    state = "built for it but not loaded" if built else "not built for it"
    fix = (
        "install gasket-dkms, patched for kernels from 6.2 on "
        "(github.com/feranick/gasket-driver), and reboot"
    )
    if built:
        fix = "run `modprobe apex`; if it refuses, see what `dmesg` says (Secure Boot, signatures)"
    text = f"no /dev/apex_0; loaded: {loaded}; kernel {kernel}, driver {state}"
    return Finding("driver", "fail", text, fix)


def _versions(machine: Machine) -> Finding:
    kernel = machine.read("proc/sys/kernel/osrelease") or "unknown"
    gasket = machine.read("sys/module/gasket/version") or "unknown"
    return Finding("driver version", "ok", f"gasket {gasket} on kernel {kernel}")


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


def pi5_slot(machine: Machine) -> Iterator[Finding]:
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
