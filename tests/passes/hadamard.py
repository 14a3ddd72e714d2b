"""What a rotation has to be, written down without compiler/quantize/rotation.py."""

from __future__ import annotations

import numpy as np


def check_rotation(rotation: np.ndarray, size: int) -> None:
    """Hold that a matrix is orthogonal, and a Hadamard matrix with signs: all share each value
    alike."""
    assert rotation.shape == (size, size)
    np.testing.assert_allclose(rotation.astype(np.float64) @ rotation.T, np.eye(size), atol=1e-6)
    np.testing.assert_allclose(np.abs(rotation), size**-0.5, rtol=1e-6)
    # Entry (i, j) of Sylvester's matrix is -1 for each bit that i and j share.
    common = np.arange(size)[:, None] & np.arange(size)
    bits = np.array([bin(number).count("1") for number in common.reshape(-1)]).reshape(size, size)
    plain = (-1.0) ** bits
    signs = np.sign(rotation) * plain
    constant_rows = (signs == signs[:, :1]).all()
    constant_columns = (signs == signs[:1]).all()
    assert constant_rows or constant_columns


def blocks(rotation: np.ndarray, size: int) -> np.ndarray:
    """The rotation of `size` channels, block by block, as one matrix."""
    return np.kron(np.eye(size // len(rotation)), rotation.astype(np.float64))
