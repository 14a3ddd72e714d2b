"""Runs the programs of a language model: prefill takes tokens in chunks, decode one token of each
sequence.

Where the rest of a text is so short that decode takes it in less time than the chunk would, decode
does: it is more precise besides, on weights of the file.

The key/value cache is memory of this process, one row for each slot, and never copied: the programs
write into it. Cached tokens that a new text begins with are kept.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from compiler.runtime.bundle import Bundle, RuntimeBundleError
from compiler.runtime.devices import Device
from compiler.runtime.executor import Executor
from compiler.runtime.fleet import Fleet, HostThreads
from compiler.runtime.manifest import LanguageEntry, TensorEntry, fixed_shape
from compiler.runtime.onnx_segment import Cache
from compiler.runtime.overlap import run_parts
from compiler.runtime.pipeline import Arrays, Pipeline
from compiler.runtime.sampling import Sampler, Sampling

# Fewer tokens are as fast read again as copied.
LEAST_COPIED = 16


@dataclass
class Slot:
    """A sequence in the cache: its row and the tokens that the cache holds."""

    index: int
    tokens: list[int] = field(default_factory=list)


class LanguageModel:
    """A language model's bundle, ready to generate.

    slots:   sequences at once. Above 1 the program for several is opened instead of the one for a
             single sequence
    stream:  whether a bundle that was built to keep within some memory does so; else it is faster
    devices: as of a `Runner`

    `context` is the number of tokens that the cache holds of a sequence, `chunk` how many of them
    prefill takes at once, `vocabulary` how many tokens there are. One thread at a time may use it.
    Raises RuntimeBundleError for bundles that are none, or hold no program for so many slots.
    """

    def __init__(
        self,
        bundle: Bundle,
        threads: int | HostThreads = 2,
        slots: int = 1,
        stream: bool = True,
        devices: str | Sequence[Device] = "cpu",
    ) -> None:
        self.bundle = bundle
        self.settings = _settings(bundle, slots)
        self.context = int(self.settings["context"])
        self.chunk = int(self.settings["chunk"])
        # A chunk is run in so many parts, which overlap.
        self._parts = int(self.settings.get("parts", 1))
        program = self.settings["programs"]["batch" if slots > 1 else "decode"]
        self.fleet = Fleet.of(devices, threads, bundle.manifest, program)
        self._executor = Executor(self.fleet)
        weakref.finalize(self, self._executor.close)
        limit = self.settings["max_ram_bytes"] if stream else None
        # Both programs are open, and each may hold half of the weights.
        half = limit // 2 if limit else limit
        count = HostThreads.of(threads).count
        self._prefill = Pipeline(bundle, count, None, half, self.fleet)
        self._decode = Pipeline(bundle, count, program, half, self.fleet)
        self._cache = self._make_cache(slots)
        self.slots = [Slot(index) for index in range(slots)]
        self.vocabulary = fixed_shape(_logits(self._decode))[-1]

    def _make_cache(self, slots: int) -> dict[str, np.ndarray]:
        """The cache by the names of the programs' inputs, each [slots, ...]."""
        cached = set(self._prefill.in_place.values())
        if self._decode.in_place != self._prefill.in_place or not cached:
            raise RuntimeBundleError(
                f"{self.bundle.path}: its programs do not share a cache: build it again"
            )
        cache: dict[str, np.ndarray] = {}
        for entry in self._prefill.inputs:
            if entry["name"] in cached:
                _, *row = fixed_shape(entry)
                cache[entry["name"]] = Cache.zeros((slots, *row))
        return cache

    def prefill(self, slot: Slot, tokens: Sequence[int]) -> np.ndarray:
        """Bring the tokens of a whole text into a slot; returns the logits [V] behind the last one.

        What the slot holds of the text already is kept. Raises ValueError for an empty text, or one
        that is too long.
        """
        # Only the last chunk's logits are kept: they are large.
        last = deque(self.prefill_steps(slot, tokens), maxlen=1)
        return last.pop()

    def prefill_steps(self, slot: Slot, tokens: Sequence[int]) -> Iterator[np.ndarray]:
        """As `prefill`, chunk by chunk, so that others may have their turn in between."""
        if not 0 < len(tokens) <= self.context:
            raise ValueError(f"{len(tokens)} tokens do not fit the context of 1 to {self.context}")
        del slot.tokens[self.kept(slot, tokens) :]
        while len(slot.tokens) < len(tokens):
            begin = len(slot.tokens)
            chunk = list(tokens[begin : begin + self.chunk])
            logits = self._prefill_chunk(slot, chunk)
            slot.tokens += chunk
            yield logits

    def _prefill_chunk(self, slot: Slot, chunk: Sequence[int]) -> np.ndarray:
        """Write a chunk behind what the slot holds; returns the logits [V] behind its end."""
        rows = slice(slot.index, slot.index + 1)
        cache = {name: array[rows] for name, array in self._cache.items()}
        begin = len(slot.tokens)
        size = self.chunk // self._parts
        feeds = []
        for first in range(0, len(chunk), size):
            feeds.append(self._part(begin + first, chunk[first : first + size]))
        if len(feeds) == 1:
            return np.asarray(self._run(self._prefill, feeds[0], cache)[0, -1])
        parts = [{**feed, **cache} for feed in feeds]
        run_parts(self._prefill, parts)
        return np.asarray(parts[-1][_logits(self._prefill)["name"]][0, -1])

    def _part(self, begin: int, tokens: Sequence[int]) -> dict[str, np.ndarray]:
        """What the program of prefill is given for tokens that go to `begin` in the cache."""
        size = self.chunk // self._parts
        padded = np.zeros((1, size), np.int64)
        padded[0, : len(tokens)] = tokens
        # The program writes as many tokens as it takes. What the padding writes is behind the text,
        # where the next tokens will be.
        end = begin + size
        return {
            "tokens": padded,
            "lengths": np.array([end - 1], np.int32),
            "total": np.array([end], np.int32),
            "last": np.array([len(tokens) - 1], np.int64),
        }

    def kept(self, slot: Slot, tokens: Sequence[int]) -> int:
        """How many tokens of a text `prefill` would find in the slot; never all, as the last one
        gives the logits."""
        limit = min(len(tokens) - 1, len(slot.tokens))
        for index in range(limit):
            if slot.tokens[index] != tokens[index]:
                return index
        return limit

    def adopt(self, slot: Slot, tokens: Sequence[int]) -> int:
        """Copy the beginning of a text into a slot from the slot that holds most of it. Returns how
        many tokens of the text the slot then holds."""
        kept = self.kept(slot, tokens)
        donor = max(self.slots, key=lambda other: self.kept(other, tokens))
        count = self.kept(donor, tokens)
        if count - kept < LEAST_COPIED:
            return kept
        for array in self._cache.values():
            # [slots, heads, places, channels]
            array[slot.index, :, kept:count] = array[donor.index, :, kept:count]
        slot.tokens[:] = tokens[:count]
        return count

    @property
    def row_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of a slot's part of the cache, by name: [heads, places, channels]."""
        return {name: array.shape[1:] for name, array in self._cache.items()}

    def read_cache(self, slot: Slot, count: int) -> dict[str, np.ndarray]:
        """A copy of what the cache holds for the first `count` tokens of a slot."""
        return {name: array[slot.index, :, :count].copy() for name, array in self._cache.items()}

    def write_cache(self, slot: Slot, tokens: Sequence[int], held: Arrays) -> None:
        """Put tokens into a slot, with what `read_cache` gave for them."""
        for name, array in self._cache.items():
            array[slot.index, :, : len(tokens)] = held[name]
        slot.tokens[:] = tokens

    def decode(self, tokens: Mapping[int, int]) -> dict[int, np.ndarray]:
        """Append one token to each of some slots, given by index; returns the logits [V] behind
        each."""
        count = len(self.slots)
        ids = np.zeros((count, 1), np.int64)
        lengths = np.zeros(count, np.int32)
        for slot in self.slots:
            # A slot that has no token writes behind its text, where the next token will be.
            ids[slot.index, 0] = tokens.get(slot.index, 0)
            lengths[slot.index] = len(slot.tokens)
        feeds: dict[str, np.ndarray] = {
            "tokens": ids,
            "lengths": lengths,
            "total": np.array([lengths.max() + 1], np.int32),
        }
        logits = self._run(self._decode, feeds, self._cache)
        # Only now, so that a run that fails appends nothing.
        for index, token in tokens.items():
            self.slots[index].tokens.append(token)
        return {index: logits[index, -1] for index in tokens}

    def _run(self, pipeline: Pipeline, feeds: Arrays, cache: Arrays) -> np.ndarray:
        """The logits of one run; the cache is written in place."""
        results = self._executor.run(pipeline, {**feeds, **cache})
        return results[_logits(pipeline)["name"]]

    def generate(
        self, tokens: Sequence[int], limit: int, sampling: Sampling, slot: Slot | None = None
    ) -> Iterator[int]:
        """The tokens that follow a text, up to `limit` or the end of the context; stops behind an
        end token."""
        slot = slot or self.slots[0]
        sampler = Sampler(sampling)
        text = list(tokens)
        ends = set(self.settings["tokenizer"]["ends"])
        logits = self.prefill(slot, text)
        for number in range(1, limit + 1):
            token = sampler.next(logits, text)
            text.append(token)
            yield token
            is_full = len(slot.tokens) >= self.context
            if token in ends or number == limit or is_full:
                return
            logits = self.decode({slot.index: token})[slot.index]


def _settings(bundle: Bundle, slots: int) -> LanguageEntry:
    """The manifest's part on a language model. Raises RuntimeBundleError where there is none for so
    many slots."""
    settings = bundle.manifest.get("language")
    if settings is None:
        raise RuntimeBundleError(f"{bundle.path}: is not a language model")
    if slots > 1 and settings["slots"] != slots:
        raise RuntimeBundleError(
            f"{bundle.path}: was built for {settings['slots']} slots, not for {slots}: build it "
            "again with so many"
        )
    return settings


def _logits(pipeline: Pipeline) -> TensorEntry:
    """The entry of the one output that is no part of the cache."""
    return next(entry for entry in pipeline.outputs if entry["name"] not in pipeline.in_place)
