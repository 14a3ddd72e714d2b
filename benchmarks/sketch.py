"""Draws the operators of a TFLite model, without weights, as `OpInfo`s."""

from __future__ import annotations

import math
from dataclasses import replace

from compiler.ops.rules import OpInfo, TensorInfo
from compiler.ops.window import same_padding

Shape = tuple[int, ...]


class Sketch:
    """Collects operators. Images are NHWC; every method gives the tensor that it makes."""

    def __init__(self, dtype: str = "int8") -> None:
        self.ops: list[OpInfo] = []
        self._dtype = dtype
        self._made = 0

    def tensor(self, *shape: int, dtype: str | None = None) -> TensorInfo:
        self._made += 1
        return TensorInfo(f"t{self._made}", shape, dtype or self._dtype)

    def constant(self, *shape: int) -> TensorInfo:
        return replace(self.tensor(*shape), constant=True)

    def add(
        self, builtin: str, inputs: list[TensorInfo], shape: Shape, **options: object
    ) -> TensorInfo:
        """One operator with a result of this shape."""
        made = self.tensor(*shape)
        self.ops.append(OpInfo(builtin, 1, tuple(inputs), (made,), options))
        return made

    def each(self, builtin: str, *inputs: TensorInfo) -> TensorInfo:
        """An operator that works element by element."""
        return self.add(builtin, list(inputs), inputs[0].shape)

    def with_channels(self, builtin: str, x: TensorInfo) -> TensorInfo:
        """ADD or MUL of a constant for each channel."""
        return self.each(builtin, x, self.constant(x.shape[-1]))

    def change_type(self, builtin: str, x: TensorInfo, dtype: str) -> TensorInfo:
        """QUANTIZE or DEQUANTIZE."""
        made = self.tensor(*x.shape, dtype=dtype)
        self.ops.append(OpInfo(builtin, 1, (x,), (made,), {}))
        return made

    def pad(self, x: TensorInfo, *amounts: tuple[int, int]) -> TensorInfo:
        shape = [size + sum(pair) for size, pair in zip(x.shape, amounts, strict=True)]
        table = TensorInfo("amounts", (len(amounts), 2), "int32", constant=True)
        return self.add("PAD", [x, table], tuple(shape))

    def conv(
        self,
        x: TensorInfo,
        outputs: int,
        kernel: Shape = (1, 1),
        stride: int = 1,
        same: bool = True,
    ) -> TensorInfo:
        filters = self.constant(outputs, *kernel, x.shape[-1])
        shape = _slid(x, kernel, stride, same)
        return self.add("CONV_2D", [x, filters, self.constant(outputs)], (*shape, outputs))

    def depthwise(
        self, x: TensorInfo, kernel: Shape = (3, 3), stride: int = 1, same: bool = True
    ) -> TensorInfo:
        filters = self.constant(1, *kernel, x.shape[-1])
        shape = (*_slid(x, kernel, stride, same), x.shape[-1])
        return self.add("DEPTHWISE_CONV_2D", [x, filters, self.constant(x.shape[-1])], shape)

    def dense(self, x: TensorInfo, outputs: int) -> TensorInfo:
        filters = self.constant(outputs, math.prod(x.shape[1:]))
        return self.add("FULLY_CONNECTED", [x, filters, self.constant(outputs)], (1, outputs))

    def max_pool(self, x: TensorInfo, size: int, stride: int, same: bool = True) -> TensorInfo:
        shape = _slid(x, (size, size), stride, same)
        return self.add("MAX_POOL_2D", [x], (*shape, x.shape[-1]))

    def resize(self, x: TensorInfo, factor: int) -> TensorInfo:
        batch, height, width, channels = x.shape
        shape = (batch, height * factor, width * factor, channels)
        return self.add("RESIZE_NEAREST_NEIGHBOR", [x], shape)

    def concat(self, parts: list[TensorInfo], axis: int = -1) -> TensorInfo:
        shape = list(parts[0].shape)
        shape[axis] = sum(part.shape[axis] for part in parts)
        return self.add("CONCATENATION", parts, tuple(shape), axis=axis % len(shape))

    def reshape(self, x: TensorInfo, *shape: int) -> TensorInfo:
        return self.add("RESHAPE", [x], shape)

    def transpose(self, x: TensorInfo, *perm: int) -> TensorInfo:
        order = TensorInfo("perm", (len(perm),), "int32", constant=True, values=perm)
        return self.add("TRANSPOSE", [x, order], tuple(x.shape[axis] for axis in perm))

    def slice(self, x: TensorInfo, axis: int, count: int) -> TensorInfo:
        """Some of the places along an axis, in one piece."""
        shape = list(x.shape)
        shape[axis] = count
        return self.strided(x, (1,) * len(shape), tuple(shape))

    def strided(self, x: TensorInfo, steps: Shape, shape: Shape) -> TensorInfo:
        bounds = TensorInfo("bounds", (len(steps),), "int32", constant=True)
        strides = TensorInfo("steps", (len(steps),), "int32", constant=True, values=steps)
        return self.add("STRIDED_SLICE", [x, bounds, bounds, strides], shape)


def _slid(x: TensorInfo, kernel: Shape, stride: int, same: bool) -> Shape:
    """(1, height, width) of what a window gives that slides over an image."""
    sizes = []
    for size, reach in zip(x.shape[1:3], kernel, strict=True):
        pads = sum(same_padding(size, reach, stride)) if same else 0
        sizes.append((size + pads - reach) // stride + 1)
    return (1, *sizes)
