"""What exporters tell about a model beside its graph: sizes, labels, how pictures go in.

Ultralytics   properties inside the ONNX file: imgsz, batch, names, task
Hugging Face  preprocessor_config.json and config.json in the file's folder

All of it comes from strangers: what does not read as expected is left out.
"""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeGuard

import onnx_ir as ir

from compiler.importer.inputs import Hints

Fit = Literal["stretch", "letterbox", "crop"]
Task = Literal["detect", "classify"]

# Where an imported model keeps its `Facts`.
META = "edgetpu.facts"
# Longer texts are no lists of labels or sizes.
_MOST_CHARACTERS = 1 << 20
_MOST_FILE_BYTES = 4 << 20
_MOST_LABELS = 1 << 16
_MOST_SIDE = 1 << 14
# What Ultralytics calls the tasks whose outputs are read; others are segments, poses and so on.
_TASKS: Mapping[str, Task] = {"detect": "detect", "classify": "classify"}
_PREPROCESSOR = "preprocessor_config.json"
_CONFIG = "config.json"
# Below this size, ConvNeXT's and ResNet's preprocessing resizes by `crop_pct` and cuts the middle.
_LEAST_WARPED = 384


@dataclass(frozen=True)
class Facts:
    """What is told of a model.

    Pictures of `size` (height, width) go in as (pixel - `mean`) / `std`; `resize` comes before the
    middle is cut out. `task` is what its own outputs say. `told` says what was found where, a line
    each.
    """

    size: tuple[int, int] | None = None
    channels: int = 3
    batch: int = 1
    fit: Fit | None = None
    resize: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    colours: Literal["RGB", "BGR"] | None = None
    labels: tuple[str, ...] = ()
    task: Task | None = None
    is_picture: bool = False
    told: tuple[str, ...] = ()

    def hints(self, inputs: Sequence[ir.Value]) -> Hints:
        """The shape of the picture among the inputs of a model, as far as it is told."""
        images = [value for value in inputs if value.shape is not None and len(value.shape) == 4]
        if not self.is_picture or len(images) != 1:
            return {}
        height, width = self.size or (None, None)
        shape = images[0].shape
        assert shape is not None
        if shape[3] in (1, 3) and shape[1] not in (1, 3):
            return {str(images[0].name): (self.batch, height, width, None)}
        return {str(images[0].name): (self.batch, self.channels, height, width)}


def read(model: ir.Model, path: Path) -> Facts:
    """What is told of the model in the file `path`."""
    facts = _ultralytics(model.metadata_props)
    if facts is not None:
        return facts
    return _hugging_face(path)


def of(model: ir.Model) -> Facts:
    """What is told of an imported model."""
    found: Facts = model.meta.get(META, Facts())
    return found


# Ultralytics.


def _ultralytics(properties: Mapping[str, str]) -> Facts | None:
    """The facts in a file's properties; None where Ultralytics did not write it."""
    sizes = _literal(properties.get("imgsz"))
    names = _literal(properties.get("names"))
    if "stride" not in properties or sizes is None or names is None:
        return None
    size = _pair(sizes)
    labels = _labels(names)
    batch = _literal(properties.get("batch"))
    told = []
    if size is not None:
        told.append(f"imgsz {size[0]} x {size[1]}")
    if labels:
        told.append(f"{len(labels)} names")
    task = _TASKS.get(properties.get("task", ""))
    # Its own preprocessing fits classifiers' pictures by cutting out the middle.
    fit: Fit = "crop" if task == "classify" else "letterbox"
    return Facts(
        size=size,
        batch=batch if isinstance(batch, int) and 0 < batch < _MOST_SIDE else 1,
        fit=fit,
        mean=(0.0,),
        std=(255.0,),
        labels=labels,
        task=task,
        is_picture=True,
        told=(f"the file (Ultralytics): {', '.join([*told, f'fit {fit}'])}",),
    )


def _literal(text: str | None) -> Any:
    """The numbers, texts, lists and dictionaries that a text is Python for; None for others."""
    if text is None or len(text) > _MOST_CHARACTERS:
        return None
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


# Hugging Face.


def _hugging_face(path: Path) -> Facts:
    """The facts in files beside the model, or beside its folder where that is called `onnx`."""
    folder = path.resolve().parent
    if folder.name == "onnx" and not (folder / _CONFIG).is_file():
        folder = folder.parent
    facts = Facts()
    preprocessor = _json(folder / _PREPROCESSOR)
    if "image_mean" in preprocessor or "do_resize" in preprocessor:
        facts = _preprocessed(preprocessor)
    config = _json(folder / _CONFIG)
    labels = _labels(config.get("id2label"))
    if labels:
        line = f"{_CONFIG}: {len(labels)} labels"
        facts = replace(facts, labels=labels, told=(*facts.told, line))
    return facts


def _json(path: Path) -> dict[str, Any]:
    """The object in a file; an empty one where there is none."""
    try:
        # A pipe would block.
        if not path.is_file() or path.stat().st_size > _MOST_FILE_BYTES:
            return {}
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _preprocessed(config: Mapping[str, Any]) -> Facts:
    """What a preprocessor's configuration says of pictures."""
    size, resize, fit = _sizes(config)
    rescale = config.get("rescale_factor", 1 / 255)
    if not config.get("do_rescale", True):
        rescale = 1.0
    if not _is_number(rescale) or rescale <= 0:
        rescale = 1 / 255
    mean: tuple[float, ...] | None = (0.0,) * 3
    std: tuple[float, ...] | None = (1.0,) * 3
    if config.get("do_normalize", "image_mean" in config):
        mean = _numbers(config.get("image_mean"))
        std = _numbers(config.get("image_std"))
    if mean is None or std is None or 0 in std:
        mean, std = None, None  # it does not say what it means
    else:
        mean = tuple(round(number / rescale, 6) for number in mean)
        std = tuple(round(number / rescale, 6) for number in std)
    told = []
    if size is not None:
        told.append(f"size {size[0]} x {size[1]}, fit {fit}")
    if mean is not None and std is not None:
        told.append(f"mean {_shown(mean)}, std {_shown(std)} of pixels")
    return Facts(
        size=size,
        channels=1 if mean is not None and len(mean) == 1 else 3,
        fit=fit,
        resize=resize if resize != size else None,
        colours="BGR" if config.get("do_flip_channel_order") else None,
        mean=mean,
        std=std,
        is_picture=True,
        told=(f"{_PREPROCESSOR}: {', '.join(told)}",) if told else (),
    )


def _sizes(
    config: Mapping[str, Any],
) -> tuple[tuple[int, int] | None, tuple[int, int] | None, Fit]:
    """(size of the input, what pictures are resized to before, how)."""
    given = config.get("size")
    edge = given.get("shortest_edge") if isinstance(given, dict) else None
    whole = _pair(given)
    cut = _pair(config.get("crop_size"))
    share = config.get("crop_pct")
    if config.get("do_center_crop") and cut is not None:
        if _is_side(edge):
            return cut, (edge, edge), "crop"
        # An integer was the shortest edge before sizes were written out.
        by_edge = isinstance(given, int)
        return cut, whole, "crop" if by_edge else "stretch"
    if _is_side(edge):
        if _is_number(share) and 0 < share <= 1 and edge < _LEAST_WARPED:
            longer = int(edge / share)
            return (edge, edge), (longer, longer), "crop"
        longest = given.get("longest_edge") if isinstance(given, dict) else None
        # A detector of any shape: its export decides.
        return (None if longest else (edge, edge)), None, "stretch"
    return whole, None, "stretch"


# What both write.


def _pair(value: Any) -> tuple[int, int] | None:
    """(height, width) of a number, a pair, or an object with these names."""
    if isinstance(value, dict):
        value = [value.get("height"), value.get("width")]
    if _is_side(value):
        value = [value, value]
    if isinstance(value, list | tuple) and len(value) == 1:
        value = [value[0], value[0]]
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(map(_is_side, value)):
        return None
    return value[0], value[1]


def _is_side(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 < value <= _MOST_SIDE


def _is_number(value: Any) -> TypeGuard[float]:
    return type(value) in (int, float) and math.isfinite(value)


def _numbers(value: Any) -> tuple[float, ...] | None:
    """One or three numbers."""
    listed = value if isinstance(value, list) else [value]
    if len(listed) not in (1, 3) or not all(map(_is_number, listed)):
        return None
    return tuple(float(number) for number in listed)


def _labels(value: Any) -> tuple[str, ...]:
    """Names by index, of a list or of an object {index: name}."""
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    if not isinstance(value, dict) or not 0 < len(value) <= _MOST_LABELS:
        return ()
    found: dict[int, str] = {}
    for key, name in value.items():
        if not str(key).isdecimal() or not isinstance(name, str):
            return ()
        found[int(key)] = _printable(name)
    if sorted(found) != list(range(len(found))):
        return ()
    return tuple(found[index] for index in range(len(found)))


def _printable(name: str) -> str:
    return "".join(character for character in name if character.isprintable())


def _shown(numbers: Sequence[float]) -> str:
    return ",".join(f"{number:g}" for number in numbers)
