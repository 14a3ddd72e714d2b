"""Weights as blocks of 32 small integers with a scale and an offset each, as GGUF stores them.

    weight = scale * code + offset

Types of GGUF that are made of such blocks are read as they are. Any other weight is rounded to
blocks of 8 bits, which are symmetric: an error of at most 1/254 of the block's largest weight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

BLOCK = 32
# Q4_K and Q5_K keep so many blocks behind two common scales.
_SUPER = 8
_EIGHT_BITS_PEAK = 127
_EIGHT_BITS_ZERO = 128
_FOUR_BITS_PEAK = 7
_FOUR_BITS_ZERO = 8


@dataclass(frozen=True)
class Blocks:
    """Rows of weights: codes [N, K / 32, 32] uint8, scales and offsets [N, K / 32] float32."""

    codes: np.ndarray
    scales: np.ndarray
    offsets: np.ndarray

    def array(self) -> np.ndarray:
        """The weights [N, K] as float32."""
        scaled = self.scales[..., None] * self.codes
        weights = scaled + self.offsets[..., None]
        return np.asarray(weights.reshape(len(weights), -1), np.float32)


@dataclass(frozen=True)
class BlockForm:
    """How a weight is made of blocks: codes have `bits` (4 or 8) bits, and `rows` reads some rows.

    `centred` tells that each offset is a multiple of its scale, so that some code means zero.
    """

    bits: int
    centred: bool
    rows: Callable[[slice], Blocks]


def stored_form(kind: str, stored: np.ndarray) -> BlockForm | None:
    """The blocks in the bytes [N, bytes of a row] of a weight of a type of GGUF; None for types
    that are made otherwise."""
    found = _STORED.get(kind)
    if found is None or stored.ndim != 2:
        return None
    bits, centred, read = found
    return BlockForm(bits, centred, lambda rows: read(np.asarray(stored[rows])))


def rounded_form(rows: Callable[[slice], np.ndarray], bits: int = 8) -> BlockForm:
    """A weight [N, K], K a multiple of 32, rounded to symmetric blocks of 8 or 4 bits."""
    peak, zero = (_EIGHT_BITS_PEAK, _EIGHT_BITS_ZERO)
    if bits == 4:
        peak, zero = (_FOUR_BITS_PEAK, _FOUR_BITS_ZERO)

    def rounded(wanted: slice) -> Blocks:
        weights = rows(wanted)
        blocks = weights.reshape(len(weights), -1, BLOCK)
        scales = np.abs(blocks).max(axis=-1) / np.float32(peak)
        # A block of zeros has no scale.
        steps = np.where(scales > 0, scales, np.float32(1))
        codes = np.round(blocks / steps[..., None]) + zero
        return Blocks(codes.astype(np.uint8), scales, scales * np.float32(-zero))

    return BlockForm(bits, True, rounded)


def _fields(stored: np.ndarray, size: int) -> np.ndarray:
    """Bytes [N, blocks, size] of rows of blocks."""
    return stored.reshape(len(stored), -1, size)


def _half(fields: np.ndarray, start: int) -> np.ndarray:
    """The float16 at a byte of each block, as float32."""
    halves = np.ascontiguousarray(fields[..., start : start + 2]).view(np.float16)
    return halves[..., 0].astype(np.float32)


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """4-bit codes [..., 32] of 16 bytes: low halves first."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1)


def _fifth_bits(packed: np.ndarray) -> np.ndarray:
    """The highest bits [..., 32] of 5-bit codes, where they belong, of 4 bytes."""
    return np.unpackbits(packed, axis=-1, bitorder="little") << 4


def _q4_0(stored: np.ndarray) -> Blocks:
    fields = _fields(stored, 18)
    scales = _half(fields, 0)
    return Blocks(_nibbles(fields[..., 2:]), scales, scales * np.float32(-8))


def _q4_1(stored: np.ndarray) -> Blocks:
    fields = _fields(stored, 20)
    return Blocks(_nibbles(fields[..., 4:]), _half(fields, 0), _half(fields, 2))


def _q5_0(stored: np.ndarray) -> Blocks:
    fields = _fields(stored, 22)
    scales = _half(fields, 0)
    codes = _nibbles(fields[..., 6:]) | _fifth_bits(fields[..., 2:6])
    return Blocks(codes, scales, scales * np.float32(-16))


def _q5_1(stored: np.ndarray) -> Blocks:
    fields = _fields(stored, 24)
    codes = _nibbles(fields[..., 8:]) | _fifth_bits(fields[..., 4:8])
    return Blocks(codes, _half(fields, 0), _half(fields, 2))


def _q8_0(stored: np.ndarray) -> Blocks:
    fields = _fields(stored, 34)
    scales = _half(fields, 0)
    # From two's complement to codes that begin at 0.
    codes = fields[..., 2:] ^ np.uint8(_EIGHT_BITS_ZERO)
    return Blocks(codes, scales, scales * np.float32(-_EIGHT_BITS_ZERO))


def _q4_k(stored: np.ndarray) -> Blocks:
    fields = _fields(stored, 144)
    return _with_super_scales(fields, _super_nibbles(fields[..., 16:]))


def _q5_k(stored: np.ndarray) -> Blocks:
    fields = _fields(stored, 176)
    # Bit i of these bytes belongs to block i.
    places = np.arange(_SUPER, dtype=np.uint8)[:, None]
    highest = (fields[..., None, 16:48] >> places) & 1
    codes = _super_nibbles(fields[..., 48:]) | (highest << 4)
    return _with_super_scales(fields, codes)


def _super_nibbles(packed: np.ndarray) -> np.ndarray:
    """Codes [..., 8, 32] of 128 bytes: 32 bytes hold one block in their low, the next in their high
    halves."""
    pairs = packed.reshape(*packed.shape[:-1], _SUPER // 2, 1, BLOCK)
    both = np.concatenate([pairs & 15, pairs >> 4], axis=-2)
    return both.reshape(*packed.shape[:-1], _SUPER, BLOCK)


def _with_super_scales(fields: np.ndarray, codes: np.ndarray) -> Blocks:
    """Blocks of super-blocks [N, S, bytes], whose scales and minima have 6 bits each.

    The first four of either lie in the low bits of four bytes. The last four have their low halves
    in the last four bytes, and their two highest bits above the first ones.
    """
    low, middle, last = (fields[..., start : start + 4] for start in (4, 8, 12))
    scales = np.concatenate([low & 63, (last & 15) | ((low >> 6) << 4)], axis=-1)
    minima = np.concatenate([middle & 63, (last >> 4) | ((middle >> 6) << 4)], axis=-1)
    count = len(fields)
    return Blocks(
        codes.reshape(count, -1, BLOCK),
        (_half(fields, 0)[..., None] * scales).reshape(count, -1),
        -(_half(fields, 2)[..., None] * minima).reshape(count, -1),
    )


# By type: bits of codes, whether some code means zero, and the reader of its bytes.
_STORED: dict[str, tuple[int, bool, Callable[[np.ndarray], Blocks]]] = {
    "Q4_0": (4, True, _q4_0),
    "Q4_1": (4, False, _q4_1),
    "Q5_0": (8, True, _q5_0),
    "Q5_1": (8, False, _q5_1),
    "Q8_0": (8, True, _q8_0),
    "Q4_K": (4, False, _q4_k),
    "Q5_K": (8, False, _q5_k),
}
