"""Rotates the residual stream of a decoder and its values, in the weights: the host then has
nothing to multiply.

With an orthogonal Q, what a layer adds to the residual stream x is turned by its weights, W -> Q W,
so that the stream is Q x. RMSNorm without a gain lets Q pass, as it keeps lengths; its gain g goes
into the weights behind it, which turn the stream back: W -> W diag(g) Q^T. So do the embedding and
the head. Values are turned in each head by the weights that make them, and attention mixes them as
before; keys and queries stay, as rotary embedding comes between. Only what the gate gives has to be
turned when the decoder runs (`Source.rotation`).

Exact, like rotating the rows of each layer by itself (passes/rotate_rows.py), and faster. But
gains, which keep channels down that are large in the stream, come too late for int8: so it is done
where asked for (`--with rotate_stream`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from compiler.errors import OptionError
from compiler.frontends.architecture import Source, Weight
from compiler.quantize.rotation import block_rotation, rotate_blocks, rotate_output_blocks

# Of each norm, the layers behind it.
_BEHIND = {"attn_norm": ("attn_q", "attn_k", "attn_v"), "ffn_norm": ("ffn_gate", "ffn_up")}


def rotate(source: Source) -> Source:
    """The same decoder with a rotated residual stream. Raises OptionError for one that cannot be
    rotated."""
    a = source.architecture
    stream, values, gated = (block_rotation(size) for size in (a.width, a.head, a.hidden))
    if stream is None or values is None or gated is None:
        sizes = f"{a.width}, {a.head} and {a.hidden}"
        raise OptionError(
            f"--with rotate_stream: {sizes} channels are not all multiples of 8: leave it out"
        )
    if any("post_" in name for name in source.weights):
        raise OptionError(
            "--with rotate_stream: norms behind this model's blocks have gains: leave it out"
        )
    found = dict(source.weights)

    def fold(norm: str, layers: Iterable[str]) -> None:
        gain = found[f"{norm}.weight"].array()
        for layer in layers:
            found[f"{layer}.weight"] = _inputs(found[f"{layer}.weight"], stream, gain)
        found[f"{norm}.weight"] = Weight(gain.shape, lambda rows: np.ones_like(gain[rows]))

    found.setdefault("output.weight", found["token_embd.weight"])
    fold("output_norm", ["output"])
    found["token_embd.weight"] = _inputs(found["token_embd.weight"], stream)
    for index in range(a.layers):
        p = f"blk.{index}."
        for norm, layers in _BEHIND.items():
            fold(f"{p}{norm}", [f"{p}{layer}" for layer in layers])
        for name, rotation in (("attn_output", values), ("ffn_down", gated)):
            found[f"{p}{name}.weight"] = _inputs(found[f"{p}{name}.weight"], rotation)
        for name, rotation in (("attn_v", values), ("attn_output", stream), ("ffn_down", stream)):
            for full in (f"{p}{name}.weight", f"{p}{name}.bias"):
                if full in found:
                    found[full] = Weight(
                        found[full].shape, rotate_output_blocks(found[full].rows, rotation)
                    )
    return replace(source, weights=found, rotation=gated)


def _inputs(weight: Weight, rotation: np.ndarray, gain: np.ndarray | float = 1.0) -> Weight:
    """W diag(g) Q^T"""
    return Weight(weight.shape, lambda rows: rotate_blocks(weight.rows(rows) * gain, rotation))
