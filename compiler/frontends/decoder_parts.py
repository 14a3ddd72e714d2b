"""Writes parts of a decoder as models of their own, to look at one without the others.

    write_embedding     tokens to the residual stream in front of the first layer
    write_attention     to the stream behind the attention of a layer, with an empty cache
    write_feed_forward  to what the feed-forward part of a layer adds to the stream
    write_head          to the logits of all tokens

All of them read STREAM [B, S, width], but for the first, and give one output. Names are those of
the whole program.
"""

from __future__ import annotations

import onnx_ir as ir

from compiler.frontends.architecture import Source
from compiler.frontends.decoder import Decoder, ProgramShape, model_of

STREAM = "stream"


def write_embedding(source: Source, program_shape: ProgramShape) -> ir.Model:
    return model_of(_Part(source, program_shape).embedding())


def write_attention(source: Source, program_shape: ProgramShape, index: int) -> ir.Model:
    return model_of(_Part(source, program_shape).attention(index))


def write_feed_forward(source: Source, program_shape: ProgramShape, index: int) -> ir.Model:
    return model_of(_Part(source, program_shape).feed_forward(index))


def write_head(source: Source, program_shape: ProgramShape) -> ir.Model:
    return model_of(_Part(source, program_shape).head())


class _Part(Decoder):
    """Writes one part."""

    def embedding(self) -> ir.Graph:
        return self._ending_in(self._embedded(self._tokens()))

    def attention(self, index: int) -> ir.Graph:
        stream = self._stream()
        self._places()
        return self._ending_in(self._behind_attention(index, stream)[0])

    def feed_forward(self, index: int) -> ir.Graph:
        return self._ending_in(self._feed_forward(index, self._stream()))

    def head(self) -> ir.Graph:
        return self._ending_in(self._head(self._stream()))

    def _stream(self) -> ir.Value:
        shape = (self._program.batch, self._program.tokens, self._architecture.width)
        return self._writer.input(STREAM, shape, ir.DataType.FLOAT)

    def _ending_in(self, output: ir.Value) -> ir.Graph:
        self._writer.graph.outputs.append(output)
        return self._writer.graph
