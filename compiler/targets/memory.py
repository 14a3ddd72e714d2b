"""Does this fit? The one answer that tiling, partitioning and the report all ask for.

Rules and their sources: compiler/targets/chips/edgetpu.toml, `[sram]`.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from compiler.targets.target import Target

Kind = Literal["dense", "conv", "depthwise", "table", "channelwise", "elementwise"]

# Bytes in front of the weights of a stored output: its bias; its scale and its zero point where it
# has its own.
_BIAS = 4
_SCALE = 4
_ZERO_POINT = 4
# A constant of MUL or ADD with one value per channel: a 4 x 4 matrix for each 4 channels.
_CHANNEL_CONSTANT = 16


@dataclass(frozen=True)
class Layer:
    """Parameters of one operator as the Edge TPU stores them.

    `inputs` and `outputs` are channels, `taps` is kernel height times width, `positions` how many
    output positions each weight serves. `per_channel` tells that each output channel has its own
    scale, `equal_scales` that these are all the same number, `bias` that the bias holds more than
    zeros.

    dense:       a fully-connected layer, or a 1x1 convolution of several outputs (one tap)
    conv:        any other convolution
    depthwise:   one that works on each channel alone
    table:       `outputs` bytes that an operator without weights needs
    channelwise: a constant with one value for each of `outputs` channels
    elementwise: a constant with one value for each of `outputs` elements of an activation
    """

    kind: Kind
    inputs: int
    outputs: int
    taps: int = 1
    per_channel: bool = True
    bias: bool = True
    equal_scales: bool = False
    positions: int = 1

    @property
    def is_streamed(self) -> bool:
        """Whether it is sent at each inference, however much room there is."""
        return self.kind in ("channelwise", "elementwise")


def up(value: int, multiple: int) -> int:
    """The next multiple that is not less than `value`."""
    return -(-value // multiple) * multiple


def stored_outputs(outputs: int, target: Target) -> int:
    """Output channels with their padding: to 16 within one block of 64, to whole blocks beyond."""
    block = target.block_outputs
    return up(outputs, target.output_multiple if outputs <= block else block)


def stored_bytes(layer: Layer, target: Target) -> int:
    """Bytes of a layer's parameters on the device.

    Read off the parameter data of compiled public models: 2,576 of 2,586 layers with weights are
    stored so (benchmarks/groundtruth.py compares the totals of whole models).
    """
    multiple = target.input_multiple
    if layer.kind in ("table", "elementwise"):
        size = layer.outputs
    elif layer.kind == "channelwise":
        size = _CHANNEL_CONSTANT * layer.outputs
    elif layer.kind == "depthwise":
        size = up(layer.outputs, multiple) * (layer.taps * multiple + _prefix(layer))
    else:
        weights = layer.taps * up(layer.inputs, multiple)
        size = _stored_outputs(layer, target) * (weights + _prefix(layer))
    return up(size, target.layer_multiple)


def _prefix(layer: Layer) -> int:
    """Bytes in front of the weights of each stored output."""
    size = _BIAS if layer.bias else 0
    if layer.per_channel:
        size += _ZERO_POINT
        size += 0 if layer.equal_scales else _SCALE
    return size


def _stored_outputs(layer: Layer, target: Target) -> int:
    """The output channels of a layer with their padding; a convolution of one is stored as 4."""
    if layer.kind == "conv" and layer.outputs == 1:
        return target.input_multiple
    return stored_outputs(layer.outputs, target)


def blocks_of(layer: Layer, target: Target) -> tuple[int, int]:
    """(number, bytes) of the blocks of output channels of a layer; each lies wholly in one tile."""
    number = math.ceil(layer.outputs / target.block_outputs)
    outputs = min(target.block_outputs, stored_outputs(layer.outputs, target))
    return number, outputs * layer.taps * up(layer.inputs, target.input_multiple)


def packed_bytes(layer: Layer, target: Target) -> int:
    """Bytes of SRAM that a layer takes from others: blocks larger than half a tile have theirs to
    themselves. What is always streamed takes none.

    Scales are not counted, as the rule of packing was found without.
    """
    if layer.is_streamed:
        return 0
    if layer.kind != "dense":
        return stored_bytes(layer, target)
    number, size = blocks_of(layer, target)
    fills_a_tile = size <= target.tile_bytes < 2 * size
    if not fills_a_tile:
        return number * size
    # What activations leave of a tile, however large they are.
    room = target.tile_bytes - target.activation_bytes // target.tiles
    return number * max(size, room)


def capacity(target: Target, activations: int = 0) -> int:
    """Bytes of SRAM for parameters beside activations of which at most `activations` bytes live at
    once. Larger ones are gone through in parts."""
    return target.sram_bytes - min(activations, target.activation_bytes)


def fits(layers: Iterable[Layer], target: Target, activations: int = 0) -> bool:
    """Whether all these layers stay cached together in the SRAM of one Edge TPU.

    Layers are packed block by block, largest first, each block into the emptiest tile. Depthwise
    convolutions, and others on large images, spread evenly over the tiles.
    """
    spread = 0
    blocks = []
    for layer in layers:
        if layer.is_streamed:
            continue
        if _lies_in_blocks(layer, target):
            blocks.append(blocks_of(layer, target))
        else:
            spread += stored_bytes(layer, target)
    room = capacity(target, activations) // target.tiles
    # Bytes in each tile, as a heap: the emptiest one first.
    tiles = [math.ceil(spread / target.tiles)] * target.tiles
    for number, size in sorted(blocks, key=_size_of, reverse=True):
        for _ in range(number):
            load = tiles[0] + size
            if load > room:
                # Not even the emptiest tile holds the block.
                return False
            heapq.heapreplace(tiles, load)
    return tiles[0] <= room


def _bytes_in_tiles(layer: Layer, target: Target) -> int:
    """Bytes of a layer as `fits` counts them."""
    if _lies_in_blocks(layer, target):
        number, size = blocks_of(layer, target)
        return number * size
    return stored_bytes(layer, target)


def _lies_in_blocks(layer: Layer, target: Target) -> bool:
    if layer.kind not in ("dense", "conv"):
        return False
    return layer.taps == 1 or layer.positions <= target.block_positions


def _size_of(block: tuple[int, int]) -> int:
    return block[1]


def cached(layers: Sequence[Layer], target: Target, activations: int = 0) -> set[int]:
    """Indices of the layers that stay in the SRAM of one Edge TPU, where not all of them fit.

    Layers come in the order of how few positions use each weight, since a weight that is used
    seldom leaves the least time to send it; among equals the largest first. Each stays that fits
    beside those before it.
    """
    holders = [index for index, layer in enumerate(layers) if not layer.is_streamed]
    if fits([layers[index] for index in holders], target, activations):
        return set(holders)
    sizes = [_bytes_in_tiles(layer, target) for layer in layers]
    holders.sort(key=lambda index: (layers[index].positions, -sizes[index]))
    room = capacity(target, activations)
    kept: list[int] = []
    used = 0
    for index in holders:
        if used + sizes[index] > room:
            continue
        if fits([layers[other] for other in [*kept, index]], target, activations):
            kept.append(index)
            used += sizes[index]
    return set(kept)
