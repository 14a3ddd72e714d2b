"""Tensors that stay on the device that made them, on another machine, until they are read here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from compiler.runtime.devices import Device, DeviceError
from compiler.runtime.manifest import TensorEntry


class TensorLostError(DeviceError):
    """A tensor that went away with `holder`, the device that held it: whoever made it must run
    again."""

    def __init__(self, text: str, holder: Device) -> None:
        super().__init__(text)
        self.holder = holder


class RemoteTensor(Protocol):
    """A tensor elsewhere, which devices that hold tensors hand to each other."""

    def fetch(self) -> np.ndarray:
        """The array, brought here. Raises TensorLostError."""
        ...


Tensor = np.ndarray | RemoteTensor


@dataclass(frozen=True)
class Feed:
    """A remote tensor that a segment reads, and how: `entry` is the reader's, `written` the one of
    the segment that made it (`conversion.convert`)."""

    tensor: RemoteTensor
    entry: TensorEntry
    written: TensorEntry | None


class RemoteExecutable(Protocol):
    """A segment on a device that holds tensors."""

    def run_there(self, feeds: list[np.ndarray | Feed]) -> list[Tensor]:
        """As `Executable.run`, with tensors that lie elsewhere; results stay there too.

        Raises TensorLostError where one of the feeds is gone, DeviceError where the device is at
        fault.
        """
        ...
