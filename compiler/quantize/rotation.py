"""Rotations that spread a channel that is far larger than others over its neighbours, so that int8
resolves all better.

They are Hadamard matrices of at most 64 x 64 with random signs, repeated along the channels.
Rotating to remove outliers is from QuaRot (Ashkboos et al., 2024).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

# Blocks from 16 to 128 lower the perplexity of SmolLM2 alike (benchmarks/perplexity.py); the host
# multiplies by them.
LARGEST_BLOCK = 64
SMALLEST_BLOCK = 8
# Why a rotation is on the host.
REASON = "it rotates the rows of a linear layer, exactly, in float"


def block_rotation(channels: int) -> np.ndarray | None:
    """An orthogonal matrix Q [size, size] whose size divides `channels`; None where no power of two
    that is worth it does."""
    power_of_two = channels & -channels
    size = min(power_of_two, LARGEST_BLOCK)
    if size < SMALLEST_BLOCK:
        return None
    # Sylvester's construction.
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    # The same for all layers and builds.
    signs = np.random.default_rng(size).choice([-1.0, 1.0], size)
    rotation: np.ndarray = matrix * signs / np.sqrt(size)
    return rotation.astype(np.float32)


def rotate_blocks(rows: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """Q x of each block of channels in rows [N, K] or [N, K, 1, 1]."""
    blocks = rows.reshape(len(rows), -1, len(rotation))
    rotated: np.ndarray = blocks @ rotation.T
    return rotated.reshape(rows.shape)


def rotate_output_blocks(
    read: Callable[[slice], np.ndarray], rotation: np.ndarray
) -> Callable[[slice], np.ndarray]:
    """What reads rows of Q W, or of Q c, where `read` reads rows of W, or of c."""
    size = len(rotation)

    def rows(some: slice) -> np.ndarray:
        # Whole blocks around the rows that are asked for.
        first = some.start // size * size
        last = -(-some.stop // size) * size
        read_rows = read(slice(first, last))
        blocks = read_rows.reshape(-1, size, read_rows[0].size)
        rotated: np.ndarray = np.matmul(rotation, blocks)
        return rotated.reshape(read_rows.shape)[some.start - first : some.stop - first]

    return rows
