"""Edge TPUs of other machines, through Ray: each is an actor that holds one unit of the resource
`edgetpu`.

A node joins with `ray start --address=HEAD:6379 --resources='{"edgetpu": 2}'`, and needs the
`device` and `cluster` extras. The bundle is read on the machine that runs it, which sends each node
its segments. What a node computes stays in its object store: the next node fetches it from there,
and only what the host reads comes to the machine that runs the bundle. Ray hands tensors of less
than 100 KB around with the calls.
"""

from __future__ import annotations

import fcntl
import tempfile
import time
from pathlib import Path
from typing import IO, Any

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from compiler.runtime import folders
from compiler.runtime.conversion import convert
from compiler.runtime.devices import Cpu, Device, DeviceError, Executable, edge_tpus
from compiler.runtime.manifest import SegmentEntry, TensorEntry
from compiler.runtime.remote import Feed, Tensor, TensorLostError

_Conversion = tuple[TensorEntry, TensorEntry | None]

RESOURCE = "edgetpu"
OPEN_SECONDS = 60.0  # to start an actor on another machine and to load a segment there
RUN_SECONDS = 30.0  # of one segment; a node that takes longer counts as lost
# Whoever waits longer for a tensor asks the node that made it whether it is there: Ray notices a
# lost node, and tells those that wait for what it held, after half a minute.
PATIENCE = 1.0
ANSWER_SECONDS = 2.0  # a node that takes longer to answer is busy


class Node(Device):
    """An Edge TPU somewhere in the cluster. Its actor starts when the first segment is loaded.

    `era` rises when it fails, and with it may be what it held.
    """

    holds_tensors = True

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.era = 0
        self._actor: Any = None
        # Ray's number of the node that its actor is on, and has to stay on.
        self._place: str | None = None

    def open(self, folder: Path, segment: SegmentEntry) -> Executable:
        if self._actor is None:
            self._actor = self._start()
        files = {}
        for entry in segment["files"]:
            files[entry["path"]] = (folder / entry["path"]).read_bytes()
        try:
            opening = self._actor.open.remote(segment, files)
            number, self._place = _wait(self.name, opening, OPEN_SECONDS)
        except DeviceError:
            # The next attempt starts another actor, perhaps on another node.
            self._actor = self._place = None
            self.era += 1
            raise
        return _RemoteSegment(self, self._actor, number, len(segment["outputs"]))

    def _start(self) -> Any:
        strategy: Any = "DEFAULT"
        if self._place is not None:
            # Ray may still count on a node that went away, and would start the actor there.
            strategy = NodeAffinitySchedulingStrategy(self._place, soft=False)
        worker = ray.remote(num_cpus=0, resources={RESOURCE: 1})(_Worker)
        return worker.options(scheduling_strategy=strategy).remote()

    def is_gone(self) -> bool:
        """Whether its actor is known to have died; asks it."""
        actor = self._actor
        if actor is None:
            return False
        try:
            ray.get(actor.__ray_ready__.remote(), timeout=ANSWER_SECONDS)
        except ray.exceptions.GetTimeoutError:
            return False
        except ray.exceptions.RayError:
            self.era += 1
            return True
        return False

    def start_anew(self) -> None:
        """End the actor, so that the next segment is loaded into another one on the same node. What
        it held stays in the object store."""
        actor, self._actor = self._actor, None
        if actor is not None:
            ray.kill(actor)


class HeldTensor:
    """A tensor in the object store of the node that made it."""

    def __init__(self, node: Node, reference: Any) -> None:
        self.node = node
        self.reference = reference
        self._era = node.era
        self._fetched: np.ndarray | None = None

    @property
    def is_lost(self) -> bool:
        """Whether its node failed since; that it is there all the same is not worth a try."""
        return self._era != self.node.era

    def lost(self) -> TensorLostError:
        return TensorLostError(f"{self.node.name}: went away with what it held", self.node)

    def fetch(self) -> np.ndarray:
        if self._fetched is None:
            if self.is_lost or not _arrives(self.reference, [self]):
                raise self.lost()
            try:
                self._fetched = _wait(self.node.name, self.reference, RUN_SECONDS)
            except DeviceError:
                raise self.lost() from None
        return self._fetched


class _RemoteSegment:
    """A segment that is loaded on a node; `number` is the worker's for it."""

    def __init__(self, node: Node, actor: Any, number: int, outputs: int) -> None:
        self._node = node
        self._actor = actor
        self._number = number
        self._outputs = outputs

    def run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        tensors = self.run_there([*arrays])
        return [tensor if isinstance(tensor, np.ndarray) else tensor.fetch() for tensor in tensors]

    def run_there(self, feeds: list[np.ndarray | Feed]) -> list[Tensor]:
        given: list[Any] = []
        conversions: list[_Conversion | None] = []
        held: list[HeldTensor] = []
        for feed in feeds:
            if isinstance(feed, np.ndarray):
                given.append(feed)
                conversions.append(None)
                continue
            conversions.append((feed.entry, feed.written))
            if isinstance(feed.tensor, HeldTensor):
                held.append(feed.tensor)
                given.append(feed.tensor.reference)
            else:
                given.append(feed.tensor.fetch())
        for tensor in held:
            if tensor.is_lost:
                raise tensor.lost()
        return self._run(given, conversions, held)

    def _run(
        self,
        given: list[Any],
        conversions: list[_Conversion | None],
        held: list[HeldTensor],
    ) -> list[Tensor]:
        run = self._actor.run.options(num_returns=1 + self._outputs)
        # Ray puts the arrays of references in their places, where the worker is.
        done, *results = run.remote(self._number, conversions, *given)
        name = self._node.name
        others = [tensor for tensor in held if tensor.node is not self._node]
        if others and not _arrives(done, others):
            # The actor would wait on, and with it all that comes behind.
            self._node.start_anew()
            raise DeviceError(f"{name}: waits for a node that went away")
        try:
            _wait(name, done, RUN_SECONDS)
        except DeviceError as error:
            if held and isinstance(error, _ObjectLostError):
                lost = [tensor for tensor in held if tensor.reference.hex() == error.reference]
                raise (lost or held)[0].lost() from None
            self._node.era += 1
            raise
        return [HeldTensor(self._node, reference) for reference in results]


def _arrives(reference: Any, held: list[HeldTensor]) -> bool:
    """Wait for an object that is made of tensors; False once the node of one of them is gone. Gives
    up waiting after RUN_SECONDS."""
    until = time.monotonic() + RUN_SECONDS
    while time.monotonic() < until:
        # It is ready when it is here: one that is elsewhere only may be lost on its way.
        ready, _ = ray.wait([reference], timeout=PATIENCE, fetch_local=True)
        if ready:
            return True
        if any(tensor.node.is_gone() for tensor in held):
            return False
    return True


class _ObjectLostError(DeviceError):
    """An object that was asked for is in no store any more; `reference` is its number."""

    def __init__(self, text: str, reference: str) -> None:
        super().__init__(text)
        self.reference = reference


def _wait(name: str, reference: Any, seconds: float) -> Any:
    """The result of an actor's method. Raises DeviceError for whatever went wrong there."""
    try:
        return ray.get(reference, timeout=seconds)
    except (ray.exceptions.RayError, OSError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        reason = lines[0] if lines else type(error).__name__
        lost = getattr(error, "cause", error)
        # Not `from error`: it holds what the node raised, with frames and arrays.
        if isinstance(lost, ray.exceptions.ObjectLostError):
            raise _ObjectLostError(f"{name}: {reason}", lost.object_ref_hex) from None
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

    def open(self, segment: SegmentEntry, files: dict[str, bytes]) -> tuple[int, str]:
        """Load a segment from its files, given by their paths in the bundle; returns the number
        that `run` takes, and Ray's number of this node."""
        folder = self._folder.path
        for name, data in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        self._opened.append(self._device.open(folder, segment))
        return len(self._opened) - 1, ray.get_runtime_context().get_node_id()

    def run(
        self, number: int, conversions: list[_Conversion | None], *arrays: np.ndarray
    ) -> tuple[Any, ...]:
        """Run a segment; first comes nothing, whose arrival tells that it ran, then its results.

        `conversions` are of the arrays that other segments gave (`conversion.convert`).
        """
        feeds = []
        for array, conversion in zip(arrays, conversions, strict=True):
            feeds.append(array if conversion is None else convert(array, *conversion))
        return None, *self._opened[number].run(feeds)

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
