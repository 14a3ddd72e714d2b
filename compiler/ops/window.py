"""Windows that slide over images, as convolutions and pooling have them, and their padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from compiler.graph import Builder, attribute_of, shape_of, to_nchw, to_nhwc
from compiler.ops.common import RefuseError

Pair = tuple[int, int]
Pads = tuple[int, int, int, int]
NO_PADS: Pads = (0, 0, 0, 0)
# [N, C, W] to [N, W, C], and back.
CHANNELS_LAST = (0, 2, 1)


@dataclass(frozen=True)
class Window:
    """A window that slides over an image.

    All are (height, width), but pads are (top, left, bottom, right).
    """

    kernel: Pair
    strides: Pair
    dilations: Pair
    pads: Pads

    @property
    def attributes(self) -> dict[str, tuple[int, ...]]:
        """The attributes of a convolution of the dialect."""
        return {"strides": self.strides, "pads": self.pads, "dilations": self.dilations}

    def same_pads(self, height: int, width: int) -> Pads:
        """The pads that TensorFlow's SAME would use."""
        top, bottom = same_padding(height, self.kernel[0], self.strides[0], self.dilations[0])
        left, right = same_padding(width, self.kernel[1], self.strides[1], self.dilations[1])
        return top, left, bottom, right


def same_padding(size: int, kernel: int, stride: int, dilation: int = 1) -> Pair:
    """TensorFlow's SAME padding (before, after) along one axis; the odd pixel goes after."""
    reach = (kernel - 1) * dilation + 1
    outputs = -(-size // stride)
    total = max((outputs - 1) * stride + reach - size, 0)
    return total // 2, total - total // 2


def window_of(node: ir.Node, height: int, width: int, kernel: Sequence[int]) -> Window:
    """The window of a Conv or pooling node over an image of `height` x `width`.

    `kernel` is (height, width). Nodes with one spatial axis have a window of height 1.
    """
    size = (int(kernel[0]), int(kernel[1]))
    strides = _two_axes(attribute_of(node, "strides", (1, 1)))
    dilations = _two_axes(attribute_of(node, "dilations", (1, 1)))
    if 1 in size:
        # Along such an axis a dilation means nothing; the Edge TPU wants the same both ways.
        other = dilations[1] if size[0] == 1 else dilations[0]
        dilations = (other, other)
    found = Window(size, strides, dilations, _declared_pads(node))
    auto = attribute_of(node, "auto_pad", "NOTSET")
    if auto == "VALID":
        return replace(found, pads=NO_PADS)
    if auto not in ("SAME_UPPER", "SAME_LOWER"):
        return found
    top, left, bottom, right = found.same_pads(height, width)
    if auto == "SAME_UPPER":
        return replace(found, pads=(top, left, bottom, right))
    return replace(found, pads=(bottom, right, top, left))


def _two_axes(values: Sequence[int]) -> Pair:
    if len(values) == 1:
        return 1, values[0]
    return values[0], values[1]


def _declared_pads(node: ir.Node) -> Pads:
    pads = tuple(attribute_of(node, "pads", NO_PADS))
    if len(pads) == 2:
        return 0, pads[0], 0, pads[1]
    top, left, bottom, right = pads
    return top, left, bottom, right


def can_pad(window: Window, image: ir.Value) -> bool:
    """Whether the pads of a window over an NHWC image are those of TFLite's VALID or SAME."""
    _, height, width, _ = shape_of(image)
    return not any(window.pads) or window.pads == window.same_pads(height, width)


def with_tflite_pads(builder: Builder, image: ir.Value, window: Window) -> tuple[ir.Value, Window]:
    """An NHWC image and a window that TFLite can pad; any other padding becomes a Pad in front.

    Raises RefuseError for negative pads.
    """
    if can_pad(window, image):
        return image, window
    if min(window.pads) < 0:
        raise RefuseError(f"its pads {list(window.pads)} are negative")
    return zero_padded(builder, image, window)


def zero_padded(builder: Builder, image: ir.Value, window: Window) -> tuple[ir.Value, Window]:
    """An NHWC image with zeros around it, and the window without pads."""
    top, left, bottom, right = window.pads
    amounts = np.array([0, top, left, 0, 0, bottom, right, 0], np.int64)
    larger = builder.op("Pad", [image, builder.const(amounts, "pads")])
    return larger, replace(window, pads=NO_PADS)


def crop(
    builder: Builder, image: ir.Value, begins: Sequence[int], sizes: Sequence[int]
) -> ir.Value:
    """The rectangle of an NHWC image that begins at (top, left) and has (height, width)."""
    stops = [begin + size for begin, size in zip(begins, sizes, strict=True)]
    starts = builder.const(np.array(begins, np.int64), "starts")
    ends = builder.const(np.array(stops, np.int64), "ends")
    axes = builder.const(np.array([1, 2], np.int64), "axes")
    return builder.op("Slice", [image, starts, ends, axes])


def to_image(builder: Builder, value: ir.Value) -> ir.Value:
    """NCHW [1, C, H, W] or [N, C, W] as one NHWC image. Raises RefuseError for other shapes.

    Windows over one spatial axis have one row, so that the samples of a batch can be the rows of an
    image: [1, N, W, C].
    """
    shape = shape_of(value)
    if len(shape) not in (3, 4):
        raise RefuseError(
            f"it is {len(shape) - 2}-dimensional; the Edge TPU has 1 and 2 dimensional windows"
        )
    if len(shape) == 3:
        batch, channels, width = shape
        rows = builder.transpose(value, CHANNELS_LAST)
        return builder.reshape(rows, (1, batch, width, channels))
    if shape[0] != 1:
        raise RefuseError(f"its batch is {shape[0]}; the Edge TPU takes one image at a time")
    return to_nhwc(builder, value)


def from_image(builder: Builder, value: ir.Value, rank: int) -> ir.Value:
    """NHWC back to the layout, of 3 or 4 dimensions, that `to_image` found."""
    if rank == 4:
        return to_nchw(builder, value)
    rows = builder.reshape(value, shape_of(value)[1:])
    return builder.transpose(rows, CHANNELS_LAST)
