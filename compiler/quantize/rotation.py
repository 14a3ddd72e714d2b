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
LARGEST_BLOCK, SMALLEST_BLOCK = 64, 8
REASON = "it rotates the rows of a linear layer, exactly, in float"  # why a rotation is on the host


def block_rotation(channels: int) -> np.ndarray | None:
    """An orthogonal matrix Q whose size divides `channels`; None where no power of two that is
    worth it does."""
    size = min(channels & -channels, LARGEST_BLOCK)
    if size < SMALLEST_BLOCK:
        return None
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    signs = np.random.default_rng(size).choice([-1.0, 1.0], size)
    return (matrix * signs / np.sqrt(size)).astype(np.float32)


def rotate_blocks(rows: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """Q x of each block of channels in rows [N, K] or [N, K, 1, 1]."""
    return (rows.reshape(len(rows), -1, len(rotation)) @ rotation.T).reshape(rows.shape)


def rotate_output_blocks(
    read: Callable[[slice], np.ndarray], rotation: np.ndarray
) -> Callable[[slice], np.ndarray]:
    """What reads rows of Q W, or of Q c, where `read` reads rows of W, or of c."""
    size = len(rotation)

    def rows(some: slice) -> np.ndarray:
        first, last = some.start // size * size, -(-some.stop // size) * size
        blocks = read(slice(first, last))
        whole = np.matmul(rotation, blocks.reshape(-1, size, blocks[0].size)).reshape(blocks.shape)
        return whole[some.start - first : some.stop - first]

    return rows
