"""Models of public compiler logs, drawn from what is known of their networks.

`rebuilt` finds one by the path of its log. Only shapes and types count for what the compiler takes:
there are no weights. Where an exporter's own choices are not known (which joins it put a QUANTIZE
in front of), the numbers of operators in the log decide.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from benchmarks import rebuilt_yolo as yolo
from benchmarks.sketch import Sketch
from compiler.ops.rules import OpInfo, TensorInfo
from fixtures.networks import MOBILENET_V1, MOBILENET_V2


def rebuilt(path: str) -> list[OpInfo] | None:
    """The operators of the model of a log at this path of its repository; None if it is unknown."""
    for pattern, draw in _MODELS.items():
        match = re.search(pattern, path)
        if match:
            return draw(*map(int, match.groups()))
    return None


def mobilenet_v2_of_keras(height: int, width: int) -> list[OpInfo]:
    """Without its classifier; Keras pads in front of strides."""
    sketch = Sketch("uint8")

    def halved(x: TensorInfo) -> TensorInfo:
        return sketch.pad(x, (0, 0), (0, 1), (0, 1), (0, 0))

    image = halved(sketch.tensor(1, height, width, 3))
    x = sketch.conv(image, 32, (3, 3), 2, same=False)
    _inverted(sketch, x, lambda y: sketch.depthwise(halved(y), (3, 3), 2, same=False))
    return sketch.ops


def mobilenet_v2() -> list[OpInfo]:
    """Of the TensorFlow models, at 224 x 224."""
    sketch = Sketch("uint8")
    x = sketch.conv(sketch.tensor(1, 224, 224, 3), 32, (3, 3), 2)
    x = _inverted(sketch, x, lambda y: sketch.depthwise(y, (3, 3), 2))
    x = sketch.add("AVERAGE_POOL_2D", [x], (1, 1, 1, 1280))
    sketch.reshape(sketch.conv(x, 1001), 1, 1001)
    return sketch.ops


def _inverted(
    sketch: Sketch, x: TensorInfo, halve: Callable[[TensorInfo], TensorInfo]
) -> TensorInfo:
    """The inverted residuals of MobileNet v2 and the layer behind them."""
    for expansion, outputs, repeats, first in MOBILENET_V2:
        for index in range(repeats):
            y = sketch.conv(x, x.shape[-1] * expansion) if expansion > 1 else x
            y = halve(y) if index == 0 and first == 2 else sketch.depthwise(y)
            y = sketch.conv(y, outputs)
            x = sketch.each("ADD", x, y) if index else y
    return sketch.conv(x, 1280)


def ssd_mobilenet_v1(classes: int = 90) -> list[OpInfo]:
    """At 300 x 300, six levels of boxes and classes, and its post-processing."""
    sketch = Sketch("uint8")
    x = sketch.conv(sketch.tensor(1, 300, 300, 3), 32, (3, 3), 2)
    levels = []
    for index, (outputs, stride) in enumerate(MOBILENET_V1):
        x = sketch.conv(sketch.depthwise(x, (3, 3), stride), outputs)
        if index in (10, 12):
            levels.append(x)
    for middle, outputs in ((256, 512), (128, 256), (128, 256), (64, 128)):
        x = sketch.conv(sketch.conv(x, middle), outputs, (3, 3), 2)
        levels.append(x)
    boxes, scores = [], []
    for index, level in enumerate(levels):
        cells = level.shape[1] * level.shape[2]
        anchors = 6 if index else 3
        box = sketch.conv(level, anchors * 4)
        boxes.append(sketch.reshape(box, 1, cells * anchors, 1, 4))
        score = sketch.conv(level, anchors * (classes + 1))
        scores.append(sketch.reshape(score, 1, cells * anchors, classes + 1))
    box = sketch.concat(boxes, axis=1)
    box = sketch.reshape(box, 1, box.shape[1], 4)
    score = sketch.each("LOGISTIC", sketch.concat(scores, axis=1))
    found = sketch.tensor(1, 10, 4, dtype="float32")
    sketch.ops.append(OpInfo("CUSTOM", 1, (box, score), (found,), {}))
    return sketch.ops


def strided_pixel(height: int, width: int, channels: int) -> list[OpInfo]:
    """One convolution that gives one number."""
    sketch = Sketch("uint8")
    _last_pixel(sketch, sketch.tensor(1, height, width, channels))
    return sketch.ops


def _last_pixel(sketch: Sketch, x: TensorInfo) -> None:
    sketch.conv(x, 1, (1, 1), max(x.shape[1:3]), same=True)


def padded(height: int, width: int, channels: int) -> list[OpInfo]:
    """2 x 2 pixels made large."""
    sketch = Sketch("uint8")
    _grown(sketch, height, width, channels)
    return sketch.ops


def _grown(sketch: Sketch, height: int, width: int, channels: int) -> TensorInfo:
    image = sketch.tensor(1, 2, 2, channels)
    return sketch.pad(image, (0, 0), (0, height - 2), (0, width - 2), (0, 0))


def padded_pixel(height: int, width: int, channels: int) -> list[OpInfo]:
    sketch = Sketch("uint8")
    _last_pixel(sketch, _grown(sketch, height, width, channels))
    return sketch.ops


def convolutions(*sizes: int) -> list[OpInfo]:
    """A chain; the sizes are those in the names of the files."""
    height, width, channels, outputs, kernel, count = sizes
    sketch = Sketch("uint8")
    x = _grown(sketch, height, width, channels)
    for _ in range(count):
        x = sketch.conv(x, outputs, (kernel, kernel))
    _last_pixel(sketch, x)
    return sketch.ops


def dense_layers(*sizes: int) -> list[OpInfo]:
    """A chain; the sizes are those in the names of the files."""
    height, width, channels, outputs, count = sizes
    sketch = Sketch("uint8")
    x = sketch.tensor(1, height, width, channels)
    for _ in range(count):
        x = sketch.dense(x, outputs)
    sketch.dense(x, 1)
    return sketch.ops


def additions() -> list[OpInfo]:
    sketch = Sketch("uint8")
    x = _grown(sketch, 256, 256, 3)
    for _ in range(500):
        x = sketch.each("ADD", x, x)
    _last_pixel(sketch, x)
    return sketch.ops


def speech() -> list[OpInfo]:
    """Two blocks of convolutions with an unfolded norm, over 20 x 11 features."""
    sketch = Sketch("uint8")
    x = sketch.tensor(1, 20, 11, 1)
    filters, bias = sketch.constant(1, 2, 2, 32), sketch.constant(32)
    x = sketch.add("DEPTHWISE_CONV_2D", [x, filters, bias], (1, 20, 11, 32))
    for outputs in (32, 64):
        x = sketch.conv(x, outputs, (2, 2))
        x = sketch.with_channels("ADD", sketch.with_channels("MUL", x))
        x = sketch.max_pool(x, 2, 2, same=False)
    sketch.each("SOFTMAX", sketch.dense(sketch.dense(x, 128), 35))
    return sketch.ops


def speech_networks(count: int) -> list[OpInfo]:
    """As many networks as were compiled for one file of logs."""
    return [op for _ in range(count) for op in speech()]


def digits() -> list[OpInfo]:
    """MNIST with two convolutions, in and out of float."""
    sketch = Sketch()
    x = sketch.change_type("QUANTIZE", sketch.tensor(1, 28, 28, 1, dtype="float32"), "int8")
    for _ in range(2):
        x = sketch.max_pool(sketch.conv(x, 32, (5, 5)), 2, 2)
    x = sketch.reshape(x, 1, 7 * 7 * 32)
    x = sketch.each("SOFTMAX", sketch.dense(sketch.dense(x, 1024), 10))
    sketch.change_type("DEQUANTIZE", x, "float32")
    return sketch.ops


def fashion() -> list[OpInfo]:
    """Two dense layers with an unfolded norm."""
    sketch = Sketch("uint8")
    x = sketch.dense(sketch.tensor(1, 28, 28), 128)
    x = sketch.with_channels("ADD", sketch.with_channels("MUL", x))
    sketch.each("SOFTMAX", sketch.dense(x, 10))
    return sketch.ops


def temporal() -> list[OpInfo]:
    """Convolutions of 3 x 1 whose dilations are 1, 2 and 4 along the height."""
    sketch = Sketch()
    x = sketch.tensor(1, 118, 100, 1)
    for dilation in (1, 2, 4):
        filters, bias = sketch.constant(8, 3, 1, x.shape[-1]), sketch.constant(8)
        x = sketch.add("CONV_2D", [x, filters, bias], (1, 118, 100, 8), dilationHFactor=dilation)
    sketch.each("LOGISTIC", sketch.dense(sketch.reshape(x, 1, 94_400), 1))
    return sketch.ops


def blur() -> list[OpInfo]:
    """One depthwise convolution of a large image, in and out of float."""
    sketch = Sketch("uint8")
    x = sketch.tensor(1, 1058, 1920, 3, dtype="float32")
    x = sketch.depthwise(sketch.change_type("QUANTIZE", x, "uint8"))
    sketch.change_type("DEQUANTIZE", x, "float32")
    return sketch.ops


def super_resolution() -> list[OpInfo]:
    """SRGAN: residual blocks at 96 x 96, then pixel shuffles in five dimensions, to 384 x 384."""
    sketch = Sketch()
    image = sketch.tensor(1, 96, 96, 3, dtype="uint8")
    x = sketch.change_type("QUANTIZE", image, "int8")
    x = start = _prelu(sketch, sketch.conv(x, 64, (9, 9)))
    for _ in range(16):
        y = _prelu(sketch, sketch.conv(x, 64, (3, 3)))
        x = sketch.each("ADD", x, sketch.conv(y, 64, (3, 3)))
    x = sketch.each("ADD", start, sketch.conv(x, 64, (3, 3)))
    for _ in range(2):
        x = _shuffled(sketch, sketch.conv(x, 256, (3, 3)))
        x = _prelu(sketch, x)
    x = sketch.each("TANH", sketch.conv(x, 3, (9, 9)))
    sketch.change_type("QUANTIZE", x, "uint8")
    return sketch.ops


def grasping() -> list[OpInfo]:
    """GG-CNN: three convolutions with strides, three transposed ones, and four results."""
    sketch = Sketch("uint8")
    x = sketch.tensor(1, 300, 300, 1)
    for outputs, kernel, stride in ((32, 9, 3), (16, 5, 2), (8, 3, 2)):
        x = sketch.conv(x, outputs, (kernel, kernel), stride)
    for outputs, kernel, stride in ((8, 3, 2), (16, 5, 2), (32, 9, 3)):
        _, height, width, channels = x.shape
        filters = sketch.constant(outputs, kernel, kernel, channels)
        shape = (1, height * stride, width * stride, outputs)
        x = sketch.each(
            "RELU", sketch.add("TRANSPOSE_CONV", [sketch.constant(4), filters, x], shape)
        )
    for _ in range(4):
        sketch.conv(x, 1, (2, 2))
    return sketch.ops


def rows_of_dense() -> list[OpInfo]:
    """A fully-connected layer of several rows."""
    sketch = Sketch("uint8")
    filters, bias = sketch.constant(8, 16), sketch.constant(8)
    sketch.add("FULLY_CONNECTED", [sketch.tensor(4, 16), filters, bias], (4, 8))
    return sketch.ops


def facenet() -> list[OpInfo]:
    """Inception-ResNet v1 at 160 x 160; the exporter's QUANTIZEs stand in front of joins."""
    sketch = Sketch()
    quantized = 33

    def chain(x: TensorInfo, *layers: tuple[int, int, int]) -> TensorInfo:
        for outputs, height, width in layers:
            x = sketch.conv(x, outputs, (height, width))
        return x

    def join(parts: list[TensorInfo]) -> TensorInfo:
        nonlocal quantized
        count = min(quantized, len(parts))
        quantized -= count
        changed = [sketch.each("QUANTIZE", part) for part in parts[:count]]
        return sketch.concat([*changed, *parts[count:]])

    def residual(x: TensorInfo, parts: list[TensorInfo]) -> TensorInfo:
        return sketch.each("ADD", x, sketch.conv(join(parts), x.shape[-1]))

    def halved(x: TensorInfo, outputs: int) -> TensorInfo:
        return sketch.conv(x, outputs, (3, 3), 2, same=False)

    x = sketch.conv(halved(sketch.tensor(1, 160, 160, 3), 32), 32, (3, 3), same=False)
    x = sketch.max_pool(sketch.conv(x, 64, (3, 3)), 3, 2, same=False)
    x = halved(sketch.conv(sketch.conv(x, 80), 192, (3, 3), same=False), 256)
    for _ in range(5):
        longest = chain(x, (32, 1, 1), (32, 3, 3), (32, 3, 3))
        x = residual(x, [chain(x, (32, 1, 1)), chain(x, (32, 1, 1), (32, 3, 3)), longest])
    parts = [halved(x, 384), halved(chain(x, (192, 1, 1), (192, 3, 3)), 256)]
    x = join([*parts, sketch.max_pool(x, 3, 2, same=False)])
    for _ in range(10):
        x = residual(x, [chain(x, (128, 1, 1)), chain(x, (128, 1, 1), (128, 1, 7), (128, 7, 1))])
    parts = [halved(chain(x, (256, 1, 1)), 384), halved(chain(x, (256, 1, 1)), 256)]
    parts.append(halved(chain(x, (256, 1, 1), (256, 3, 3)), 256))
    x = join([*parts, sketch.max_pool(x, 3, 2, same=False)])
    for _ in range(6):
        x = residual(x, [chain(x, (192, 1, 1)), chain(x, (192, 1, 1), (192, 1, 3), (192, 3, 1))])
    sketch.dense(sketch.add("MEAN", [x], (1, x.shape[-1])), 128)
    return sketch.ops


def _prelu(sketch: Sketch, x: TensorInfo) -> TensorInfo:
    return sketch.each("PRELU", x, sketch.constant(1, 1, x.shape[-1]))


def _shuffled(sketch: Sketch, x: TensorInfo) -> TensorInfo:
    _, height, width, channels = x.shape
    x = sketch.reshape(x, 1, height, width, 2, channels // 2)
    x = sketch.transpose(x, 0, 1, 3, 2, 4)
    return sketch.reshape(x, 1, 2 * height, 2 * width, channels // 4)


_SIZE = r"(\d+)x(\d+)x(\d+)"

# By a pattern of the log's path, whose numbers are handed on.
_MODELS: dict[str, Callable[..., list[OpInfo]]] = {
    rf"model_padding_stride_{_SIZE}_": padded_pixel,
    rf"model_padding_{_SIZE}_": padded,
    rf"model_stride_{_SIZE}_": strided_pixel,
    rf"model_conv_{_SIZE}x(\d+)x(\d+)x(\d+)_": convolutions,
    rf"model_dense_{_SIZE}x(\d+)x(\d+)_": dense_layers,
    r"model_mat_Add_": additions,
    r"model_mobilenet_v2_wo_fc_(\d+)x(\d+)x": mobilenet_v2_of_keras,
    r"mobilenet_v2_1.0_224_quant_": mobilenet_v2,
    r"ASR_Model": speech,
    r"fm(\d+)_log": speech_networks,
    r"mnist4_": digits,
    r"edgetpu-test": fashion,
    r"edgetpu-tcn": temporal,
    r"motion blur": blur,
    r"SR-GAN-Edge-TPU": super_resolution,
    r"FRC_Edge-TPU": ssd_mobilenet_v1,
    r"yolov8s_full_integer_quant_edgetpu_192": lambda: yolo.yolov8(192, 32, requantized=1),
    r"yolov8[ns]_full_integer_quant_edgetpu_(\d+)": yolo.yolov8,
    r"yolov5[ns]-int8_edgetpu_(\d+)": yolo.yolov5,
    # The log names neither size nor classes: these are the exporter's defaults.
    r"road-signs.*yolov5s-int8_edgetpu": lambda: yolo.yolov5(640),
    r"edgetpu-yolo.*export.md": lambda: yolo.yolov5_with_focus(224),
    r"edge-tpu-tiny-yolo": yolo.tiny_yolov3,
    r"yolov3-tiny leaky": lambda: yolo.tiny_yolov3(leaky=True),
    r"edgetpu-ggcnn": grasping,
    r"FULLY_CONNECTED, non-2D": rows_of_dense,
    r"facenet_keras": facenet,
}
