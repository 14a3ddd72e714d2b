"""Writes a decoder for the host alone, on weights as its file holds them, in few operators.

It computes what decoder.py's does, with the same inputs and outputs, for one token of each
sequence:

    residual add and norm    SkipSimplifiedLayerNormalization
    query, key and value     one MatMulNBits, whose result GroupQueryAttention takes as it is
    gate and up              one MatMulNBits, then Split, QuickGelu (SiLU) and Mul

Layers are joined where their weights are of one form. An operator costs some microseconds whatever
it does, which is most of the time of small models: SmolLM2-135M has 550 instead of 1,850.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import onnx_ir as ir

from compiler.frontends.architecture import Source, Weight
from compiler.frontends.blocks import BLOCK, BlockForm, rounded_form
from compiler.frontends.decoder import Decoder, ProgramShape
from compiler.frontends.graph_writer import CONTRIB, declare
from compiler.frontends.nbits import Joined, LinearWriter
from compiler.graph import IR_VERSION, ORIGIN, shape_of

# Of which weights decode is made: blocks as in the file; or blocks of 4 bits, 8 for the head, with
# int8 activations.
Precision = Literal["file", "4bit"]
_ATTENTION = ("attn_q", "attn_k", "attn_v")
_GATES = ("ffn_gate", "ffn_up")
_HEADS = ("output", "token_embd")


def write(source: Source, program_shape: ProgramShape, precision: Precision = "file") -> ir.Model:
    """The program of `source` for one token of each sequence; weights are read when it is."""
    graph = _HostDecoder(source, program_shape, precision).write()
    return ir.Model(graph, ir_version=IR_VERSION, producer_name="coral-bundle")


def form_of(weight: Weight, precision: Precision, is_head: bool = False) -> BlockForm | None:
    """The blocks that a weight is held in; None for one that stays in float."""
    if weight.shape[-1] % BLOCK:
        return None
    if precision == "4bit" and not is_head:
        has_four_bits = weight.blocks is not None and weight.blocks.bits == 4
        return weight.blocks if has_four_bits else rounded_form(weight.rows, bits=4)
    return weight.blocks or rounded_form(weight.rows)


def layers(source: Source) -> Iterator[tuple[str, Weight, bool]]:
    """(name, weight, whether it is the head) of all linear layers."""
    head = "output" if "output.weight" in source.weights else "token_embd"
    for key, weight in source.weights.items():
        name = key.removesuffix(".weight")
        is_head = name == head
        if len(weight.shape) == 2 and (is_head or name not in _HEADS):
            yield name, weight, is_head


class _HostDecoder(Decoder):
    """As `Decoder`. What a block adds to the residual stream stays apart until the next norm, which
    adds it."""

    def __init__(self, source: Source, program_shape: ProgramShape, precision: Precision) -> None:
        super().__init__(source, program_shape)
        self._precision = precision
        self._linears = LinearWriter(self._writer, int8_activations=precision == "4bit")

    def write(self) -> ir.Graph:
        architecture = self._architecture
        tokens = self._tokens()
        self._places()
        stream = self._embedded(tokens)
        normed = self._input_norm("blk.0.attn_norm", stream)
        presents: list[ir.Value] = []
        for index in range(architecture.layers):
            prefix = f"blk.{index}."
            mixed, present = self._attend(index, normed)
            presents += present
            added = self._linear(f"{prefix}attn_output", mixed, architecture.width)
            added = self._optional_norm(f"{prefix}post_attention_norm", added)
            stream, normed = self._added_norm(f"{prefix}ffn_norm", stream, added)
            added = self._feed(prefix, normed)
            added = self._optional_norm(f"{prefix}post_ffw_norm", added)
            is_last = index + 1 == architecture.layers
            next_norm = "output_norm" if is_last else f"blk.{index + 1}.attn_norm"
            stream, normed = self._added_norm(next_norm, stream, added)
        head = "output" if self._has("output.weight") else "token_embd"
        logits = self._linear(head, normed, architecture.vocabulary, output="logits")
        self._writer.graph.outputs.extend([logits, *presents])
        return self._writer.graph

    def _added_norm(
        self, name: str, stream: ir.Value, added: ir.Value
    ) -> tuple[ir.Value, ir.Value]:
        """(stream + added, its RMSNorm with a gain); the sum twice in front of a block of a family
        that has no norm there."""
        shape = shape_of(stream)
        if name != "output_norm" and not self._architecture.norms_inputs:
            total = self._writer.add(f"{name}/stream", stream, added)
            return total, total
        weight = self._source.weight(f"{name}.weight", shape[-1])
        gain = self._writer.weight(f"{name}.weight", weight, np.float32)
        attributes = {"epsilon": self._architecture.epsilon}
        node = ir.node(
            "SkipSimplifiedLayerNormalization",
            [stream, added, gain],
            attributes,
            domain=CONTRIB,
            num_outputs=4,
            name=name,
        )
        node.metadata_props[ORIGIN] = name
        self._writer.graph.append(node)
        normed, mean, deviation, total = node.outputs
        mean.name = deviation.name = ""
        declare(normed, name, shape, ir.DataType.FLOAT)
        declare(total, f"{name}/stream", shape, ir.DataType.FLOAT)
        return total, normed

    def _attend(self, index: int, normed: ir.Value) -> tuple[ir.Value, list[ir.Value]]:
        """(values mixed by attention [B, 1, heads * H], what is then in the cache)."""
        prefix = f"blk.{index}."
        architecture = self._architecture
        sizes = (architecture.heads, architecture.kv_heads, architecture.kv_heads)
        outputs = [size * architecture.head for size in sizes]
        names = [prefix + name for name in _ATTENTION]
        joined = self._joined(f"{prefix}attn_qkv", normed, names, outputs)
        has_norms = self._has(f"{prefix}attn_q_norm.weight")
        if joined is not None and not has_norms:
            return self._group_query_attention(index, joined)
        if joined is not None:
            query, key, value = self._split(f"{prefix}attn_split", joined, names, outputs)
        else:
            linears = zip(names, outputs, strict=True)
            query, key, value = (self._linear(name, normed, count) for name, count in linears)
        if has_norms:
            query = self._head_norm(f"{prefix}attn_q_norm", query, architecture.heads)
            key = self._head_norm(f"{prefix}attn_k_norm", key, architecture.kv_heads)
        return self._group_query_attention(index, query, key, value)

    def _feed(self, prefix: str, normed: ir.Value) -> ir.Value:
        """down(activation(gate(x)) * up(x)) of a normed x."""
        hidden = self._architecture.hidden
        names = [prefix + name for name in _GATES]
        joined = self._joined(f"{prefix}ffn_gates", normed, names, [hidden, hidden])
        if joined is not None:
            gate, up = self._split(f"{prefix}ffn_split", joined, names, [hidden, hidden])
        else:
            gate, up = (self._linear(name, normed, hidden) for name in names)
        return self._from_gates(prefix, gate, up)

    def _activation(self, prefix: str, gate: ir.Value, suffix: str = "") -> ir.Value:
        if self._architecture.activation == "gelu":
            return super()._activation(prefix, gate, suffix)
        name = f"{prefix}ffn_silu{suffix}"
        # x * sigmoid(alpha * x)
        attributes = {"alpha": 1.0}
        return self._writer.op(
            name, "QuickGelu", [gate], shape_of(gate), attributes, domain=CONTRIB
        )

    def _joined(
        self, name: str, x: ir.Value, names: Sequence[str], outputs: Sequence[int]
    ) -> ir.Value | None:
        """The joined outputs of layers that read x; None where their weights have several forms, or
        only some of them a bias."""
        inputs = shape_of(x)[-1]
        forms = [
            self._form(each, count, inputs) for each, count in zip(names, outputs, strict=True)
        ]
        known = [form for form in forms if form is not None]
        layouts = {self._linears.columns([form], inputs) for form in known}
        biased = [self._has(f"{each}.bias") for each in names]
        if len(known) < len(forms) or len(layouts) > 1 or len(set(biased)) > 1:
            return None
        bias = self._joined_bias(name, names, outputs) if all(biased) else None
        return self._linears.product(name, x, Joined(known, outputs, bias))

    def _form(self, name: str, outputs: int, inputs: int) -> BlockForm | None:
        weight = self._source.weight(f"{name}.weight", outputs, inputs)
        return form_of(weight, self._precision, is_head=name in _HEADS)

    def _joined_bias(self, name: str, names: Sequence[str], outputs: Sequence[int]) -> ir.Value:
        parts = []
        for each, count in zip(names, outputs, strict=True):
            parts.append(self._source.weight(f"{each}.bias", count).array())
        return self._writer.array(f"{name}.bias", np.concatenate(parts))

    def _split(
        self, name: str, joined: ir.Value, names: Sequence[str], outputs: Sequence[int]
    ) -> list[ir.Value]:
        """The outputs of joined layers, each by itself."""
        sizes = self._writer.array(f"{name}/sizes", np.array(outputs, np.int64))
        node = ir.node("Split", [joined, sizes], {"axis": -1}, num_outputs=len(outputs), name=name)
        node.metadata_props[ORIGIN] = name
        self._writer.graph.append(node)
        rows = shape_of(joined)[:-1]
        for value, each, count in zip(node.outputs, names, outputs, strict=True):
            declare(value, each, (*rows, count), ir.DataType.FLOAT)
        return list(node.outputs)

    def _linear(
        self,
        name: str,
        x: ir.Value,
        outputs: int,
        output: str | None = None,
        suffix: str = "",
    ) -> ir.Value:
        form = self._form(name, outputs, shape_of(x)[-1])
        if form is None:
            return super()._linear(name, x, outputs, output, suffix)
        bias = None
        if self._has(f"{name}.bias"):
            bias = self._joined_bias(name, [name], [outputs])
        return self._linears.product(name, x, Joined([form], [outputs], bias), output)
