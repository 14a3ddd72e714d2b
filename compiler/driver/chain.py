"""A language model in float, part by part, so that what one part does can be changed.

One run keeps what passes between the parts; later ones begin behind the part that changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compiler.frontends import Source
from compiler.frontends.decoder import ProgramShape
from compiler.frontends.decoder_parts import (
    STREAM,
    write_attention,
    write_embedding,
    write_feed_forward,
    write_head,
)
from compiler.graph import shape_of
from compiler.graph.reference import Reference, shared_options


@dataclass(frozen=True)
class Borders:
    """What one row of tokens shows: by layer the residual stream behind its attention [1, S, width]
    and what its feed-forward part adds to it, and the logits [S, vocabulary] in the end."""

    streams: list[np.ndarray]
    added: list[np.ndarray]
    logits: np.ndarray


class FloatChain:
    """Runs the parts of a model on rows of `length` tokens. Use it as a context manager."""

    def __init__(self, source: Source, length: int) -> None:
        self.shape = ProgramShape(1, length, length, all_logits=True)
        self._layers = source.architecture.layers
        with ExitStack() as stack:
            parts = [_Part(stack, write_embedding(source, self.shape), self.shape)]
            for index in range(self._layers):
                parts.append(_Part(stack, write_attention(source, self.shape, index), self.shape))
                parts.append(
                    _Part(stack, write_feed_forward(source, self.shape, index), self.shape)
                )
            parts.append(_Part(stack, write_head(source, self.shape), self.shape))
            self._embedding, *self._inner, self._head = parts
            self._stack = stack.pop_all()

    def run(self, row: np.ndarray) -> Borders:
        """The whole model on the first tokens of a row [tokens]."""
        streams: list[np.ndarray] = []
        added: list[np.ndarray] = []
        stream = self._embedding.run({"tokens": row[: self.shape.tokens].reshape(1, -1)})
        for index in range(self._layers):
            stream = self._inner[2 * index].run({STREAM: stream})
            streams.append(stream)
            added.append(self._inner[2 * index + 1].run({STREAM: stream}))
            stream = stream + added[-1]
        return Borders(streams, added, self._head.run({STREAM: stream})[0])

    def logits_with(self, borders: Borders, layer: int, added: np.ndarray) -> np.ndarray:
        """The logits [S, vocabulary] where the feed-forward part of a layer adds something else
        than in the run that left `borders`."""
        stream = borders.streams[layer] + added
        for part in range(2 * (layer + 1), 2 * self._layers, 2):
            stream = self._inner[part].run({STREAM: stream})
            stream = stream + self._inner[part + 1].run({STREAM: stream})
        logits: np.ndarray = self._head.run({STREAM: stream})[0]
        return logits

    def __enter__(self) -> FloatChain:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


class _Part:
    """One part on onnxruntime, with an empty cache."""

    def __init__(self, stack: ExitStack, model: ir.Model, shape: ProgramShape) -> None:
        self._reference = stack.enter_context(Reference(model, options=shared_options()))
        self._fixed = {
            "lengths": np.array([shape.tokens - 1], np.int32),
            "total": np.array([shape.tokens], np.int32),
        }
        for value in model.graph.inputs:
            if str(value.name).startswith("cache."):
                self._fixed[str(value.name)] = np.zeros(shape_of(value), np.float32)

    def run(self, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
        (result,) = self._reference.run({**self._fixed, **feeds}).values()
        return result
