"""Runs the programs of a language model: prefill takes tokens in chunks, decode one token of each
sequence.

The key/value cache is memory of this process, one row for each slot, and never copied: the programs
write into it. Cached tokens that a new text begins with are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from compiler.runtime.bundle import Bundle, RuntimeBundleError
from compiler.runtime.devices import Device
from compiler.runtime.fleet import Fleet
from compiler.runtime.manifest import TensorEntry, fixed_shape
from compiler.runtime.onnx_segment import Cache
from compiler.runtime.pipeline import Arrays, Pipeline
from compiler.runtime.sampling import Sampler, Sampling


@dataclass
class Slot:
    """A sequence in the cache: its place and the tokens that the cache holds."""

    index: int
    tokens: list[int] = field(default_factory=list)


class LanguageModel:
    """A language model's bundle, ready to generate.

    With `slots` above 1 the program for several sequences at once is opened instead of the one for
    a single sequence. With `stream`, a bundle that was built to keep within some memory does so;
    without, it is faster. `devices` are those of a `Runner`. Raises RuntimeBundleError for bundles
    that are none, or hold no program for so many slots.
    """

    def __init__(
        self,
        bundle: Bundle,
        threads: int = 2,
        slots: int = 1,
        stream: bool = True,
        devices: str | Sequence[Device] = "cpu",
    ) -> None:
        found = bundle.manifest.get("language")
        if found is None:
            raise RuntimeBundleError(f"{bundle.path}: is not a language model")
        self.settings = found
        self.context, self.chunk = int(found["context"]), int(found["chunk"])
        if slots > 1 and found["slots"] != slots:
            raise RuntimeBundleError(
                f"{bundle.path}: was built for {found['slots']} slots: build it with --slots {slots}"
            )
        limit = found["max_ram_bytes"] if stream else None
        self.bundle = bundle
        decode = found["programs"]["batch" if slots > 1 else "decode"]
        self.fleet = Fleet.of(devices, threads, bundle.manifest["segments"], decode["segments"])
        self._prefill = Pipeline(bundle, threads, None, limit and limit // 2, self.fleet)
        self._decode = Pipeline(bundle, threads, decode, limit and limit // 2, self.fleet)
        cached = set(self._prefill.in_place.values())
        if self._decode.in_place != self._prefill.in_place or not cached:
            raise RuntimeBundleError(
                f"{bundle.path}: its programs do not share a cache: build it again"
            )
        shapes = {t["name"]: fixed_shape(t) for t in self._prefill.inputs if t["name"] in cached}
        self._cache = {name: Cache.zeros((slots, *shape[1:])) for name, shape in shapes.items()}
        self.slots = [Slot(i) for i in range(slots)]
        self.vocabulary = fixed_shape(_logits(self._decode))[-1]

    @property
    def cache_bytes(self) -> int:
        return sum(array.nbytes for array in self._cache.values())

    def prefill(self, slot: Slot, tokens: Sequence[int]) -> np.ndarray:
        """Bring the tokens of a whole text into a slot; returns the logits [V] behind the last one.

        What the slot holds of the text already is kept. Raises ValueError for an empty text, or one
        that is too long.
        """
        logits = None
        for logits in self.prefill_steps(slot, tokens):  # noqa: B007
            pass
        assert logits is not None
        return logits

    def prefill_steps(self, slot: Slot, tokens: Sequence[int]) -> Iterator[np.ndarray]:
        """As `prefill`, chunk by chunk, so that others may have their turn in between."""
        if not 0 < len(tokens) <= self.context:
            raise ValueError(f"{len(tokens)} tokens do not fit the context of 1 to {self.context}")
        del slot.tokens[self.kept(slot, tokens) :]
        while len(slot.tokens) < len(tokens):
            begin = len(slot.tokens)
            part = list(tokens[begin : begin + self.chunk])
            padded = np.zeros((1, self.chunk), np.int64)
            padded[0, : len(part)] = part
            end = begin + self.chunk
            feeds: dict[str, np.ndarray] = {
                "tokens": padded,
                "lengths": np.array([end - 1], np.int32),
                "total": np.array([end], np.int32),
                "last": np.array([len(part) - 1], np.int64),
            }
            rows = slice(slot.index, slot.index + 1)
            logits = _run(
                self._prefill, feeds, {name: array[rows] for name, array in self._cache.items()}
            )
            slot.tokens += part
            yield logits[0, -1]

    def kept(self, slot: Slot, tokens: Sequence[int]) -> int:
        """How many tokens of a text `prefill` would find in the slot; never all, as the last one
        gives the logits."""
        limit = min(len(tokens) - 1, len(slot.tokens))
        return next((i for i in range(limit) if slot.tokens[i] != tokens[i]), limit)

    def decode(self, tokens: dict[int, int]) -> dict[int, np.ndarray]:
        """Append one token to each of some slots, given by index; returns the logits [V] behind
        each."""
        count = len(self.slots)
        ids, lengths = np.zeros((count, 1), np.int64), np.zeros(count, np.int32)
        for slot in self.slots:
            # A slot that has no token writes behind its text, where the next token will be.
            ids[slot.index, 0] = tokens.get(slot.index, 0)
            lengths[slot.index] = len(slot.tokens)
        feeds: dict[str, np.ndarray] = {
            "tokens": ids,
            "lengths": lengths,
            "total": np.array([lengths.max() + 1], np.int32),
        }
        logits = _run(self._decode, feeds, self._cache)
        for index, token in tokens.items():
            self.slots[index].tokens.append(token)
        return {index: logits[index, -1] for index in tokens}

    def generate(
        self, tokens: Sequence[int], limit: int, sampling: Sampling, slot: Slot | None = None
    ) -> Iterator[int]:
        """The tokens that follow a text, up to `limit` or the end of the context; stops behind an
        end token."""
        slot = slot or self.slots[0]
        sampler, text = Sampler(sampling), list(tokens)
        ends = set(self.settings["tokenizer"]["ends"])
        logits = self.prefill(slot, text)
        for made in range(limit):
            token = sampler.next(logits, text)
            text.append(token)
            yield token
            if token in ends or made + 1 == limit or len(slot.tokens) >= self.context:
                return
            logits = self.decode({slot.index: token})[slot.index]


def _run(pipeline: Pipeline, feeds: Arrays, cache: Arrays) -> np.ndarray:
    """The logits of one run; the cache is written in place."""
    values: dict[str, np.ndarray] = {**feeds, **cache}
    for index in range(len(pipeline.segments)):
        pipeline.advance(index, values)
    return values[_logits(pipeline)["name"]]


def _logits(pipeline: Pipeline) -> TensorEntry:
    """The entry of the one output that is no part of the cache."""
    return next(o for o in pipeline.outputs if o["name"] not in pipeline.in_place)
