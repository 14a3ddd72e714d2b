"""How edgetpu_compiler lays out the weights, biases and scales of a layer in a compiled file.

Found by comparing public pairs of plain and compiled files. 3,705 of 3,707 layers on the Edge TPU
in 140 pairs are reproduced byte for byte; the other two are of a file whose plain one is not its
source (tests/vendor/test_audit.py runs the pairs at hand). Weights stand as bytes of uint8:
those of int8 and their zero points are raised by 128.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from compiler.targets.memory import up

Kind = Literal["dense", "depthwise", "channels", "elements"]
Part = Literal["weights", "biases", "scales", "zero points", "padding"]

_BLOCK = 64  # outputs that are stored together
_LANES = 4  # channels that are stored side by side
_LEAVES_OUT_ZEROS = 12  # runtime from which on biases are not stored that are all zero
_ROW = 64  # bytes that constants of four channels take
_WORD = np.arange(4)


@dataclass(frozen=True)
class Parameters:
    """The parameters of a layer, as a plain file has them.

    kind:        how they are stored: "dense" of CONV_2D and FULLY_CONNECTED, "depthwise";
                 "channels" are constants of MUL and ADD for each channel, "elements" those that
                 have the shape of the whole tensor
    weights:     uint8 [outputs, taps, inputs], of depthwise layers [channels, taps]
    biases:      int32 [outputs]; of ADD the summands
    scales:      float32 [outputs], effective ones: those of input and weights through that of the
                 output; of MUL the factors
    zero_points: uint8 [outputs], of the weights
    per_channel: whether each output has its own scale
    narrowest:   outputs to a multiple of which less than a block of them are filled up
    """

    kind: Kind
    weights: np.ndarray
    biases: np.ndarray
    scales: np.ndarray
    zero_points: np.ndarray
    per_channel: bool = False
    narrowest: int = 16

    @property
    def outputs(self) -> int:
        return len(self.weights)


class Pool:
    """All bytes that a stored layer can be made of: its parameters, and what fills gaps.

    A layout is an array of positions in it.
    """

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters
        zero_words = parameters.zero_points.astype("<u4")
        self.parts: dict[Part, np.ndarray] = {
            "weights": parameters.weights.reshape(-1),
            "biases": _raw(parameters.biases.astype("<i4")),
            "scales": _raw(parameters.scales.astype("<f4")),
            "zero points": _raw(zero_words),
        }
        words = np.zeros((4, 4), np.uint8)
        words[1] = _raw(np.ones(1, "<f4"))
        if parameters.kind in ("dense", "depthwise"):
            words[2] = self.parts["scales"][:4]
            words[3] = self.parts["zero points"][-4:]
        self.parts["padding"] = np.concatenate([words.reshape(-1), parameters.zero_points])
        self.bytes = np.concatenate(list(self.parts.values()))
        self.starts: dict[Part, int] = {}
        start = 0
        for part, content in self.parts.items():
            self.starts[part] = start
            start += len(content)
        # Words, and behind them a byte for each output.
        self.zero, self.one, self.first_scale, self.last_zero_point, self.zero_points = (
            self.starts["padding"] + np.arange(5) * 4
        )

    def word(self, part: Part, elements: np.ndarray) -> np.ndarray:
        """Positions [..., 4] of the bytes of some elements of 32 bits."""
        return self.starts[part] + 4 * elements[..., None] + _WORD


@dataclass(frozen=True)
class Vectors:
    """Whether scales and biases stand before the weights of each block."""

    has_scales: bool
    has_biases: bool


@dataclass(frozen=True)
class _Form:
    """What the compiler chooses for a layer: how many outputs make a block, which vectors stand
    before the weights, how many groups of four inputs stand together, and whether outputs up to
    the next multiple of four are filled with the zero point or, by early versions, with zeros."""

    width: int
    vectors: Vectors
    groups: int
    fills: bool


def layouts(
    parameters: Parameters, pool: Pool, vectors: Sequence[Vectors], even: bool = False
) -> Iterator[np.ndarray]:
    """All ways in which the compiler may have stored a layer with one of `vectors` in front, as
    positions in its pool; with `even` only those that divide its inputs into equal parts."""
    if parameters.kind == "elements":
        yield np.arange(parameters.weights.size)
        return
    if parameters.kind == "channels":
        yield _channels(parameters, pool)
        return
    for front in vectors:
        if parameters.kind == "depthwise":
            yield _depthwise(parameters, pool, front)
            continue
        for form in _forms(parameters, front, even):
            yield _dense(parameters, pool, form)


def usual_vectors(parameters: Parameters, min_runtime: int) -> Vectors:
    """The vectors that the compiler stores of a layer, for runtimes from `min_runtime` on."""
    has_scales = bool(np.any(parameters.scales != parameters.scales[:1]))
    has_biases = bool(np.any(parameters.biases)) or min_runtime < _LEAVES_OUT_ZEROS
    return Vectors(parameters.per_channel and has_scales, has_biases)


def front(parameters: Parameters, vectors: Vectors) -> int:
    """Bytes in front of the weights of the first block."""
    words = vectors.has_scales + vectors.has_biases + parameters.per_channel
    if parameters.kind == "depthwise":
        return 4 * words * _LANES
    return 4 * words * _width(parameters) if parameters.kind == "dense" else 0


def _width(parameters: Parameters) -> int:
    """Outputs in a block of a dense layer."""
    outputs = parameters.outputs
    return _BLOCK if outputs > _BLOCK else up(outputs, parameters.narrowest)


def all_vectors(parameters: Parameters) -> list[Vectors]:
    """What may stand in front of another layer of the same shape."""
    found = []
    for has_scales in [True, False] if parameters.per_channel else [False]:
        found += [Vectors(has_scales, has_biases) for has_biases in (True, False)]
    return found


def _forms(parameters: Parameters, vectors: Vectors, even: bool) -> Iterator[_Form]:
    outputs, taps, inputs = parameters.weights.shape
    width = _width(parameters)
    fillings = [True, False] if outputs % _LANES else [True]
    counts = _group_counts(taps, up(inputs, _LANES) // _LANES)
    for groups in counts if even else itertools.chain(counts, _uneven_counts(counts)):
        for fills in fillings:
            yield _Form(width, vectors, groups, fills)


def _group_counts(taps: int, groups: int) -> list[int]:
    """How many groups of inputs may stand together: all is the most common, then one; which it is
    makes no difference to a single tap."""
    if taps == 1:
        return [groups]
    divisors = [count for count in range(1, groups) if groups % count == 0]
    return [groups, *divisors]


def _uneven_counts(counts: Sequence[int]) -> list[int]:
    """The other numbers of groups that may stand together. None was seen yet."""
    return [count for count in range(1, counts[0]) if len(counts) > 1 and count not in counts]


def _dense(parameters: Parameters, pool: Pool, form: _Form) -> np.ndarray:
    outputs, taps, inputs = parameters.weights.shape
    lanes = np.arange(up(outputs, form.width))
    stored = _dense_weights(parameters, pool, form, lanes)
    stored = stored.reshape(-1, form.width, taps, up(inputs, _LANES) // _LANES, _LANES)
    parts = [_prefix(parameters, pool, lanes.reshape(-1, form.width), form.vectors)]
    for first in range(0, stored.shape[3], form.groups):
        part = stored[:, :, :, first : first + form.groups]
        # [block, output, tap, group, input] -> [block, tap, group, output, input]
        parts.append(part.transpose(0, 2, 3, 1, 4).reshape(len(stored), -1))
    return np.concatenate(parts, axis=1).reshape(-1)


def _dense_weights(
    parameters: Parameters, pool: Pool, form: _Form, lanes: np.ndarray
) -> np.ndarray:
    """Positions [lanes, taps, inputs filled up] of weights and of what fills them up."""
    outputs, taps, inputs = parameters.weights.shape
    stored = np.full((len(lanes), taps, up(inputs, _LANES)), pool.zero, np.int64)
    stored[:outputs] = (pool.zero_points + lanes[:outputs])[:, None, None]
    if form.fills:
        stored[outputs : up(outputs, _LANES)] = pool.zero_points + outputs - 1
    own = np.arange(parameters.weights.size).reshape(outputs, taps, inputs)
    stored[:outputs, :, :inputs] = pool.starts["weights"] + own
    return stored


def _depthwise(parameters: Parameters, pool: Pool, vectors: Vectors) -> np.ndarray:
    """Four channels after four; each tap is a matrix of four outputs and four inputs, whose
    diagonal has the weights."""
    channels, taps = parameters.weights.shape
    lanes = np.arange(up(channels, _LANES))
    zero_points = pool.zero_points + np.minimum(lanes, channels - 1)
    stored = np.repeat(zero_points, taps * _LANES).reshape(len(lanes), taps, _LANES)
    real = lanes[:channels]
    own = np.arange(parameters.weights.size).reshape(channels, taps)
    stored[real, :, real % _LANES] = pool.starts["weights"] + own
    matrices = stored.reshape(-1, _LANES, taps, _LANES).transpose(0, 2, 1, 3)
    prefix = _prefix(parameters, pool, lanes.reshape(-1, _LANES), vectors)
    return np.concatenate([prefix, matrices.reshape(len(prefix), -1)], axis=1).reshape(-1)


def _prefix(parameters: Parameters, pool: Pool, lanes: np.ndarray, vectors: Vectors) -> np.ndarray:
    """Positions [blocks, bytes] of the vectors before the weights of each block of `lanes`
    [blocks, outputs]."""
    outputs = parameters.outputs
    is_real = (lanes < outputs)[..., None]
    is_filled = (lanes < up(outputs, _LANES))[..., None]
    beyond = pool.zero if outputs <= _BLOCK else pool.one
    found = []
    if vectors.has_scales:
        filling = np.where(is_filled, pool.first_scale, beyond) + _WORD
        found.append(np.where(is_real, pool.word("scales", lanes), filling))
    if vectors.has_biases:
        found.append(np.where(is_real, pool.word("biases", lanes), pool.zero + _WORD))
    if parameters.per_channel:
        filling = np.where(is_filled, pool.last_zero_point, pool.zero) + _WORD
        found.append(np.where(is_real, pool.word("zero points", lanes), filling))
    blocks = [vector.reshape(len(lanes), -1) for vector in found]
    return np.concatenate(blocks, axis=1) if blocks else np.empty((len(lanes), 0), np.int64)


def _channels(parameters: Parameters, pool: Pool) -> np.ndarray:
    """Rows of 64 bytes: numbers of four channels, then zeros. Summands that are all zero are not
    stored."""
    part: Part = "scales" if len(parameters.scales) else "biases"
    count = len(parameters.scales) or len(parameters.biases)
    if part == "biases" and not np.any(parameters.biases):
        return np.empty(0, np.int64)
    stored = np.full((up(count, _LANES), 4), pool.zero) + _WORD
    stored[:count] = pool.word(part, np.arange(count))
    rows = np.full((len(stored) // _LANES, _ROW), pool.zero)
    rows[:, : 4 * _LANES] = stored.reshape(len(rows), -1)
    return rows.reshape(-1)


def _raw(array: np.ndarray) -> np.ndarray:
    return np.frombuffer(array.tobytes(), np.uint8)
