"""Writes a decoder as an ONNX graph of static shapes, with its key/value cache as inputs and
outputs.

tokens [B, S], lengths [B], total [1], (last [1]), cache.i.key [B, KV, C, H]  ->  logits [B, 1, V],
present.i.*

`lengths` counts, per sequence, the tokens in the cache once these are in it, less one; `total` is
the largest such count; `last` is the place among the S tokens whose logits are wanted. The same
weights give the same names, whatever B and S are. Attention is onnxruntime's GroupQueryAttention,
whose present tensors may be the very memory of its past.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from compiler.frontends.architecture import Source, Weight
from compiler.graph import COLUMNS, HOST_REASON, IR_VERSION, OPSET, ORIGIN, element_count, shape_of
from compiler.quantize.rotation import REASON

CONTRIB = "com.microsoft"


@dataclass(frozen=True)
class ProgramShape:
    """Which program of the model: `batch` sequences, `tokens` of each at a time, `context` places
    in the cache.

    With more than one token, logits are those of the token `last`, or with `all_logits` of every
    token.
    """

    batch: int
    tokens: int
    context: int
    all_logits: bool = False


def write(source: Source, program_shape: ProgramShape) -> ir.Model:
    """The model of `source` in the given form; weights are read when the graph is."""
    return _Writer(source, program_shape).model()


def in_place(layers: int) -> dict[str, str]:
    """By output the input that it is an update of, and whose memory it may take."""
    names = [f"{index}.{kind}" for index in range(layers) for kind in ("key", "value")]
    return {f"present.{name}": f"cache.{name}" for name in names}


class _Writer:
    def __init__(self, source: Source, program_shape: ProgramShape) -> None:
        self.source, self.program_shape, self.a = source, program_shape, source.architecture
        self.graph = ir.Graph(
            [], [], nodes=[], opset_imports={"": OPSET, CONTRIB: 1}, name="decoder"
        )
        self.angles: dict[float, tuple[ir.Value, ir.Value]] = {}

    def model(self) -> ir.Model:
        a, program_shape = self.a, self.program_shape
        tokens = self.input(
            "tokens", (program_shape.batch, program_shape.tokens), ir.DataType.INT64
        )
        self.lengths = self.input("lengths", (program_shape.batch,), ir.DataType.INT32)
        self.total = self.input("total", (1,), ir.DataType.INT32)
        shape = (program_shape.batch, program_shape.tokens, a.width)
        table = self.constant(
            "token_embd.weight",
            self.source.weight("token_embd.weight", a.vocabulary, a.width),
            np.float16,
        )
        x = self.op(
            "embed", "Gather", [table, tokens], shape, {"axis": 0}, dtype=ir.DataType.FLOAT16
        )
        x = self.op("embed/float", "Cast", [x], shape, {"to": ir.DataType.FLOAT.value})
        if a.embedding_scale != 1:
            x = self.op(
                "embed/scale",
                "Mul",
                [x, self.array("embed/factor", np.float32(a.embedding_scale))],
                shape,
            )
        presents: list[ir.Value] = []
        for index in range(a.layers):
            x, cache = self.layer(index, x)
            presents += cache
        x = self.norm("output_norm", x)
        if program_shape.tokens > 1 and not program_shape.all_logits:
            last = self.input("last", (1,), ir.DataType.INT64)
            x = self.op(
                "last/hidden", "Gather", [x, last], (program_shape.batch, 1, a.width), {"axis": 1}
            )
        tied = "output.weight" not in self.source.weights
        head = self.linear("token_embd" if tied else "output", x, a.vocabulary, "logits")
        self.graph.outputs.extend([head, *presents])
        return ir.Model(self.graph, ir_version=IR_VERSION, producer_name="coral-bundle")

    def layer(self, index: int, x: ir.Value) -> tuple[ir.Value, list[ir.Value]]:
        a, p = self.a, f"blk.{index}."
        h = self.norm(f"{p}attn_norm", x)
        q = self.linear(f"{p}attn_q", h, a.heads * a.head)
        k = self.linear(f"{p}attn_k", h, a.kv_heads * a.head)
        v = self.linear(f"{p}attn_v", h, a.kv_heads * a.head)
        if f"{p}attn_q_norm.weight" in self.source.weights:
            q, k = (
                self.head_norm(f"{p}attn_q_norm", q, a.heads),
                self.head_norm(f"{p}attn_k_norm", k, a.kv_heads),
            )
        mixed, cache = self.attention(index, q, k, v)
        y = self.linear(f"{p}attn_output", mixed, a.width)
        x = self.add(f"{p}attn_residual", x, self.after(f"{p}post_attention_norm", y))
        h = self.norm(f"{p}ffn_norm", x)
        gate, up = self.linear(f"{p}ffn_gate", h, a.hidden), self.linear(f"{p}ffn_up", h, a.hidden)
        y = self.linear(f"{p}ffn_down", self.gated(p, gate, up), a.width)
        return self.add(f"{p}ffn_residual", x, self.after(f"{p}post_ffw_norm", y)), cache

    def gated(self, p: str, gate: ir.Value, up: ir.Value) -> ir.Value:
        shape = shape_of(gate)
        if self.a.activation == "gelu":
            active = self.op(f"{p}ffn_gelu", "Gelu", [gate], shape, {"approximate": "tanh"})
        else:
            sigmoid = self.op(f"{p}ffn_sigmoid", "Sigmoid", [gate], shape)
            active = self.op(f"{p}ffn_silu", "Mul", [gate, sigmoid], shape)
        return self.rotated(p, self.op(f"{p}ffn_gated", "Mul", [active, up], shape))

    def rotated(self, p: str, x: ir.Value) -> ir.Value:
        """Q x for each row, where the source asks for it."""
        rotation = self.source.rotation
        if rotation is None:
            return x
        blocks = self.reshape(
            f"{p}ffn_blocks", x, (element_count(x) // len(rotation), len(rotation))
        )
        turn = self.array("rotation", rotation.T)
        product = self.op(f"{p}ffn_turned", "MatMul", [blocks, turn], shape_of(blocks))
        node = product.producer()
        assert node is not None
        node.metadata_props[HOST_REASON] = REASON
        return self.reshape(f"{p}ffn_rows", product, shape_of(x))

    def attention(
        self, index: int, q: ir.Value, k: ir.Value, v: ir.Value
    ) -> tuple[ir.Value, list[ir.Value]]:
        a, program_shape = self.a, self.program_shape
        shape = (program_shape.batch, a.kv_heads, program_shape.context, a.head)
        past = [
            self.input(f"cache.{index}.{kind}", shape, ir.DataType.FLOAT)
            for kind in ("key", "value")
        ]
        scale = a.attention_scale or 1 / math.sqrt(a.head)
        attributes: dict[str, Any] = {
            "num_heads": a.heads,
            "kv_num_heads": a.kv_heads,
            "do_rotary": 1,
            "rotary_interleaved": int(a.interleaved),
            "scale": scale,
            "local_window_size": a.windows[index] or -1,
        }
        cos, sin = self.rotary(a.bases[index])
        inputs = [q, k, v, *past, self.lengths, self.total, cos, sin]
        node = ir.node(
            "GroupQueryAttention",
            inputs,
            attributes,
            domain=CONTRIB,
            num_outputs=3,
            name=f"blk.{index}.attention",
        )
        node.metadata_props[ORIGIN] = str(node.name)
        self.graph.append(node)
        names = [f"blk.{index}.attention", f"present.{index}.key", f"present.{index}.value"]
        for value, name, dims in zip(node.outputs, names, (shape_of(q), shape, shape), strict=True):
            value.name, value.shape, value.type = (
                name,
                ir.Shape(dims),
                ir.TensorType(ir.DataType.FLOAT),
            )
        return node.outputs[0], list(node.outputs[1:])

    def rotary(self, base: float) -> tuple[ir.Value, ir.Value]:
        """(cos, sin) [C, rotary / 2] of every place in the cache."""
        if base not in self.angles:
            a = self.a
            frequencies = base ** (-np.arange(0, a.rotary, 2) / a.rotary)
            if a.rope_factors and base == max(a.bases):
                frequencies = frequencies / np.array(a.rope_factors)
            angles = np.arange(self.program_shape.context)[:, None] * frequencies
            made = [
                self.array(f"rotary.{base:g}.{f.__name__}", f(angles).astype(np.float32))
                for f in (np.cos, np.sin)
            ]
            self.angles[base] = (made[0], made[1])
        return self.angles[base]

    def linear(self, name: str, x: ir.Value, outputs: int, made: str | None = None) -> ir.Value:
        """x @ W^T, and its bias where it has one."""
        *rows, inputs = shape_of(x)
        weight = self.source.weight(f"{name}.weight", outputs, inputs)
        shape, biased = (*rows, outputs), f"{name}.bias" in self.source.weights
        value = self.columns(f"{name}.weight/T", weight)
        y = self.op(made or f"{name}{'/product' if biased else ''}", "MatMul", [x, value], shape)
        if not biased:
            return y
        return self.add(
            name,
            y,
            self.constant(f"{name}.bias", self.source.weight(f"{name}.bias", outputs), np.float32),
        )

    def columns(self, name: str, weight: Weight) -> ir.Value:
        """W^T as a constant whose columns are read as the rows of W."""
        value = self.lazy(name, lambda: weight.array().T, weight.shape[::-1], ir.DataType.FLOAT)
        value.meta[COLUMNS] = weight.rows
        return value

    def norm(self, name: str, x: ir.Value) -> ir.Value:
        gain = self.constant(
            f"{name}.weight", self.source.weight(f"{name}.weight", shape_of(x)[-1]), np.float32
        )
        return self.op(
            name,
            "RMSNormalization",
            [x, gain],
            shape_of(x),
            {"axis": -1, "epsilon": self.a.epsilon},
        )

    def after(self, name: str, x: ir.Value) -> ir.Value:
        """The norm that some families have behind a block."""
        return self.norm(name, x) if f"{name}.weight" in self.source.weights else x

    def head_norm(self, name: str, x: ir.Value, heads: int) -> ir.Value:
        """A norm over each head by itself."""
        shape = shape_of(x)
        split = self.reshape(f"{name}/heads", x, (*shape[:-1], heads, self.a.head))
        return self.reshape(f"{name}/joined", self.norm(name, split), shape)

    def add(self, name: str, x: ir.Value, y: ir.Value) -> ir.Value:
        return self.op(name, "Add", [x, y], shape_of(x))

    def reshape(self, name: str, x: ir.Value, shape: Sequence[int]) -> ir.Value:
        return self.op(
            name, "Reshape", [x, self.array(f"{name}/shape", np.array(shape, np.int64))], shape
        )

    def op(
        self,
        name: str,
        op_type: str,
        inputs: Sequence[ir.Value],
        shape: Sequence[int],
        attributes: Mapping[str, Any] | None = None,
        dtype: ir.DataType = ir.DataType.FLOAT,
    ) -> ir.Value:
        node = ir.node(op_type, inputs, dict(attributes or {}), num_outputs=1, name=name)
        node.metadata_props[ORIGIN] = name
        (value,) = node.outputs
        value.name, value.shape, value.type = name, ir.Shape(shape), ir.TensorType(dtype)
        self.graph.append(node)
        return value

    def input(self, name: str, shape: Sequence[int], dtype: ir.DataType) -> ir.Value:
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
        self.graph.inputs.append(value)
        return value

    def array(self, name: str, array: np.ndarray | np.generic) -> ir.Value:
        array = np.asarray(array)
        return self.lazy(name, lambda: array, array.shape, ir.DataType.from_numpy(array.dtype))

    def constant(self, name: str, weight: Weight, dtype: Any) -> ir.Value:
        kind = ir.DataType.from_numpy(np.dtype(dtype))
        return self.lazy(name, lambda: weight.array().astype(dtype), weight.shape, kind)

    def lazy(
        self, name: str, make: Callable[[], np.ndarray], shape: Sequence[int], dtype: ir.DataType
    ) -> ir.Value:
        """A constant that is computed when it is read; small ones at once."""
        if name in self.graph.initializers:
            return self.graph.initializers[name]
        tensor: ir.TensorProtocol = ir.LazyTensor(
            lambda: ir.tensor(np.ascontiguousarray(make())),
            dtype=dtype,
            shape=ir.Shape(shape),
            name=name,
        )
        if math.prod(shape) <= 1 << 16:
            tensor = ir.tensor(make(), name=name)
        value = ir.Value(
            name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype), const_value=tensor
        )
        self.graph.register_initializer(value)
        return value
