"""Linear layers on weights in blocks, as onnxruntime's MatMulNBits, without rounding activations.

MatMulNBits multiplies float activations by weights scale * (code - zero) with codes and zeros of 4
bits, in blocks of 32 inputs. Other weights become such by more columns, which read the same inputs
again:

    codes of 8 bits    as 16 * high + low: two columns of 4 bits for each input
    offsets            weight = scale * (code - zero) + rest, with the zero that leaves the smallest
                       rest. A block's rest multiplies the sum of its inputs, so these sums are
                       inputs too, one for each block. Rests have two digits of 4 bits, the second
                       for what the first leaves

With int8 activations codes of 8 bits are multiplied as they are: MatMulNBits has no fast kernel for
those and float activations.

Two digits resolve a rest, which is half a step of its weights or less unless their offset is beyond
all codes, to 1/196 of the largest of 32 blocks. All else is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compiler.frontends.blocks import BLOCK, BlockForm, Blocks, rounded_form
from compiler.frontends.graph_writer import CONTRIB, GraphWriter
from compiler.graph import shape_of

_DIGIT_ZERO = 8
_LARGEST_DIGIT = 15
_SCALE_BYTES = 4
# Codes, scales and zeros of some blocks.
_Part = tuple[np.ndarray, np.ndarray, np.ndarray]
# MatMulNBits' word for the precision of activations: float, or int8 in blocks.
_FLOAT, _INT8 = 1, 4


@dataclass(frozen=True)
class Columns:
    """Which columns a layer of K inputs has: the inputs once or twice, and sums of blocks or not.

    `bits` are those of a code, 8 with one copy of the inputs only.
    """

    inputs: int
    copies: int
    has_rests: bool
    bits: int = 4

    @property
    def blocks(self) -> int:
        return self.inputs // BLOCK

    @property
    def sums(self) -> int:
        """Columns of one digit of the rests: whole blocks."""
        return -(-self.blocks // BLOCK) * BLOCK if self.has_rests else 0

    @property
    def total(self) -> int:
        return self.copies * self.inputs + 2 * self.sums

    @property
    def bytes(self) -> int:
        """Of one output: codes, scales and zero points."""
        blocks = self.total // BLOCK
        return (self.total + blocks) * self.bits // 8 + _SCALE_BYTES * blocks


@dataclass(frozen=True)
class Packed:
    """Constants of a MatMulNBits of N outputs: codes [N, blocks, 16], two in each byte; scales
    [N, blocks]; zero points [N, (blocks + 1) / 2], two in each byte.

    Of 8 bits each codes are [N, blocks, 32], zero points [N, blocks].
    """

    codes: np.ndarray
    scales: np.ndarray
    zero_points: np.ndarray


@dataclass(frozen=True)
class Joined:
    """Layers that read the same, and whose outputs are joined: the form and the number of outputs
    of each, and the bias [N] of all."""

    forms: Sequence[BlockForm]
    outputs: Sequence[int]
    bias: ir.Value | None = None

    def packed(self, layout: Columns) -> Packed:
        """Their weights, one below the other."""
        parts = []
        for form, count in zip(self.forms, self.outputs, strict=True):
            parts.append(packed(form.rows(slice(0, count)), layout))
        return Packed(
            np.concatenate([part.codes for part in parts]),
            np.concatenate([part.scales for part in parts]),
            np.concatenate([part.zero_points for part in parts]),
        )


def columns(forms: Sequence[BlockForm], inputs: int, whole_bytes: bool = False) -> Columns:
    """The columns that layers of all these forms fit; `whole_bytes` leaves codes of 8 bits whole,
    where some code means zero."""
    copies = max(2 if form.bits > 4 else 1 for form in forms)
    is_centred = all(form.centred for form in forms)
    if copies == 2 and is_centred and whole_bytes:
        return Columns(inputs, 1, False, bits=8)
    return Columns(inputs, copies, not is_centred)


def packed(blocks: Blocks, layout: Columns) -> Packed:
    """Weights in blocks as constants of MatMulNBits."""
    steps = np.where(blocks.scales != 0, blocks.scales, np.float32(1))
    is_digit = layout.copies == 1 and layout.bits == 4
    largest = _LARGEST_DIGIT if is_digit else 255
    zeros = np.clip(np.round(-blocks.offsets / steps), 0, largest).astype(np.uint8)
    if layout.bits == 8:
        return Packed(blocks.codes, blocks.scales, zeros)
    parts: list[_Part] = [(blocks.codes, blocks.scales, zeros)]
    if layout.copies == 2:
        high = (blocks.codes >> 4, blocks.scales * np.float32(16), zeros >> 4)
        parts = [high, (blocks.codes & 15, blocks.scales, zeros & 15)]
    if layout.has_rests:
        parts += _digits(blocks.offsets + blocks.scales * zeros, layout)
    codes = np.concatenate([part[0] for part in parts], axis=1)
    scales = np.concatenate([part[1] for part in parts], axis=1)
    zeros = np.concatenate([part[2] for part in parts], axis=1)
    if zeros.shape[1] % 2:
        zeros = np.pad(zeros, ((0, 0), (0, 1)))
    return Packed(_pairs(codes), np.asarray(scales, np.float32), _pairs(zeros))


def unpacked(constants: Packed, layout: Columns) -> np.ndarray:
    """The weights [N, K] that MatMulNBits and the sums of blocks make of these constants."""
    codes, zeros = constants.codes, constants.zero_points
    if layout.bits == 4:
        codes, zeros = _singles(codes), _singles(zeros)
    count, blocks, _ = codes.shape
    zeros = zeros[:, :blocks]
    values = (codes - zeros[..., None].astype(np.float32)) * constants.scales[..., None]
    values = values.reshape(count, -1)
    copies, rests = np.split(values, [layout.copies * layout.inputs], axis=1)
    weights = copies.reshape(count, layout.copies, -1).sum(axis=1)
    if layout.has_rests:
        sums = rests.reshape(count, 2, -1).sum(axis=1)[:, : layout.blocks]
        weights += np.repeat(sums, BLOCK, axis=1) / BLOCK
    return np.asarray(weights, np.float32)


def _digits(rests: np.ndarray, layout: Columns) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(codes, scales, zeros) of two digits of rests [N, blocks], which multiply means of blocks."""
    padding = layout.sums - layout.blocks
    left = np.pad(rests * np.float32(BLOCK), ((0, 0), (0, padding)))
    digits: list[_Part] = []
    for _ in range(2):
        digit = rounded_form(left.__getitem__, bits=4).rows(slice(0, len(left)))
        zeros = np.full(digit.scales.shape, _DIGIT_ZERO, np.uint8)
        digits.append((digit.codes, digit.scales, zeros))
        left = left - digit.array()
    return digits


def _pairs(codes: np.ndarray) -> np.ndarray:
    """Two codes in each byte, the first in its low half."""
    return np.asarray(codes[..., 0::2] | codes[..., 1::2] << 4, np.uint8)


def _singles(pairs: np.ndarray) -> np.ndarray:
    return np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(*pairs.shape[:-1], -1)


class LinearWriter:
    """Writes layers on weights in blocks to a graph.

    `int8_activations` rounds the inputs of each layer in blocks of 32, which is faster.
    """

    def __init__(self, writer: GraphWriter, int8_activations: bool = False) -> None:
        self._writer = writer
        self._whole_bytes = int8_activations
        self._accuracy = _INT8 if int8_activations else _FLOAT
        # Inputs with the columns that layers of one layout read, by the input's name.
        self._extended: dict[tuple[str, Columns], ir.Value] = {}
        # What was packed last: its three constants are read one after the other.
        self._last: tuple[str, Packed] | None = None

    def columns(self, forms: Sequence[BlockForm], inputs: int) -> Columns:
        """The columns of a layer of all these forms."""
        return columns(forms, inputs, self._whole_bytes)

    def product(
        self, name: str, x: ir.Value, layers: Joined, result: str | None = None
    ) -> ir.Value:
        """x W^T [B, S, N] of joined layers. The result is called `result`, else `name`."""
        batch, tokens, inputs = shape_of(x)
        layout = self.columns(layers.forms, inputs)
        total = sum(layers.outputs)
        attributes = {
            "K": layout.total,
            "N": total,
            "bits": layout.bits,
            "block_size": BLOCK,
            "accuracy_level": self._accuracy,
        }
        read: list[ir.Value | None] = [self._columns(x, layout)]
        read += self._constants(name, layers, layout)
        if layers.bias is not None:
            read += [None, layers.bias]
        shape = (batch, tokens, total)
        return self._writer.op(
            result or name, "MatMulNBits", read, shape, attributes, domain=CONTRIB
        )

    def _columns(self, x: ir.Value, layout: Columns) -> ir.Value:
        """x [B, S, K] as a layer reads it [B, S, K']."""
        if layout.total == layout.inputs:
            return x
        key = (str(x.name), layout)
        if key not in self._extended:
            self._extended[key] = self._extend(x, layout)
        return self._extended[key]

    def _extend(self, x: ir.Value, layout: Columns) -> ir.Value:
        batch, tokens, _ = shape_of(x)
        parts = [x] * layout.copies
        if layout.has_rests:
            pooling = {"kernel_shape": [BLOCK], "strides": [BLOCK]}
            means = self._writer.op(
                f"{x.name}/means", "AveragePool", [x], (batch, tokens, layout.blocks), pooling
            )
            missing = layout.sums - layout.blocks
            digit = [means]
            if missing:
                zeros = np.zeros((batch, tokens, missing), np.float32)
                digit.append(self._writer.array(f"zeros.{batch}.{tokens}.{missing}", zeros))
            parts += digit * 2
        name = f"{x.name}/columns.{layout.copies}.{layout.sums}"
        shape = (batch, tokens, layout.total)
        return self._writer.op(name, "Concat", parts, shape, {"axis": -1})

    def _constants(self, name: str, layers: Joined, layout: Columns) -> list[ir.Value]:
        """Codes, scales and zero points, which are computed when they are read."""

        def compute() -> Packed:
            if self._last is None or self._last[0] != name:
                self._last = None
                self._last = (name, layers.packed(layout))
            return self._last[1]

        count = sum(layers.outputs)
        blocks = layout.total // BLOCK
        block_bytes = BLOCK * layout.bits // 8
        zero_bytes = -(-blocks * layout.bits // 8)
        add = self._writer.computed
        return [
            add(f"{name}/codes", lambda: compute().codes, (count, blocks, block_bytes), np.uint8),
            add(f"{name}/scales", lambda: compute().scales, (count, blocks), np.float32),
            add(f"{name}/zeros", lambda: compute().zero_points, (count, zero_bytes), np.uint8),
        ]
