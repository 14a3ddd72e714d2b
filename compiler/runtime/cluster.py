"""Edge TPUs of other machines, through Ray: each is an actor that holds one unit of the resource
`edgetpu`.

A node joins with `ray start --address=HEAD:6379 --resources='{"edgetpu": 2}'`, and needs the
`device` and `cluster` extras. The bundle is read on the machine that runs it, which sends each node
its segments. Tensors go from there to a node and back: nodes do not send to each other.
"""

from __future__ import annotations

import fcntl
import tempfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import ray

from compiler.runtime import folders
from compiler.runtime.devices import Cpu, Device, DeviceError, Executable, edge_tpus
from compiler.runtime.manifest import SegmentEntry

RESOURCE = "edgetpu"
OPEN_SECONDS = 60.0  # to start an actor on another machine and to load a segment there
RUN_SECONDS = 30.0  # of one segment; a node that takes longer counts as lost


class Node(Device):
    """An Edge TPU somewhere in the cluster. Its actor starts when the first segment is loaded."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._actor: Any = None

    def open(self, folder: Path, segment: SegmentEntry) -> Executable:
        if self._actor is None:
            self._actor = ray.remote(num_cpus=0, resources={RESOURCE: 1})(_Worker).remote()
        files = {}
        for entry in segment["files"]:
            files[entry["path"]] = (folder / entry["path"]).read_bytes()
        try:
            number = _wait(self.name, self._actor.open.remote(segment, files), OPEN_SECONDS)
        except DeviceError:
            # The next attempt starts another actor, perhaps on another node.
            self._actor = None
            raise
        return _RemoteSegment(self.name, self._actor, number)


class _RemoteSegment:
    """A segment that is loaded on a node; `number` is the worker's for it."""

    def __init__(self, name: str, actor: Any, number: int) -> None:
        self._name = name
        self._actor = actor
        self._number = number

    def run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        reference = self._actor.run.remote(self._number, arrays)
        results: list[np.ndarray] = _wait(self._name, reference, RUN_SECONDS)
        return results


def _wait(name: str, reference: Any, seconds: float) -> Any:
    """The result of an actor's method. Raises DeviceError for whatever went wrong there."""
    try:
        return ray.get(reference, timeout=seconds)
    except (ray.exceptions.RayError, OSError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        reason = lines[0] if lines else type(error).__name__
        # Not `from error`: it holds what the node raised, with frames and arrays.
        raise DeviceError(f"{name}: {reason}") from None


class _Worker:
    """On the node: runs segments on an Edge TPU that no other worker has, or on the CPU of a node
    without one."""

    def __init__(self) -> None:
        # Ray kills its actors outright, so their folders are left to the next one.
        folders.sweep()
        self._folder = folders.temporary("worker")
        # Open as long as the worker lives, and locked.
        self._lock_file: IO[str] | None = None
        self._device = self._free_edge_tpu() or Cpu(1)
        self._opened: list[Executable] = []

    def open(self, segment: SegmentEntry, files: dict[str, bytes]) -> int:
        """Load a segment from its files, given by their paths in the bundle; `run` takes the
        number that this returns."""
        folder = self._folder.path
        for name, data in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        self._opened.append(self._device.open(folder, segment))
        return len(self._opened) - 1

    def run(self, number: int, arrays: list[np.ndarray]) -> list[np.ndarray]:
        return self._opened[number].run(arrays)

    def _free_edge_tpu(self) -> Device | None:
        """The first Edge TPU that no other worker on this node has locked."""
        try:
            found = edge_tpus()
        except OSError:
            return None  # no libedgetpu
        for device in found:
            name = f"coral-bundle-{device.name.replace(':', '-')}.lock"
            file = (Path(tempfile.gettempdir()) / name).open("w")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.close()
                continue
            self._lock_file = file
            return device
        return None


def nodes(address: str | None = None) -> list[Device]:
    """A device for each Edge TPU of a Ray cluster; `address` is that of its head, None for the
    cluster that Ray finds by itself.

    Raises ConnectionError where there is no cluster.
    """
    if not ray.is_initialized():
        ray.init(address=address or "auto", log_to_driver=False, logging_level="ERROR")
    count = int(ray.cluster_resources().get(RESOURCE, 0))
    return [Node(f"ray:{index}") for index in range(count)]
