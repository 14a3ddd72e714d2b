"""Weights in the form that the decoder takes: joined layers apart, and constant factors folded in.

All of it is exact; weights are read when they are asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from compiler.frontends.architecture import Architecture, Weight
from compiler.frontends.blocks import Blocks

Weights = Mapping[str, Weight]

# What each layer adds to the residual stream.
_ADDED = re.compile(r"blk\.\d+\.(attn_output|ffn_down)\.(weight|bias)")


def joined_rows(architecture: Architecture) -> dict[str, dict[str, int]]:
    """The outputs of layers that some families store as one, by the module they are stored as."""
    query = architecture.heads * architecture.head
    key = architecture.kv_heads * architecture.head
    hidden = architecture.hidden
    return {
        "attn_qkv": {"attn_q": query, "attn_k": key, "attn_v": key},
        "ffn_up": {"ffn_gate": hidden, "ffn_up": hidden},
    }


def split_joined(weights: Weights, rows: Mapping[str, Mapping[str, int]]) -> dict[str, Weight]:
    """Layers that are stored as one, apart: `rows` has the outputs of each part, in order, by the
    module that they are stored as. Layers whose rows are not as many stay as they are."""
    found: dict[str, Weight] = {}
    for name, weight in weights.items():
        prefix, module, kind = _parts(name)
        parts = rows.get(module, {})
        if sum(parts.values()) != weight.shape[0]:
            found[name] = weight
            continue
        begin = 0
        for part, count in parts.items():
            found[f"{prefix}{part}.{kind}"] = _some_rows(weight, begin, count)
            begin += count
    return found


def reordered(array: np.ndarray, head: int, to_interleaved: bool) -> np.ndarray:
    """Rows of a query's or key's weights so that rotary embedding turns neighbours instead of the
    halves of a head, or the other way round."""
    split = (2, head // 2) if to_interleaved else (head // 2, 2)
    heads = array.reshape(-1, *split, *array.shape[1:])
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(array.shape)


def with_residual_scale(weights: Weights, factor: float) -> dict[str, Weight]:
    """What layers add to the residual stream multiplied by a factor."""
    if factor == 1:
        return dict(weights)
    return _scaled_where(weights, [name for name in weights if _ADDED.fullmatch(name)], factor)


def with_logit_scale(weights: Weights, factor: float) -> dict[str, Weight]:
    """Logits multiplied by a factor, by the gain of the last norm."""
    return _scaled_where(weights, ["output_norm.weight"] if factor != 1 else [], factor)


def _scaled_where(weights: Weights, names: Sequence[str], factor: float) -> dict[str, Weight]:
    found = dict(weights)
    for name in names:
        if name in found:
            found[name] = _scaled(found[name], factor)
    return found


def _parts(name: str) -> tuple[str, str, str]:
    """("blk.0.", "attn_qkv", "weight") of "blk.0.attn_qkv.weight"."""
    whole, _, kind = name.rpartition(".")
    prefix, dot, module = whole.rpartition(".")
    return prefix + dot, module, kind


def _some_rows(weight: Weight, begin: int, count: int) -> Weight:
    def behind(wanted: slice) -> slice:
        first, last, step = wanted.indices(count)
        return slice(begin + first, begin + last, step)

    blocks = weight.blocks
    if blocks is not None:
        read = blocks.rows
        blocks = replace(blocks, rows=lambda wanted: read(behind(wanted)))
    shape = (count, *weight.shape[1:])
    return Weight(shape, lambda wanted: weight.rows(behind(wanted)), blocks)


def _scaled(weight: Weight, factor: float) -> Weight:
    scale = np.float32(factor)
    blocks = weight.blocks
    if blocks is not None:
        read = blocks.rows

        def scaled_blocks(wanted: slice) -> Blocks:
            found = read(wanted)
            return replace(found, scales=found.scales * scale, offsets=found.offsets * scale)

        blocks = replace(blocks, rows=scaled_blocks)
    return Weight(weight.shape, lambda wanted: weight.rows(wanted) * scale, blocks)
