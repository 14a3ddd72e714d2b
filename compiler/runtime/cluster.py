"""Edge TPUs of other machines, through Ray: each is an actor that holds one unit of the resource
`edgetpu`.

A node joins with `ray start --address=HEAD:6379 --resources='{"edgetpu": 2}'`, and needs the
`device` and `cluster` extras; the bundle is read on the machine that runs it, and its segments are
sent. Tensors go from there to a node and back: nodes do not send to each other.
"""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import ray

from compiler.runtime.devices import Cpu, Device, DeviceError, Executable, edge_tpus

RESOURCE = "edgetpu"
OPEN_SECONDS = 60.0  # to start an actor on another machine and to load a segment there
RUN_SECONDS = 30.0


class _Worker:
    """On the node: runs segments on an Edge TPU that no other worker has, on its CPU where it has
    none."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="coral-bundle-")
        self._locks: list[Any] = []
        self._device = self._free() or Cpu(1)
        self._opened: dict[int, Executable] = {}

    def open(self, segment: dict[str, Any], files: dict[str, bytes]) -> int:
        folder = Path(self._folder.name)
        for name, data in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        self._opened[len(self._opened)] = self._device.open(folder, segment)
        return len(self._opened) - 1

    def run(self, number: int, arrays: list[np.ndarray]) -> list[np.ndarray]:
        return self._opened[number].run(arrays)

    def _free(self) -> Device | None:
        try:
            found = edge_tpus()
        except OSError:
            return None
        for device in found:
            lock = (
                Path(tempfile.gettempdir()) / f"coral-bundle-{device.name.replace(':', '-')}.lock"
            ).open("w")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                lock.close()
                continue
            self._locks.append(lock)
            return device
        return None


class _Remote:
    """A segment that is loaded on a node."""

    def __init__(self, name: str, actor: Any, number: int) -> None:
        self._name, self._actor, self._number = name, actor, number

    def run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        found: list[np.ndarray] = _wait(
            self._name, self._actor.run.remote(self._number, arrays), RUN_SECONDS
        )
        return found


class Node(Device):
    """An Edge TPU somewhere in the cluster. The actor is started when the first segment is opened."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._actor: Any = None

    def open(self, folder: Path, segment: Mapping[str, Any]) -> Executable:
        if self._actor is None:
            self._actor = ray.remote(num_cpus=0, resources={RESOURCE: 1})(_Worker).remote()
        files = {e["path"]: (folder / e["path"]).read_bytes() for e in segment["files"]}
        try:
            number = _wait(self.name, self._actor.open.remote(dict(segment), files), OPEN_SECONDS)
        except DeviceError:
            self._actor = None  # another one, perhaps elsewhere, where this is opened again
            raise
        return _Remote(self.name, self._actor, number)


def _wait(name: str, reference: Any, seconds: float) -> Any:
    try:
        return ray.get(reference, timeout=seconds)
    except (ray.exceptions.RayError, OSError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise DeviceError(f"{name}: {lines[0] if lines else type(error).__name__}") from None


def nodes(address: str | None = None) -> list[Device]:
    """A device for each Edge TPU that a Ray cluster has; `address` of its head, None for the one
    that Ray finds.

    Raises ConnectionError where there is no cluster.
    """
    if not ray.is_initialized():
        ray.init(address=address or "auto", log_to_driver=False, logging_level="ERROR")
    count = int(ray.cluster_resources().get(RESOURCE, 0))
    return [Node(f"ray:{index}") for index in range(count)]
