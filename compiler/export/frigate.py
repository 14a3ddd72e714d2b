"""What Frigate's Edge TPU detector asks of a model, and the files beside it.

Source: frigate/detectors/plugins/edgetpu_tfl.py and frigate/util/builtin.py (labels) of
blakeblackshear/frigate at e3fa7018, model type `yolo-generic`.
"""

from __future__ import annotations

from collections.abc import Sequence

from compiler.export.chain import Chain
from compiler.runtime.manifest import TensorEntry, VisionEntry, fixed_shape

CONFIG = "config.yml"
LABELMAP = "labelmap.txt"
# Where Frigate's container keeps models of its user.
_FOLDER = "/config/model_cache"
STRIDES = (8, 16, 32)
# Four sides with 16 bins each.
BOX_CHANNELS = 64
_COLOURS = {"RGB": "rgb", "BGR": "bgr"}


def refusal(chain: Chain, vision: VisionEntry | None, takes_pixels: bool) -> str | None:
    """Why the detector would not work with a chain of one file; None where it would."""
    if vision is None:
        return "it is not known to take pictures: build it with a folder of pictures"
    if len(chain.inputs) != 1:
        return f"it has {len(chain.inputs)} inputs; the detector feeds one"
    (image,) = chain.inputs
    shape = fixed_shape(image)
    if len(shape) != 4 or shape[0] != 1 or shape[3] != 3:
        return f"its input '{image['name']}' is {list(shape)}; the detector feeds [1, H, W, 3]"
    if vision["picture"]["colours"] not in _COLOURS:
        return "its pictures are grey; the detector feeds colours"
    if not takes_pixels:
        return (
            f"its input '{image['name']}' is not the pixels themselves; the detector feeds uint8 "
            "pixels, or these less 128: build it with --input uint8"
        )
    return _outputs_refusal(chain.outputs, (shape[1], shape[2]))


def _outputs_refusal(outputs: Sequence[TensorEntry], size: tuple[int, int]) -> str | None:
    found = ", ".join(f"'{tensor['name']}' {tensor['shape']}" for tensor in outputs)
    if len(outputs) != 2:
        return (
            f"its file gives {found}; the detector takes two outputs, the raw boxes [1, N, 64] and "
            "the logits of classes [1, N, C] of a YOLOv8, v9 or v11"
        )
    cells = sum((size[0] // stride) * (size[1] // stride) for stride in STRIDES)
    shapes = sorted(
        (fixed_shape(tensor) for tensor in outputs), key=lambda s: s[-1] != BOX_CHANNELS
    )
    boxes, scores = shapes
    if boxes != (1, cells, BOX_CHANNELS) or scores[:2] != (1, cells) or len(scores) != 3:
        return (
            f"its file gives {found}; for pictures of {size[0]} x {size[1]} the detector takes "
            f"[1, {cells}, {BOX_CHANNELS}] and [1, {cells}, C]"
        )
    if scores[2] in (1, BOX_CHANNELS):
        return f"it has {scores[2]} classes, with which the detector cannot tell scores from boxes"
    return None


def labelmap(labels: Sequence[str]) -> str:
    """One line for each class, its number in front."""
    lines = [f"{index} {' '.join(label.split())}\n" for index, label in enumerate(labels)]
    return "".join(lines)


def config(chain: Chain, vision: VisionEntry, file: str) -> str:
    """The part of Frigate's config.yml for a model in `file`."""
    height, width = vision["picture"]["size"]
    colours = _COLOURS[vision["picture"]["colours"]]
    return f"""# Copy {file} and {LABELMAP} to {_FOLDER} and put this into Frigate's config.yml.
detectors:
  coral:
    type: edgetpu
    device: usb  # pci for an M.2 or PCIe module

model:
  model_type: yolo-generic
  path: {_FOLDER}/{file}
  labelmap_path: {_FOLDER}/{LABELMAP}
  width: {width}
  height: {height}
  input_tensor: nhwc
  input_pixel_format: {colours}
  input_dtype: int
"""


def classes(outputs: Sequence[TensorEntry]) -> int:
    """The number of classes, of outputs that `refusal` takes."""
    channels = [fixed_shape(tensor)[2] for tensor in outputs]
    return next(count for count in channels if count != BOX_CHANNELS)
