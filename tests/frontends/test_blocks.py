"""Blocks of GGUF files against the gguf package's own dequantization, bit for bit, and what
rounding to blocks costs."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

from compiler.frontends.blocks import BLOCK, rounded_form, stored_form

_EXACT = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K")
# Where types have float16 scales among the bytes of a block.
_SCALES = {"Q4_0": 1, "Q4_1": 2, "Q5_0": 1, "Q5_1": 2, "Q8_0": 1, "Q4_K": 2, "Q5_K": 2}


def _drawn(kind: str) -> np.ndarray:
    """Random bytes [3 rows, bytes of 512 weights] of a type, with scales that are finite."""
    rng = np.random.default_rng(1)
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    blocks = rng.integers(0, 256, (3, 512 // block, size)).astype(np.uint8)
    count = _SCALES[kind]
    scales = rng.uniform(-2, 2, (*blocks.shape[:2], count)).astype(np.float16)
    blocks[..., : 2 * count] = scales.view(np.uint8)
    return blocks.reshape(3, -1)


@pytest.mark.parametrize("kind", _EXACT)
def test_stored_blocks_are_what_gguf_dequantizes(kind: str) -> None:
    stored = _drawn(kind)
    form = stored_form(kind, stored)
    assert form is not None
    blocks = form.rows(slice(1, 3))
    np.testing.assert_array_equal(
        blocks.array(), dequantize(stored[1:3], GGMLQuantizationType[kind])
    )
    assert blocks.codes.max() < 1 << form.bits
    # A scale of zero makes a block of its offset alone.
    has_scale = blocks.scales != 0
    steps = -blocks.offsets[has_scale] / blocks.scales[has_scale]
    assert form.centred == bool(np.all(steps == np.round(steps)))


def test_types_of_other_blocks_have_no_form() -> None:
    assert stored_form("Q6_K", np.zeros((2, 210), np.uint8)) is None
    assert stored_form("Q8_0", np.zeros(34, np.uint8)) is None


@pytest.mark.parametrize(("bits", "steps"), [(8, 254), (4, 14)])
def test_rounding_is_off_by_half_a_step_at_most(bits: int, steps: int) -> None:
    weights = np.random.default_rng(0).standard_normal((5, 96)).astype(np.float32)
    weights[2, :BLOCK] = 0
    blocks = rounded_form(weights.__getitem__, bits).rows(slice(0, 5))
    errors = np.abs(blocks.array() - weights).reshape(5, 3, BLOCK)
    peaks = np.abs(weights).reshape(5, 3, BLOCK).max(axis=-1)
    assert np.all(errors <= peaks[..., None] / steps * (1 + 1e-5))
    assert np.all(blocks.codes < 1 << bits)
