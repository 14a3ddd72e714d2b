"""The doctor, shown machines as /dev, /sys, /proc and /boot present them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from compiler.runtime.doctor import Finding, Machine, examine
from tests.conftest import Cli

Visit = Callable[..., dict[str, Finding]]


@pytest.fixture
def visit(tmp_path: Path, edgetpu_library: Path, monkeypatch: pytest.MonkeyPatch) -> Visit:
    """Examines a machine with these files; findings by name."""
    monkeypatch.setenv("STANDIN_DEVICES", "usb")

    def run(
        files: dict[str, str], page_size: int = 4096, library: str | None = None
    ) -> dict[str, Finding]:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        machine = Machine(tmp_path, page_size, "aarch64", library or str(edgetpu_library))
        return {f.name: f for f in examine(machine)}

    return run


def usb(speed: int, vendor: str = "18d1", product: str = "9302") -> dict[str, str]:
    at = "sys/bus/usb/devices/2-1"
    texts = {
        "idVendor": vendor,
        "idProduct": product,
        "speed": str(speed),
        "busnum": "2",
        "devnum": "7",
    }
    return {f"{at}/{name}": text + "\n" for name, text in texts.items()}


PCI = {
    "sys/bus/pci/devices/0000:01:00.0/vendor": "0x1ac1\n",
    "sys/bus/pci/devices/0000:01:00.0/device": "0x089a\n",
}
PI5 = {"proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0"}


def test_a_good_usb_machine(visit: Visit) -> None:
    found = visit(usb(5000) | {"sys/class/thermal/thermal_zone0/temp": "52300\n"})
    assert {f.state for f in found.values()} <= {"ok", "none"}
    assert found["Edge TPUs"].text == "usb:0" and "RuntimeVersion(14)" in found["libedgetpu"].text
    assert found["CPU temperature"].text == "52 C"
    assert "x86-64 PC" in found["edgetpu_compiler"].fix


def test_usb2_and_permissions(
    visit: Visit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    found = visit(usb(480, "1a6e", "089a") | {"dev/bus/usb/002/007": ""})
    assert found["USB 2-1"].state == "fail" and "udev" in found["USB 2-1"].fix
    monkeypatch.setattr("os.access", lambda *_: True)
    found = visit({})
    assert found["USB 2-1"].state == "warn" and "USB 3 port" in found["USB 2-1"].fix


def test_pi5_with_a_card_and_its_default_kernel(visit: Visit) -> None:
    found = visit(PCI | PI5 | {"boot/firmware/config.txt": "arm_64bit=1\n"}, page_size=16384)
    assert found["page size"].state == "fail" and "kernel8.img" in found["page size"].fix
    assert found["driver"].state == "fail" and "gasket" in found["driver"].fix
    assert {found[n].state for n in ("PCIe slot", "PCIe power saving", "PCIe interrupts")} == {
        "warn"
    }


def test_pi5_as_it_should_be(visit: Visit) -> None:
    config = "dtparam=pciex1\nkernel=kernel8.img\ndtoverlay=pineboards-hat-ai\n"
    boot = {
        "boot/firmware/config.txt": config,
        "boot/firmware/cmdline.txt": "root=/dev/sda pcie_aspm=off\n",
    }
    found = visit(PCI | PI5 | boot | {"dev/apex_0": "", "sys/class/apex/apex_0/temp": "91000\n"})
    assert {f.state for n, f in found.items() if n.startswith(("PCIe", "driver", "page"))} == {"ok"}
    assert found["apex_0 temperature"].state == "warn"


def test_a_device_that_is_held_behind_a_weak_hub_and_reset(visit: Visit, tmp_path: Path) -> None:
    """A USB device at port 4 of a hub without power, in use by Frigate."""
    at = "sys/bus/usb/devices/2-1.4"
    files = {name.replace("2-1/", "2-1.4/"): text for name, text in usb(5000).items()}
    files["sys/bus/usb/devices/2-1/bmAttributes"] = "a0\n"
    files["proc/4242/comm"] = "frigate.detecto\n"
    line = "pi kernel: usb 2-1.4: reset SuperSpeed USB device number 3 using xhci_hcd\n"
    other = "pi kernel: usb 1-2: reset high-speed USB device number 5 using xhci_hcd\n"
    files["var/log/kern.log"] = line * 7 + other * 9
    opened = tmp_path / "proc/4242/fd"
    opened.mkdir(parents=True)
    (opened / "3").symlink_to("/dev/bus/usb/002/007")
    found = visit(files)
    assert (tmp_path / at).is_dir()
    assert found["USB 2-1.4 power"].state == "warn"
    assert "7 times" in found["USB 2-1.4 resets"].text
    assert "USB 1-2 resets" not in found
    assert "frigate.detecto (4242)" in found["USB 2-1.4"].text
    files["sys/bus/usb/devices/2-1/bmAttributes"] = "e0\n"  # a hub with power of its own
    files["var/log/kern.log"] = line
    calm = visit(files)
    assert "USB 2-1.4 power" not in calm
    assert "USB 2-1.4 resets" not in calm


def test_the_driver_and_its_kernel_are_named(visit: Visit, tmp_path: Path) -> None:
    kernel = {"proc/sys/kernel/osrelease": "6.12.41+rpt-rpi-v8\n"}
    missing = visit(PCI | kernel)["driver"]
    assert missing.state == "fail" and "6.12.41+rpt-rpi-v8, driver not built for it" in missing.text
    built = {"lib/modules/6.12.41+rpt-rpi-v8/updates/dkms/gasket.ko.xz": ""}
    assert "modprobe apex" in visit(PCI | kernel | built)["driver"].fix
    loaded = {"dev/apex_0": "", "sys/module/gasket/version": "1.1.4\n"}
    found = visit(PCI | kernel | loaded)
    assert found["driver version"].text == "gasket 1.1.4 on kernel 6.12.41+rpt-rpi-v8"


def test_throttling(visit: Visit) -> None:
    path = "sys/devices/platform/soc/soc:firmware/get_throttled"
    assert visit({path: "50005\n"})["throttling"].state == "warn"
    assert "throttling" not in visit({path: "50000\n"})  # it was throttled once, it is not now


def test_no_library(visit: Visit) -> None:
    found = visit({}, library="libedgetpu-nowhere.so.1")
    assert found["libedgetpu"].state == "fail" and "install" in found["libedgetpu"].fix
    assert "Edge TPUs" not in found


def test_the_command_prints_findings_and_fixes(run_cli: Cli) -> None:
    code, out, _ = run_cli("doctor", "--json")
    findings = json.loads(out)
    assert code == int(any(f["state"] == "fail" for f in findings))
    assert {"Python", "TFLite interpreter", "onnxruntime", "libedgetpu"} <= {
        f["name"] for f in findings
    }
    _, out, _ = run_cli("doctor")
    assert all(f["name"] in out for f in findings)
