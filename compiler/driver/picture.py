"""How a picture goes into a model: as options say, else the file's metadata, else by default."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx_ir as ir

from compiler.driver.options import BuildOptions
from compiler.errors import OptionError, no_file
from compiler.graph import shape_of
from compiler.importer import cutting, metadata, pixels
from compiler.importer.metadata import Facts
from compiler.importer.pixels import Layout, PixelInput
from compiler.progress import notes
from compiler.quantize import samples as sampling
from compiler.runtime.detections import Corners, Size, Yolo, cell_count, entry_of, head_of
from compiler.runtime.manifest import PictureEntry, TaskEntry
from compiler.runtime.pictures import MOST_PIXELS
from compiler.runtime.recognition import STRIDES

# Where an imported model keeps its PictureEntry.
META = "edgetpu.picture"
_MOST_LABEL_BYTES = 1 << 20
_NUMBERED = re.compile(r"(\d+)[\s:,]+(\S.*)")


def settle(model: ir.Model, options: BuildOptions) -> None:
    """Note how pictures go into `model`, and give its input the form that options ask for.

    Nothing is noted of a model that takes no picture, or of which nobody says that it does. Raises
    OptionError for options that do not go with the input.
    """
    facts = metadata.of(model)
    is_formed = options.input != "float32" or options.layout is not None
    is_labelled = options.labelled is not None
    is_shown = facts.is_picture or sampling.holds_pictures(options.calibration_path) or is_labelled
    if not is_formed and not is_shown:
        return
    value = picture_input(model)
    if value is None:
        if is_formed:
            name = "input" if options.input != "float32" else "layout"
            given = options.input if name == "input" else options.layout
            raise OptionError(f"{given}: {_no_picture(model)}", name)
        if is_labelled:
            raise OptionError(f"{options.labelled}: {_no_picture(model)}", "labelled")
        return
    for line in facts.told:
        notes.info("taken from %s", line)
    entry = _entry(value, options, facts)
    if value.dtype == ir.DataType.UINT8:
        _check_own_pixels(entry, options)
        model.meta[META] = entry
        return
    form = _form(value, entry, options)
    pixels.take(model, form)
    entry["layout"] = form.layout
    if form.dtype != "float32":
        # A pixel goes in as it is; the model has its own mean and std inside.
        entry["mean"] = [float(pixels.INT8_SHIFT)] if form.dtype == "int8" else [0.0]
        entry["std"] = [1.0]
    model.meta[META] = entry


def of(model: ir.Model) -> PictureEntry | None:
    """How pictures go into an imported model; None where nothing says that they do."""
    found: PictureEntry | None = model.meta.get(META)
    form = pixels.of(model)
    if found is None or form is None or form.dtype == "float32":
        return found
    return {**found, "normalised": model.meta[pixels.NORMALISED]}


def known_range(model: ir.Model, options: BuildOptions) -> tuple[float, float] | None:
    """The lowest and highest value of an input that takes pictures as floats, where all its
    channels have the same mean and std; None where it takes anything else."""
    entry = of(model)
    if entry is None or model.graph.inputs[0].dtype != ir.DataType.FLOAT:
        return None
    if not sampling.holds_pictures(options.calibration_path):
        return None
    if len(set(entry["mean"])) > 1 or len(set(entry["std"])) > 1:
        return None
    mean, std = entry["mean"][0], entry["std"][0]
    ends = sorted([(0 - mean) / std, (255 - mean) / std])
    return ends[0], ends[1]


def form_of(model: ir.Model) -> sampling.Form:
    """How samples become inputs of an imported model."""
    return sampling.Form(of(model), pixels.of(model))


def task_of(model: ir.Model, results: Mapping[str, Any]) -> TaskEntry | None:
    """What metadata say of the outputs of an imported model, where the shapes of its `results`
    agree.

    None where they say nothing, and of outputs that the user chose instead of the file's own.
    """
    facts = metadata.of(model)
    entry = of(model)
    if entry is None or cutting.of(model) or len(results) != 1:
        return None
    ((name, result),) = results.items()
    shape = np.shape(result)
    count = len(facts.labels)
    if facts.task == "classify" and shape == (1, count) and count > 1:
        return {"task": "classify", "scores": name}  # values tell a Softmax
    height, width = entry["size"]
    heads = [(1, 4 + count, cell_count((height, width), strides)) for strides in STRIDES]
    if facts.task == "detect" and shape in heads:
        return {"task": "detect", "head": entry_of(Yolo(name, rows=False, objectness=False))}
    return None


def labels_of(model: ir.Model, options: BuildOptions) -> list[str]:
    """The names of classes: those in the user's file, else those that the model's metadata have.
    Raises OptionError for a file that cannot be read."""
    if options.labels_path is None:
        return list(metadata.of(model).labels)
    return read_labels(options.labels_path)


def fitting_labels(
    labels: Sequence[str],
    task: TaskEntry,
    results: Sequence[Mapping[str, Any]],
    size: Size,
    file: Path | None,
) -> list[str]:
    """The labels, where they are as many as the classes that outputs tell of, or that is not known.

    Raises OptionError for another number in the user's `file`; of metadata such are left out.
    """
    has_corners = task["task"] == "detect" and task["head"]["kind"] == "corners"
    # Names of such networks may count a class for the background, which boxes do not.
    count = class_count(task, results[0], size) if results and not has_corners else None
    if count is None or count == len(labels):
        return list(labels)
    if file is None:
        return []
    raise OptionError(f"{file}: {len(labels)} names for {count} classes", "labels")


def class_count(task: TaskEntry, outputs: Mapping[str, Any], size: Size) -> int | None:
    """The number of classes that outputs tell of, for pictures of `size` (height, width); None
    where it is not known."""
    if task["task"] == "classify":
        return int(outputs[task["scores"]].size)
    if task["task"] is None:
        return None
    head = head_of(task["head"], size)
    if isinstance(head, Corners) and head.labels is not None:
        return None  # each box has one score
    _, scores = head.candidates(outputs)
    return int(scores.shape[1])


def read_labels(path: Path) -> list[str]:
    """The names in a file, one in each line, by their order or by a number in front of each.

    Raises OptionError for a file that cannot be read or holds none.
    """
    if not path.is_file():
        raise OptionError(f"{path}: {no_file(path)}", "labels")
    if path.stat().st_size > _MOST_LABEL_BYTES:
        raise OptionError(f"{path}: is larger than a list of labels", "labels")
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"{path}: cannot be read as UTF-8 text", "labels") from error
    names = ["".join(filter(str.isprintable, line)).strip() for line in lines]
    while names and not names[-1]:
        names.pop()
    if not any(names):
        raise OptionError(f"{path}: holds no labels", "labels")
    return _by_number(names) or names


def _by_number(lines: list[str]) -> list[str]:
    """The names by the numbers in front of them, as `0  person`; none where a line has no number,
    or two have the same."""
    found: dict[int, str] = {}
    for line in filter(None, lines):
        match = _NUMBERED.fullmatch(line)
        if match is None or int(match[1]) in found or int(match[1]) > _MOST_LABEL_BYTES:
            return []
        found[int(match[1])] = match[2]
    return [found.get(index, "") for index in range(max(found) + 1)]


def _check_own_pixels(entry: PictureEntry, options: BuildOptions) -> None:
    """Raises OptionError for a form that an input of uint8 does not have by itself."""
    if options.input == "int8":
        raise OptionError("int8: the file itself takes uint8, and so does the bundle", "input")
    if options.layout not in (None, entry["layout"].lower()):
        text = (
            f"{options.layout}: the file takes uint8 in {entry['layout']}, and so does the bundle"
        )
        raise OptionError(text, "layout")
    for name in ("mean", "std"):
        if getattr(options.image, name) is not None:
            raise OptionError("does not apply: the file takes pixels as they are", name)


def picture_input(model: ir.Model) -> ir.Value | None:
    """The only input of a model, where pictures fit it: floats or uint8 of 1 or 3 channels."""
    inputs = model.graph.inputs
    if len(inputs) != 1:
        return None
    shape = shape_of(inputs[0])
    takes_values = inputs[0].dtype in (ir.DataType.FLOAT, ir.DataType.UINT8)
    is_image = len(shape) == 4 and shape[0] == 1 and takes_values
    if not is_image or (shape[1] not in (1, 3) and shape[3] not in (1, 3)):
        return None
    return inputs[0]


def _no_picture(model: ir.Model) -> str:
    inputs = [f"'{value.name}' {list(shape_of(value))}" for value in model.graph.inputs]
    return (
        "pixels need a model with one float input [1, 3, H, W] or [1, H, W, 3]; "
        f"it has {', '.join(inputs) or 'none'}"
    )


def _file_layout(value: ir.Value) -> Layout:
    shape = shape_of(value)
    return "NHWC" if shape[3] in (1, 3) and shape[1] not in (1, 3) else "NCHW"


def _entry(value: ir.Value, options: BuildOptions, facts: Facts) -> PictureEntry:
    """How a picture becomes the input as the file has it."""
    given = options.image
    if _file_layout(value) == "NHWC":
        _, height, width, channels = shape_of(value)
    else:
        _, channels, height, width = shape_of(value)
    # Pixels that the file takes as they are have no mean; those of floats are in [0, 1].
    std = (1.0,) if value.dtype == ir.DataType.UINT8 else facts.std or (255.0,)
    mean = (0.0,) if value.dtype == ir.DataType.UINT8 else facts.mean or (0.0,)
    entry: PictureEntry = {
        "input": str(value.name),
        "layout": _file_layout(value),
        "size": [height, width],
        "colours": "L" if channels == 1 else given.colours or facts.colours or "RGB",
        "fit": given.fit or facts.fit or "stretch",
        "mean": _of_pixels("mean", given.mean, mean, channels),
        "std": _of_pixels("std", given.std, std, channels),
    }
    resize = given.size
    if resize is None and facts.resize is not None and facts.size == (height, width):
        resize = facts.resize
    if resize is not None:
        _check_resize(resize, (height, width))
        entry["resize"] = list(resize)
    return entry


def _of_pixels(
    option: str, given: tuple[float, ...] | None, told: tuple[float, ...], channels: int
) -> list[float]:
    """A mean or std of pixels from 0 to 255; options have them of [0, 1]. Raises OptionError for
    numbers of another count than the channels."""
    if given is not None and option == "mean" and max(given) > 1:
        text = ",".join(f"{number:g}" for number in given)
        small = ",".join(f"{number / 255:.3g}" for number in given)
        raise OptionError(f"{text}: images are taken as values from 0 to 1: give {small}", option)
    numbers = list(told) if given is None else [round(255 * number, 6) for number in given]
    if len(numbers) in (1, channels):
        return numbers
    if given is None:
        return numbers[:1]
    raise OptionError(f"{len(numbers)} numbers: the input has {channels} channels", option)


def _check_resize(resize: tuple[int, int], inner: tuple[int, int]) -> None:
    """Raises OptionError for a size that is smaller than the input, (height, width), or too
    large."""
    tall, wide = resize
    height, width = inner
    if tall < height or wide < width:
        raise OptionError(
            f"{tall},{wide}: smaller than the input of the model, {height},{width}", "size"
        )
    if tall * wide > MOST_PIXELS:
        raise OptionError(f"{tall},{wide}: more than {MOST_PIXELS:,} pixels", "size")


def _form(value: ir.Value, entry: PictureEntry, options: BuildOptions) -> PixelInput:
    """The form of the input that options ask for."""
    layout = entry["layout"]
    if options.layout is not None:
        layout = cast(Layout, options.layout.upper())
    elif options.input != "float32":
        layout = "NHWC"
    mean, std = tuple(entry["mean"]), tuple(entry["std"])
    return PixelInput(str(value.name), options.input, layout, entry["layout"], mean, std)
