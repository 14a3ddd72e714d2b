"""Does this fit? The one answer that tiling, partitioning and the report all ask for.

Rules and their sources: compiler/targets/edgetpu.toml, `[sram]`.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from compiler.targets.target import Target

Kind = Literal["dense", "conv", "depthwise"]


@dataclass(frozen=True)
class Layer:
    """Parameters of one operator as the Edge TPU stores them.

    `inputs` and `outputs` are channels, `taps` is kernel height times width. A fully-connected layer and a 1x1
    convolution are "dense" (one tap); `per_channel` adds the 8 bytes per output that their scales take.
    """

    kind: Kind
    inputs: int
    outputs: int
    taps: int = 1
    per_channel: bool = True


def up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def stored_bytes(layer: Layer, target: Target) -> int:
    """Bytes of a layer's parameters on the device.

    Exact for dense and conv (127 of 127 and 68 of 68 public rows). For depthwise it is a fit that meets MobileNetV1's
    total within 3 percent.
    """
    outputs = up(layer.outputs, target.block_outputs)
    scales = 8 * outputs if layer.per_channel else 0
    if layer.kind == "depthwise":
        return 2 * layer.taps * outputs + 2 * scales
    return layer.taps * up(layer.inputs, target.input_multiple) * outputs + scales


def dense_blocks(layer: Layer, target: Target) -> tuple[int, int]:
    """(number, bytes) of the blocks of output channels of a dense layer; each lies wholly in one tile."""
    number = math.ceil(layer.outputs / target.block_outputs)
    return number, target.block_outputs * up(layer.inputs, target.input_multiple)


def fits(layers: Iterable[Layer], target: Target) -> bool:
    """Whether all these layers stay cached together in the SRAM of one Edge TPU.

    Dense layers are packed block by block, largest first, each block into the emptiest tile. Convolutions with larger
    kernels and depthwise ones are known by their total only: it must stay under the largest total seen cached, and
    they are taken to spread evenly over the tiles.
    """
    layers = list(layers)
    spatial = sum(stored_bytes(layer, target) for layer in layers if layer.kind != "dense")
    if spatial > target.spatial_bytes:
        return False
    blocks = [dense_blocks(layer, target) for layer in layers if layer.kind == "dense"]
    tiles = [-(-spatial // target.tiles)] * target.tiles
    for number, size in sorted(blocks, key=lambda block: -block[1]):
        for _ in range(number):
            load = tiles[0] + size
            if load > target.tile_bytes:
                return False
            heapq.heapreplace(tiles, load)
    return True
