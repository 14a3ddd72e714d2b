"""Does this fit? The one answer that tiling, partitioning and the report all ask for.

Rules and their sources: compiler/targets/chips/edgetpu.toml, `[sram]`.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from compiler.targets.target import Target

Kind = Literal["dense", "conv", "depthwise"]

# Bytes beside the weights of an output channel: its bias, and its scale where it has its own.
_BIAS = 4
_SCALES = 4
_DEPTHWISE_SCALES = 8


@dataclass(frozen=True)
class Layer:
    """Parameters of one operator as the Edge TPU stores them.

    `inputs` and `outputs` are channels, `taps` is kernel height times width. A fully-connected
    layer and a 1x1 convolution are "dense" (one tap); `per_channel` tells that each output channel
    has its own scale.
    """

    kind: Kind
    inputs: int
    outputs: int
    taps: int = 1
    per_channel: bool = True


def up(value: int, multiple: int) -> int:
    """The next multiple that is not less than `value`."""
    return -(-value // multiple) * multiple


def stored_outputs(outputs: int, target: Target) -> int:
    """Output channels with their padding: to 16 within one block of 64, to whole blocks beyond."""
    block = target.block_outputs
    return up(outputs, target.output_multiple if outputs <= block else block)


def stored_bytes(layer: Layer, target: Target) -> int:
    """Bytes of a layer's parameters on the device: weights, 4 of bias per output, and scales where
    each has its own.

    Read off the parameter data of compiled public models, where the biases mark each layer's place
    (benchmarks/groundtruth.py compares the totals).
    """
    multiple = target.input_multiple
    if layer.kind == "depthwise":
        weights = layer.taps * multiple
        extra = _DEPTHWISE_SCALES if layer.per_channel else 0
        return up(layer.outputs, multiple) * (weights + _BIAS + extra)
    weights = layer.taps * up(layer.inputs, multiple)
    extra = _SCALES if layer.per_channel else 0
    return stored_outputs(layer.outputs, target) * (weights + _BIAS + extra)


def dense_blocks(layer: Layer, target: Target) -> tuple[int, int]:
    """(number, bytes) of the blocks of output channels of a dense layer; each lies wholly in one
    tile."""
    number = math.ceil(layer.outputs / target.block_outputs)
    block = min(target.block_outputs, stored_outputs(layer.outputs, target))
    return number, block * up(layer.inputs, target.input_multiple)


def packed_bytes(layer: Layer, target: Target) -> int:
    """Bytes of SRAM that a layer takes from others: blocks larger than half a tile have theirs to
    themselves.

    Scales are not counted, as the rule of packing was found without.
    """
    if layer.kind != "dense":
        return stored_bytes(layer, target)
    number, size = dense_blocks(layer, target)
    fills_a_tile = size <= target.tile_bytes < 2 * size
    return number * (target.tile_bytes if fills_a_tile else size)


def capacity(target: Target, activations: int = 0) -> int:
    """Bytes of SRAM for parameters beside activations of which at most `activations` bytes live at
    once."""
    share = target.activation_share * min(activations, target.activation_bytes)
    return min(target.tiles * target.tile_bytes, target.sram_bytes - int(share))


def fits(layers: Iterable[Layer], target: Target, activations: int = 0) -> bool:
    """Whether all these layers stay cached together in the SRAM of one Edge TPU.

    Dense layers are packed block by block, largest first, each block into the emptiest tile.
    Convolutions with larger kernels and depthwise ones are known by their total only: it must stay
    under the largest total seen cached, and they are taken to spread evenly over the tiles.
    """
    spatial = 0
    blocks = []
    for layer in layers:
        if layer.kind == "dense":
            blocks.append(dense_blocks(layer, target))
        else:
            spatial += stored_bytes(layer, target)
    if spatial > target.spatial_bytes:
        return False
    room = capacity(target, activations) // target.tiles
    # Bytes in each tile, as a heap: the emptiest one first.
    tiles = [math.ceil(spatial / target.tiles)] * target.tiles
    for number, size in sorted(blocks, key=_size_of, reverse=True):
        for _ in range(number):
            load = tiles[0] + size
            if load > room:
                # Not even the emptiest tile holds the block.
                return False
            heapq.heapreplace(tiles, load)
    return tiles[0] <= room


def _size_of(block: tuple[int, int]) -> int:
    return block[1]
