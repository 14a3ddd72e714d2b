"""Which segments of a program may run when: what each waits for, and how far a request has come."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from compiler.runtime.manifest import ProgramEntry, SegmentEntry
from compiler.runtime.remote import Tensor


class Flow:
    """The segments of a program as a graph.

    needs     for each segment, those that must have run before it
    readers   for each segment, those that wait for it
    ranks     for each segment, predicted milliseconds from its start to the end of the program
              along the longest path: the larger, the more urgent
    names     for each segment, the tensors that it reads
    reads     for each tensor, how many segments read it
    kept      the outputs of the program, which stay when everybody has read them
    is_chain  whether no two segments may run at once
    """

    def __init__(self, program: ProgramEntry) -> None:
        segments = program["segments"]
        self.needs = _needs(segments)
        self.readers: list[list[int]] = [[] for _ in segments]
        for index, needed in enumerate(self.needs):
            for earlier in sorted(needed):
                self.readers[earlier].append(index)
        self.ranks = _ranks(segments, self.readers)
        self.names = [{tensor["name"] for tensor in segment["inputs"]} for segment in segments]
        self.reads = Counter(chain.from_iterable(self.names))
        self.kept = {tensor["name"] for tensor in program["outputs"]}
        # The order of the segments is topological, so in a chain each waits for the one before it.
        self.is_chain = all(index - 1 in self.needs[index] for index in range(1, len(segments)))


def _needs(segments: Sequence[SegmentEntry]) -> list[set[int]]:
    maker: dict[str, int] = {}
    needs: list[set[int]] = []
    for index, segment in enumerate(segments):
        names = [tensor["name"] for tensor in segment["inputs"]]
        needs.append({maker[name] for name in names if name in maker})
        for tensor in segment["outputs"]:
            maker[tensor["name"]] = index
    for index, segment in enumerate(segments):
        for source in segment.get("in_place", {}).values():
            _keep_order(needs, segments, index, source)
    return needs


def _keep_order(
    needs: list[set[int]], segments: Sequence[SegmentEntry], writer: int, name: str
) -> None:
    """A segment writes over a tensor: who reads it before or after that in the order of the
    program does so however they are scheduled."""
    for index, segment in enumerate(segments):
        if name not in {tensor["name"] for tensor in segment["inputs"]}:
            continue
        if index < writer:
            needs[writer].add(index)
        elif index > writer:
            needs[index].add(writer)


def _ranks(segments: Sequence[SegmentEntry], readers: Sequence[Sequence[int]]) -> list[float]:
    ranks = [0.0] * len(segments)
    for index in reversed(range(len(segments))):
        behind = max((ranks[reader] for reader in readers[index]), default=0.0)
        ranks[index] = sum(segments[index]["predicted_ms"].values()) + behind
    return ranks


@dataclass(frozen=True)
class Span:
    """When and where a segment of a request ran, in seconds of any clock."""

    index: int
    device: str
    begin: float
    end: float


class Flight:
    """A request on its way through a program. Only one thread at a time may change it.

    number     its place among all requests, the oldest first; it is its turn on replicas too
    values     the tensors that are made and not yet read by everyone
    left       how many segments have not run
    attempt    how often it began again, because tensors were lost with the node that held them
    over       nothing more of it is to be run
    """

    def __init__(
        self, flow: Flow, values: Mapping[str, Tensor], number: int, restarts: bool = False
    ) -> None:
        self.flow = flow
        self.number = number
        self.attempt = 0
        self.over = False
        # Where tensors stay on other machines, those that others made may be lost.
        self._inputs = dict(values) if restarts else None
        self._start(values)

    def _start(self, values: Mapping[str, Tensor]) -> None:
        self.values: dict[str, Tensor] = dict(values)
        self.left = len(self.flow.needs)
        self._waits = [len(needed) for needed in self.flow.needs]
        self._unread = dict(self.flow.reads)

    def restart(self) -> None:
        """Begin again from the inputs; what still runs of the attempt before does not count."""
        assert self._inputs is not None, "only devices that hold tensors lose them"
        self.attempt += 1
        self._start(self._inputs)

    def first(self) -> list[int]:
        """The segments that wait for nothing."""
        return [index for index, count in enumerate(self._waits) if count == 0]

    def finish(self, index: int, results: Mapping[str, Tensor]) -> list[int]:
        """Take what a segment gave and drop what it was the last to read; returns the segments that
        may run now."""
        flow = self.flow
        for name, tensor in results.items():
            if name in flow.reads or name in flow.kept:
                self.values[name] = tensor
        for name in flow.names[index]:
            self._unread[name] -= 1
            if self._unread[name] == 0 and name not in flow.kept:
                del self.values[name]
        self.left -= 1
        ready = []
        for reader in flow.readers[index]:
            self._waits[reader] -= 1
            if self._waits[reader] == 0:
                ready.append(reader)
        return ready
