"""Writes a decoder as an ONNX graph of static shapes, with its key/value cache as inputs and
outputs.

    inputs    tokens [B, S], lengths [B], total [1], last [1] (see below),
              cache.i.key and cache.i.value [B, KV, C, H] for each layer i
    outputs   logits [B, 1, V], or [B, S, V]; present.i.key and present.i.value [B, KV, C, H]

with B sequences, S tokens of each, C places in the cache, KV heads of keys and values, H channels
of a head, and a vocabulary of V.

`lengths` counts, per sequence, the tokens in the cache once these S are in it, less one; `total` is
the largest number of tokens in the cache. `last` is there where S > 1 and only one token's logits
are wanted: its place among the S. The same weights give the same names, whatever B and S are.
Attention is onnxruntime's GroupQueryAttention, whose present tensors may be the very memory of its
past.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from compiler.frontends import rope
from compiler.frontends.architecture import Source
from compiler.frontends.graph_writer import CONTRIB, GraphWriter, declare
from compiler.graph import HOST_REASON, IR_VERSION, ORIGIN, Shape, element_count, shape_of
from compiler.quantize.rotation import REASON
from compiler.quantize.samples import Sample

# How the names of nodes end that compute what is to be fused.
FUSED = "/fused"
# Why tokens are parted on the host.
FIRST_REASON = "it sets the first tokens apart, which are far larger than others"


@dataclass(frozen=True)
class ProgramShape:
    """Which program of the model: `batch` sequences, `tokens` of each at a time, `context` places
    in the cache.

    With more than one token, logits are those of the token `last`, or with `all_logits` of every
    token. The feed-forward parts of the layers in `fused` have nodes of their own for all tokens
    but the first `first_rows`, with names that end in FUSED.
    """

    batch: int
    tokens: int
    context: int
    all_logits: bool = False
    fused: frozenset[int] = frozenset()
    first_rows: int = 0


def write(source: Source, program_shape: ProgramShape) -> ir.Model:
    """The program of `source` in the given shape; weights are read when the graph is."""
    return model_of(Decoder(source, program_shape).write())


def model_of(graph: ir.Graph) -> ir.Model:
    return ir.Model(graph, ir_version=IR_VERSION, producer_name="coral-bundle")


def in_place(layers: int) -> dict[str, str]:
    """By output the input that it is an update of, and whose memory it may take."""
    pairs = {}
    for index in range(layers):
        for kind in ("key", "value"):
            pairs[f"present.{index}.{kind}"] = f"cache.{index}.{kind}"
    return pairs


def sample(graph: ir.Graph, tokens: np.ndarray, program_shape: ProgramShape) -> Sample:
    """Inputs of a program of one sequence for the first of `tokens`, with an empty cache."""
    count = program_shape.tokens
    feeds: Sample = {
        "tokens": tokens[:count].reshape(1, -1),
        "lengths": np.array([count - 1], np.int32),
        "total": np.array([count], np.int32),
    }
    for value in graph.inputs:
        name = str(value.name)
        if name == "last":
            feeds[name] = np.array([count - 1], np.int64)
        elif name not in feeds:
            feeds[name] = np.zeros(shape_of(value), np.float32)
    return feeds


class Decoder:
    """Writes one program, or parts of it (frontends/decoder_parts.py).

    Weights of layer i have names that begin with `blk.i.`, as in GGUF.
    """

    def __init__(self, source: Source, program_shape: ProgramShape) -> None:
        self._source = source
        self._architecture = source.architecture
        self._program = program_shape
        self._writer = GraphWriter("decoder")
        # (cos, sin) of each rotary base that was asked for.
        self._angles: dict[float, tuple[ir.Value, ir.Value]] = {}

    def write(self) -> ir.Graph:
        tokens = self._tokens()
        self._places()
        stream = self._embedded(tokens)
        presents: list[ir.Value] = []
        for index in range(self._architecture.layers):
            stream, present = self._layer(index, stream)
            presents += present
        self._writer.graph.outputs.extend([self._head(stream), *presents])
        return self._writer.graph

    def _tokens(self) -> ir.Value:
        shape = (self._program.batch, self._program.tokens)
        return self._writer.input("tokens", shape, ir.DataType.INT64)

    def _places(self) -> None:
        """The inputs that say where in the cache the tokens go."""
        batch = self._program.batch
        self._lengths = self._writer.input("lengths", (batch,), ir.DataType.INT32)
        self._total = self._writer.input("total", (1,), ir.DataType.INT32)

    def _head(self, stream: ir.Value) -> ir.Value:
        """The logits of the residual stream behind the last layer."""
        stream = self._norm("output_norm", stream)
        if self._program.tokens > 1 and not self._program.all_logits:
            stream = self._last_token(stream)
        # Many models use their embeddings as the weights of the head too.
        is_tied = not self._has("output.weight")
        head = "token_embd" if is_tied else "output"
        return self._linear(head, stream, self._architecture.vocabulary, output="logits")

    def _has(self, weight: str) -> bool:
        return weight in self._source.weights

    def _embedded(self, tokens: ir.Value) -> ir.Value:
        """The residual stream [B, S, width] in front of the first layer."""
        writer = self._writer
        vocabulary = self._architecture.vocabulary
        width = self._architecture.width
        shape = (*shape_of(tokens), width)
        weight = self._source.weight("token_embd.weight", vocabulary, width)
        # The table is the largest tensor that the host keeps, and float16 halves it.
        table = writer.weight("token_embd.weight", weight, np.float16)
        halves = writer.op(
            "embed", "Gather", [table, tokens], shape, {"axis": 0}, dtype=ir.DataType.FLOAT16
        )
        to_float = {"to": ir.DataType.FLOAT.value}
        stream = writer.op("embed/float", "Cast", [halves], shape, to_float)
        scale = self._architecture.embedding_scale
        if scale == 1:
            return stream
        factor = writer.array("embed/factor", np.float32(scale))
        return writer.op("embed/scale", "Mul", [stream, factor], shape)

    def _last_token(self, stream: ir.Value) -> ir.Value:
        last = self._writer.input("last", (1,), ir.DataType.INT64)
        shape = (self._program.batch, 1, self._architecture.width)
        return self._writer.op("last/hidden", "Gather", [stream, last], shape, {"axis": 1})

    def _layer(self, index: int, stream: ir.Value) -> tuple[ir.Value, list[ir.Value]]:
        """The residual stream behind a layer, and what is then in its cache."""
        stream, present = self._behind_attention(index, stream)
        output = self._feed_forward(index, stream)
        return self._writer.add(f"blk.{index}.ffn_residual", stream, output), present

    def _behind_attention(self, index: int, stream: ir.Value) -> tuple[ir.Value, list[ir.Value]]:
        """The residual stream behind a layer's attention, and what is then in its cache."""
        prefix = f"blk.{index}."
        mixed, present = self._attention(index, stream)
        output = self._linear(f"{prefix}attn_output", mixed, self._architecture.width)
        output = self._optional_norm(f"{prefix}post_attention_norm", output)
        return self._writer.add(f"{prefix}attn_residual", stream, output), present

    def _feed_forward(self, index: int, stream: ir.Value) -> ir.Value:
        """What the feed-forward part of a layer adds to the residual stream."""
        prefix = f"blk.{index}."
        normed = self._input_norm(f"{prefix}ffn_norm", stream)
        if index not in self._program.fused:
            output = self._gated(prefix, normed)
        elif self._program.first_rows == 0:
            output = self._gated(prefix, normed, FUSED)
        else:
            output = self._in_two(prefix, normed)
        return self._optional_norm(f"{prefix}post_ffw_norm", output)

    def _in_two(self, prefix: str, normed: ir.Value) -> ir.Value:
        """As `_gated`, the first tokens apart from the others, which are to be fused."""
        batch, tokens, width = shape_of(normed)
        first = self._program.first_rows
        sizes = (first, tokens - first)
        parts = self._writer.split(f"{prefix}ffn_parts", normed, sizes, axis=1)
        outputs = [self._gated(prefix, parts[0]), self._gated(prefix, parts[1], FUSED)]
        shape = (batch, tokens, width)
        joined = self._writer.op(f"{prefix}ffn_joined", "Concat", outputs, shape, {"axis": 1})
        for value in (parts[0], joined):
            node = value.producer()
            assert node is not None
            node.metadata_props[HOST_REASON] = FIRST_REASON
        return joined

    def _attention(self, index: int, stream: ir.Value) -> tuple[ir.Value, list[ir.Value]]:
        """(values mixed by attention [B, S, heads * H], what is then in the cache)."""
        prefix = f"blk.{index}."
        heads = self._architecture.heads
        kv_heads = self._architecture.kv_heads
        head = self._architecture.head
        normed = self._input_norm(f"{prefix}attn_norm", stream)
        query = self._linear(f"{prefix}attn_q", normed, heads * head)
        key = self._linear(f"{prefix}attn_k", normed, kv_heads * head)
        value = self._linear(f"{prefix}attn_v", normed, kv_heads * head)
        if self._has(f"{prefix}attn_q_norm.weight"):
            query = self._head_norm(f"{prefix}attn_q_norm", query, heads)
            key = self._head_norm(f"{prefix}attn_k_norm", key, kv_heads)
        return self._group_query_attention(index, query, key, value)

    def _group_query_attention(
        self,
        index: int,
        query: ir.Value,
        key: ir.Value | None = None,
        value: ir.Value | None = None,
    ) -> tuple[ir.Value, list[ir.Value]]:
        """As `_attention`; without keys and values, `query` holds all three, joined."""
        architecture = self._architecture
        cache_shape = (
            self._program.batch,
            architecture.kv_heads,
            self._program.context,
            architecture.head,
        )
        past = [
            self._writer.input(f"cache.{index}.{kind}", cache_shape, ir.DataType.FLOAT)
            for kind in ("key", "value")
        ]
        attributes: dict[str, Any] = {
            "num_heads": architecture.heads,
            "kv_num_heads": architecture.kv_heads,
            "do_rotary": 1,
            "rotary_interleaved": int(architecture.interleaved),
            "scale": architecture.attention_scale or 1 / math.sqrt(architecture.head),
            "local_window_size": architecture.windows[index] or -1,
        }
        cos, sin = self._rotary_tables(architecture.bases[index])
        name = f"blk.{index}.attention"
        node = ir.node(
            "GroupQueryAttention",
            [query, key, value, *past, self._lengths, self._total, cos, sin],
            attributes,
            domain=CONTRIB,
            num_outputs=3,
            name=name,
        )
        node.metadata_props[ORIGIN] = name
        self._writer.graph.append(node)
        mixed, present_key, present_value = node.outputs
        mixed_shape = (*shape_of(query)[:-1], architecture.heads * architecture.head)
        declare(mixed, name, mixed_shape, ir.DataType.FLOAT)
        declare(present_key, f"present.{index}.key", cache_shape, ir.DataType.FLOAT)
        declare(present_value, f"present.{index}.value", cache_shape, ir.DataType.FLOAT)
        return mixed, [present_key, present_value]

    def _rotary_tables(self, base: float) -> tuple[ir.Value, ir.Value]:
        """(cos, sin) [C, rotary / 2] of the angles of every place in the cache."""
        if base in self._angles:
            return self._angles[base]
        cosines, sines = rope.tables(self._architecture, base, self._program.context)
        cos = self._writer.array(f"rotary.{base:g}.cos", cosines)
        sin = self._writer.array(f"rotary.{base:g}.sin", sines)
        self._angles[base] = (cos, sin)
        return cos, sin

    def _gated(self, prefix: str, normed: ir.Value, suffix: str = "") -> ir.Value:
        """down(activation(gate(x)) * up(x)) of the normed stream x; names end in `suffix`."""
        hidden = self._architecture.hidden
        gate = self._linear(f"{prefix}ffn_gate", normed, hidden, suffix=suffix)
        up = self._linear(f"{prefix}ffn_up", normed, hidden, suffix=suffix)
        return self._from_gates(prefix, gate, up, suffix)

    def _from_gates(self, prefix: str, gate: ir.Value, up: ir.Value, suffix: str = "") -> ir.Value:
        """down(activation(gate) * up); names end in `suffix`."""
        active = self._activation(prefix, gate, suffix)
        shape = shape_of(gate)
        gated = self._writer.op(f"{prefix}ffn_gated{suffix}", "Mul", [active, up], shape)
        rotated = self._rotated(prefix, gated, suffix)
        return self._linear(f"{prefix}ffn_down", rotated, self._architecture.width, suffix=suffix)

    def _activation(self, prefix: str, gate: ir.Value, suffix: str = "") -> ir.Value:
        writer = self._writer
        shape = shape_of(gate)
        if self._architecture.activation == "gelu":
            name = f"{prefix}ffn_gelu{suffix}"
            return writer.op(name, "Gelu", [gate], shape, {"approximate": "tanh"})
        sigmoid = writer.op(f"{prefix}ffn_sigmoid{suffix}", "Sigmoid", [gate], shape)
        return writer.op(f"{prefix}ffn_silu{suffix}", "Mul", [gate, sigmoid], shape)

    def _rotated(self, prefix: str, x: ir.Value, suffix: str = "") -> ir.Value:
        """Blocks of channels multiplied by the source's rotation, where it has one."""
        rotation = self._source.rotation
        if rotation is None:
            return x
        size = len(rotation)
        blocks = self._writer.reshape(
            f"{prefix}ffn_blocks{suffix}", x, (element_count(x) // size, size)
        )
        matrix = self._writer.array("rotation", rotation.T)
        turned = self._writer.op(
            f"{prefix}ffn_turned{suffix}", "MatMul", [blocks, matrix], shape_of(blocks)
        )
        node = turned.producer()
        assert node is not None
        # In int8 it would round away what it was made for.
        node.metadata_props[HOST_REASON] = REASON
        return self._writer.reshape(f"{prefix}ffn_rows{suffix}", turned, shape_of(x))

    def _linear(
        self,
        name: str,
        x: ir.Value,
        outputs: int,
        output: str | None = None,
        suffix: str = "",
    ) -> ir.Value:
        """x W^T, plus the bias where the source has one. `output` names the result, else `name`
        with the suffix."""
        *rows, inputs = shape_of(x)
        has_bias = self._has(f"{name}.bias")
        weight = self._source.weight(f"{name}.weight", outputs, inputs)
        matrix = self._writer.transposed(f"{name}.weight/T", weight)
        made = f"{name}{suffix}"
        shape: Shape = (*rows, outputs)
        product_name = f"{made}/product" if has_bias else made
        product = self._writer.op(output or product_name, "MatMul", [x, matrix], shape)
        if not has_bias:
            return product
        bias = self._source.weight(f"{name}.bias", outputs)
        bias_value = self._writer.weight(f"{name}.bias", bias, np.float32)
        return self._writer.add(made, product, bias_value)

    def _norm(self, name: str, x: ir.Value) -> ir.Value:
        """RMSNorm over the last axis, with a gain."""
        weight = self._source.weight(f"{name}.weight", shape_of(x)[-1])
        gain = self._writer.weight(f"{name}.weight", weight, np.float32)
        attributes = {"axis": -1, "epsilon": self._architecture.epsilon}
        return self._writer.op(name, "RMSNormalization", [x, gain], shape_of(x), attributes)

    def _input_norm(self, name: str, x: ir.Value) -> ir.Value:
        """The norm that nearly all families have in front of a block."""
        return self._norm(name, x) if self._architecture.norms_inputs else x

    def _optional_norm(self, name: str, x: ir.Value) -> ir.Value:
        """The norm that some families have behind a block."""
        if not self._has(f"{name}.weight"):
            return x
        return self._norm(name, x)

    def _head_norm(self, name: str, x: ir.Value, heads: int) -> ir.Value:
        """A norm over the channels of each head by itself, or where it has a gain for each channel
        of all heads, over all of them."""
        shape = shape_of(x)
        if self._source.weights[f"{name}.weight"].shape == shape[-1:]:
            return self._norm(name, x)
        split = self._writer.reshape(
            f"{name}/heads", x, (*shape[:-1], heads, self._architecture.head)
        )
        return self._writer.reshape(f"{name}/joined", self._norm(name, split), shape)
