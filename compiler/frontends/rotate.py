"""Rotates the residual stream of a decoder and its values, in the weights, so that the host has
fewer rotations to compute.

With an orthogonal Q, what a layer adds to the residual stream x is rotated by its weights,
W -> Q W, so that the stream becomes Q x. RMSNorm without a gain gives Q norm(x) for Q x, as Q keeps
lengths. The norm's gain g goes into the weights behind it, which rotate the stream back:
W -> W diag(g) Q^T.
So do the embedding and the head. Values are rotated in each head by the weights that make them, and
attention mixes them as before. Keys and queries stay, as rotary embedding comes between. What the
gate gives is rotated when the decoder runs (`Source.rotation`).

The result is exact, like rotating the rows of each layer by itself (passes/rotate_rows.py), and
faster. In int8 it can lose more: gains keep down those channels that are large in the stream, and
here they are applied behind the rotation, which has spread these channels over all others by then.
So it is done only where the user asks for `rotate_stream`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from compiler.errors import OptionError
from compiler.frontends.architecture import Architecture, Source, Weight
from compiler.quantize.rotation import block_rotation, rotate_blocks, rotate_output_blocks

# Of each norm in a layer, the linear layers behind it.
_BEHIND = {"attn_norm": ("attn_q", "attn_k", "attn_v"), "ffn_norm": ("ffn_gate", "ffn_up")}


def rotate(source: Source) -> Source:
    """The same decoder with a rotated residual stream.

    Raises OptionError for one whose sizes or norms do not allow it.
    """
    architecture = source.architecture
    stream, values, gated = _rotations(architecture)
    if any("post_" in name for name in source.weights):
        raise OptionError(
            "rotate_stream: norms behind this model's blocks have gains: leave it out", "also"
        )
    weights = dict(source.weights)
    # The head reads the rotated stream, the embedding makes it: they can share no weights.
    weights.setdefault("output.weight", weights["token_embd.weight"])
    _move_gain(weights, "output_norm", ["output"], stream)
    weights["token_embd.weight"] = _rotate_inputs(weights["token_embd.weight"], stream)
    for index in range(architecture.layers):
        prefix = f"blk.{index}."
        for norm, names in _BEHIND.items():
            _move_gain(weights, prefix + norm, [prefix + name for name in names], stream)
        for name, rotation in (("attn_output", values), ("ffn_down", gated)):
            key = f"{prefix}{name}.weight"
            weights[key] = _rotate_inputs(weights[key], rotation)
        for name, rotation in (("attn_v", values), ("attn_output", stream), ("ffn_down", stream)):
            _rotate_outputs(weights, prefix + name, rotation)
    return replace(source, weights=weights, rotation=gated)


def _rotations(architecture: Architecture) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Q [B, B] for blocks of the residual stream, of a head's values, and of the gated channels."""
    sizes = (architecture.width, architecture.head, architecture.hidden)
    stream, values, gated = (block_rotation(size) for size in sizes)
    if stream is None or values is None or gated is None:
        raise OptionError(
            f"rotate_stream: {sizes[0]}, {sizes[1]} and {sizes[2]} channels "
            "are not all multiples of 8: leave it out",
            "also",
        )
    return stream, values, gated


def _move_gain(
    weights: dict[str, Weight], norm: str, layers: Iterable[str], rotation: np.ndarray
) -> None:
    """W -> W diag(g) Q^T for the layers behind a norm of gain g, whose gain becomes 1."""
    gain = weights[f"{norm}.weight"].array()
    for layer in layers:
        key = f"{layer}.weight"
        weights[key] = _rotate_inputs(weights[key], rotation, gain)
    weights[f"{norm}.weight"] = Weight(gain.shape, lambda rows: np.ones_like(gain[rows]))


def _rotate_inputs(weight: Weight, rotation: np.ndarray, gain: np.ndarray | float = 1.0) -> Weight:
    """W diag(g) Q^T"""
    return Weight(weight.shape, lambda rows: rotate_blocks(weight.rows(rows) * gain, rotation))


def _rotate_outputs(weights: dict[str, Weight], layer: str, rotation: np.ndarray) -> None:
    """Q W, and Q b where the layer has a bias."""
    for key in (f"{layer}.weight", f"{layer}.bias"):
        weight = weights.get(key)
        if weight is not None:
            weights[key] = Weight(weight.shape, rotate_output_blocks(weight.rows, rotation))
