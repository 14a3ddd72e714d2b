"""The machine that is looked at, through its /dev, /sys, /proc and /boot, and what is found."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path


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

    def read_end(self, path: str, size: int) -> str:
        """The last `size` bytes of a file as text, "" where there is none or it is not ours."""
        try:
            with (self.root / path).open("rb") as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(0, end - size))
                return file.read().decode("utf-8", "replace")
        except OSError:
            return ""

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


def holders(machine: Machine, node: str) -> list[str]:
    """The processes that have a device's node open, "NAME (PID)" each; those of other users show
    to root only."""
    found = []
    for process in machine.glob("proc/[0-9]*"):
        if int(process.name) == os.getpid():
            continue
        try:
            opened = [os.readlink(link) for link in (process / "fd").iterdir()]
        except OSError:
            continue  # it has ended, or is not ours to look into
        if node in opened:
            name = machine.read(f"proc/{process.name}/comm") or "a process"
            found.append(f"{name} ({process.name})")
    return found
