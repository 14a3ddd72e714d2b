"""YOLO detectors as their exporters write them as TFLite, drawn without weights."""

from __future__ import annotations

from benchmarks.sketch import Sketch
from compiler.ops.rules import OpInfo, TensorInfo

CLASSES = 80
ANCHORS = 3


class _Yolo(Sketch):
    """Blocks of YOLOv5 and YOLOv8. The first `requantized` parts of joins get a QUANTIZE."""

    def __init__(self, requantized: int = 0) -> None:
        super().__init__()
        self._requantized = requantized

    def silu(self, x: TensorInfo) -> TensorInfo:
        return self.each("MUL", x, self.each("LOGISTIC", x))

    def layer(self, x: TensorInfo, outputs: int, kernel: int = 1, stride: int = 1) -> TensorInfo:
        """A convolution and its SiLU; in front of a stride the exporters pad."""
        if stride == 2:
            side = kernel // 2
            x = self.pad(x, (0, 0), (side, side), (side, side), (0, 0))
        same = stride == 1
        return self.silu(self.conv(x, outputs, (kernel, kernel), stride, same))

    def bottleneck(self, x: TensorInfo, hidden: int, first: int, shortcut: bool) -> TensorInfo:
        y = self.layer(self.layer(x, hidden, first), x.shape[-1], 3)
        return self.each("ADD", x, y) if shortcut else y

    def join(self, parts: list[TensorInfo]) -> TensorInfo:
        """Joins channels."""
        count = min(len(parts), self._requantized)
        self._requantized -= count
        changed = [self.each("QUANTIZE", part) for part in parts[:count]]
        return self.concat([*changed, *parts[count:]])

    def c3(self, x: TensorInfo, outputs: int, repeats: int, shortcut: bool) -> TensorInfo:
        hidden = outputs // 2
        y, other = self.layer(x, hidden), self.layer(x, hidden)
        for _ in range(repeats):
            y = self.bottleneck(y, hidden, 1, shortcut)
        return self.layer(self.join([y, other]), outputs)

    def c2f(self, x: TensorInfo, outputs: int, repeats: int, shortcut: bool) -> TensorInfo:
        hidden = outputs // 2
        x = self.layer(x, outputs)
        parts = [self.slice(x, 3, hidden), self.slice(x, 3, hidden)]
        for _ in range(repeats):
            parts.append(self.bottleneck(parts[-1], hidden, 3, shortcut))
        return self.layer(self.join(parts), outputs)

    def pyramid(self, x: TensorInfo, outputs: int, in_turn: bool) -> TensorInfo:
        """Pools of three sizes: one behind the other, or of the same input."""
        hidden = x.shape[-1] // 2
        parts = [self.layer(x, hidden)]
        for size in (5, 5, 5) if in_turn else (5, 9, 13):
            parts.append(self.max_pool(parts[-1] if in_turn else parts[0], size, 1))
        return self.layer(self.join(parts), outputs)

    def head_of_yolov5(self, level: TensorInfo, requantized: int, old: bool) -> TensorInfo:
        """Boxes and scores [1, places, values] of one level."""
        values = CLASSES + 5
        _, height, width, _ = level.shape
        cells = height * width
        x = self.conv(level, ANCHORS * values)
        x = self.reshape(x, 1, cells, ANCHORS, values)
        if old:
            x = self.each("LOGISTIC", self.transpose(x, 0, 2, 1, 3))
        parts = [self.slice(x, 3, count) for count in (2, 2, values - 4)]
        if not old:
            parts = [self.each("LOGISTIC", part) for part in parts]
        middle, size, scores = parts
        middle = self.each("MUL", middle, self.constant(1))
        if old:
            middle = self.each("SUB", middle, self.constant(1))
        middle = self.each("ADD", middle, self.constant(*x.shape[1:3], 2))
        middle = self.each("MUL", self.each("MUL", middle, self.constant(1)), self.constant(2))
        if old:
            size = self.each("MUL", size, self.constant(1))
        size = self.each("MUL", size, size)
        size = self.each("MUL", self.each("MUL", size, self.constant(2)), self.constant(2))
        given = [middle, size, scores]
        for index in range(requantized):
            given[index] = self.each("QUANTIZE", given[index])
        return self.reshape(self.concat(given), 1, cells * ANCHORS, values)

    def neck_of_yolov5(
        self, levels: list[TensorInfo], width: int
    ) -> tuple[TensorInfo, TensorInfo, TensorInfo]:
        fine, middle, coarse = levels
        top = self.layer(coarse, 8 * width)
        x = self.c3(self.join([self.resize(top, 2), middle]), 8 * width, 1, shortcut=False)
        side = self.layer(x, 4 * width)
        fine = self.c3(self.join([self.resize(side, 2), fine]), 4 * width, 1, shortcut=False)
        x = self.layer(fine, 4 * width, 3, 2)
        middle = self.c3(self.join([x, side]), 8 * width, 1, shortcut=False)
        x = self.layer(middle, 8 * width, 3, 2)
        coarse = self.c3(self.join([x, top]), 16 * width, 1, shortcut=False)
        return fine, middle, coarse


def yolov5(size: int, width: int = 32) -> list[OpInfo]:
    """Version 6 of 80 classes, uint8 in and out."""
    net = _Yolo()
    image = net.change_type("QUANTIZE", net.tensor(1, size, size, 3, dtype="uint8"), "int8")
    padded = net.pad(image, (0, 0), (2, 2), (2, 2), (0, 0))
    x = net.silu(net.conv(padded, width, (6, 6), 2, same=False))
    levels = []
    for index, repeats in enumerate((1, 2, 3, 1)):
        outputs = width * 2 ** (index + 1)
        x = net.c3(net.layer(x, outputs, 3, 2), outputs, repeats, shortcut=True)
        levels.append(x)
    levels[-1] = net.pyramid(x, x.shape[-1], in_turn=True)
    found = net.neck_of_yolov5(levels[1:], width)
    # Parts of the three levels that have a scale of their own.
    other_scales = zip(found, (1, 2, 2), strict=True)
    parts = [net.head_of_yolov5(level, count, old=False) for level, count in other_scales]
    net.change_type("QUANTIZE", net.concat(parts, axis=1), "uint8")
    return net.ops


def yolov5_with_focus(size: int, width: int = 32) -> list[OpInfo]:
    """Version 5 of 80 classes: its first layer takes every other pixel, its head transposes."""
    net = _Yolo(requantized=21)
    image = net.change_type("QUANTIZE", net.tensor(1, size, size, 3, dtype="uint8"), "int8")
    half = (1, size // 2, size // 2, 3)
    x = net.join([net.strided(image, (1, 2, 2, 1), half) for _ in range(4)])
    x = net.layer(x, width, 3)
    levels = []
    for index, repeats in enumerate((1, 3, 3)):
        outputs = width * 2 ** (index + 1)
        x = net.c3(net.layer(x, outputs, 3, 2), outputs, repeats, shortcut=True)
        levels.append(x)
    x = net.pyramid(net.layer(x, 16 * width, 3, 2), 16 * width, in_turn=False)
    levels.append(net.c3(x, 16 * width, 1, shortcut=False))
    parts = []
    for level in net.neck_of_yolov5(levels[1:], width):
        parts.append(net.each("QUANTIZE", net.head_of_yolov5(level, 0, old=True)))
    net.change_type("QUANTIZE", net.concat(parts, axis=1), "uint8")
    return net.ops


def yolov8(size: int, width: int = 16, requantized: int = 2) -> list[OpInfo]:
    """80 classes, boxes as distributions over 16 places, int8 in and out; `requantized` of the
    three parts of its result have a scale of their own."""
    net = _Yolo()
    x = net.tensor(1, size, size, 3)
    x = net.layer(net.layer(x, width, 3, 2), 2 * width, 3, 2)
    levels = [net.c2f(x, 2 * width, 1, shortcut=True)]
    for outputs, repeats in ((4 * width, 2), (8 * width, 2), (16 * width, 1)):
        x = net.layer(levels[-1], outputs, 3, 2)
        levels.append(net.c2f(x, outputs, repeats, shortcut=True))
    _, fine, middle, coarse = levels
    coarse = net.pyramid(coarse, 16 * width, in_turn=True)
    middle = net.c2f(net.join([net.resize(coarse, 2), middle]), 8 * width, 1, shortcut=False)
    fine = net.c2f(net.join([net.resize(middle, 2), fine]), 4 * width, 1, shortcut=False)
    x = net.join([net.layer(fine, 4 * width, 3, 2), middle])
    middle = net.c2f(x, 8 * width, 1, shortcut=False)
    x = net.join([net.layer(middle, 8 * width, 3, 2), coarse])
    coarse = net.c2f(x, 16 * width, 1, shortcut=False)
    flat = [_level_of_yolov8(net, level, width) for level in (fine, middle, coarse)]
    places = net.concat(flat)
    scores = net.each("LOGISTIC", net.slice(places, 1, CLASSES))
    middles, sizes = _boxes_of_yolov8(net, net.slice(places, 1, 64))
    parts = [scores, middles, sizes]
    for index in range(requantized):
        parts[index] = net.each("QUANTIZE", parts[index])
    net.each("QUANTIZE", net.concat(parts, axis=1))
    return net.ops


def _level_of_yolov8(net: _Yolo, level: TensorInfo, width: int) -> TensorInfo:
    """Distances and scores [1, values, places] of one level."""
    found = []
    for hidden, outputs in ((64, 64), (max(4 * width, CLASSES), CLASSES)):
        x = net.layer(net.layer(level, hidden, 3), hidden, 3)
        found.append(net.conv(x, outputs))
    x = net.transpose(net.concat(found), 0, 3, 1, 2)
    _, values, height, width = x.shape
    return net.reshape(x, 1, values, height * width)


def _boxes_of_yolov8(net: _Yolo, x: TensorInfo) -> tuple[TensorInfo, TensorInfo]:
    """Middles and sizes [1, 2, places] of distances as distributions [1, 64, places]."""
    places = x.shape[-1]
    x = net.transpose(net.reshape(x, 1, 4, 16, places), 0, 1, 3, 2)
    x = net.each("SOFTMAX", x)
    # The exporter goes to ONNX's layout and back.
    x = net.transpose(net.transpose(x, 0, 3, 1, 2), 0, 2, 3, 1)
    x = net.reshape(net.conv(x, 1), 1, 1, 4, places)
    x = net.reshape(x, 1, 4, places)
    near, far = net.slice(x, 1, 2), net.slice(x, 1, 2)
    low = net.each("SUB", net.constant(1, 2, places), near)
    high = net.each("ADD", far, net.constant(1, 2, places))
    middles = net.each("MUL", net.each("ADD", low, high), net.constant(1, 1, places))
    sizes = net.each("MUL", net.each("SUB", high, low), net.constant(1, 1, places))
    return middles, sizes


def tiny_yolov3(size: int = 416, leaky: bool = False) -> list[OpInfo]:
    """Two levels that leave by themselves; its layers end in ReLU, or in operators of their own."""
    net = Sketch()

    def layer(x: TensorInfo, outputs: int, kernel: int) -> TensorInfo:
        x = net.conv(x, outputs, (kernel, kernel))
        return net.each("LEAKY_RELU", x) if leaky else x

    x = net.change_type("QUANTIZE", net.tensor(1, size, size, 3, dtype="uint8"), "int8")
    x = layer(x, 16, 3)
    for outputs in (32, 64, 128, 256):
        x = layer(net.max_pool(x, 2, 2), outputs, 3)
    fine = x
    x = layer(net.max_pool(x, 2, 2), 512, 3)
    x = layer(net.max_pool(x, 2, 1), 1024, 3)
    top = layer(x, 256, 1)
    coarse = net.conv(layer(top, 512, 3), ANCHORS * (CLASSES + 5))
    x = net.resize(layer(top, 128, 1), 2)
    x = net.concat([net.each("QUANTIZE", x), fine])
    x = net.conv(layer(x, 256, 3), ANCHORS * (CLASSES + 5))
    for level in (coarse, x):
        net.change_type("QUANTIZE", level, "uint8")
    return net.ops
