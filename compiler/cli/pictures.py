"""`run` on pictures: classes or boxes as lines, as JSON, or drawn."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compiler.cli.common import notices
from compiler.errors import InputError, OptionError, OutputError, one_line

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from compiler.runtime import Runner
    from compiler.runtime.inputs import Arrays
    from compiler.runtime.vision import Prediction, Vision

# Values of an output that are shown where it is not known what they mean.
_TOP = 5
_DIGITS = re.compile(r"(\d+)")


@dataclass(frozen=True)
class Shown:
    """What is wanted of pictures besides lines on standard output.

    least    scores that count; None: the task's default
    as_json  one JSON object for each picture instead of lines
    save     where pictures are drawn: a file, or a folder for the pictures of a folder
    """

    least: float | None = None
    as_json: bool = False
    save: Path | None = None


def pictures_at(path: Path) -> list[Path]:
    """The picture, or those of a folder in the order of the numbers in their names. Raises
    InputError."""
    from compiler.runtime.pictures import SUFFIXES, in_folder

    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if path.is_file():
        if path.suffix in (".npz", ".npy"):
            raise InputError(f"{path}: holds arrays: give it with --input, and --output FILE.npz")
        return [path]
    if not path.is_dir():
        raise InputError(f"{path}: neither a file nor a folder")
    files = in_folder(path)
    if not files:
        known = ", ".join(sorted(SUFFIXES))
        raise InputError(f"{path}: holds no pictures ({known})")
    return sorted(files, key=_natural)


def _natural(path: Path) -> tuple[list[tuple[int, str]], str]:
    """frame2 comes before frame10."""
    parts = []
    for part in _DIGITS.split(path.name):
        # A superscript is a digit to Python and no number.
        number = int(part) if part.isascii() and part.isdigit() else -1
        parts.append((number, part if number < 0 else ""))
    return parts, path.name


def check_save(save: Path, source: Path) -> None:
    """Whether pictures of `source` can be drawn at `save`. Raises OutputError."""
    from compiler.runtime.drawing import FORMATS

    if not source.is_dir():
        if save.suffix.lower() not in FORMATS or save.is_dir():
            known = ", ".join(FORMATS)
            raise OutputError(f"{save}: name a file that ends in one of {known}")
    elif save.exists() and not save.is_dir():
        raise OutputError(f"{save}: is a file: name a folder for the pictures of {source}")
    elif save.is_dir() and save.samefile(source):
        raise OutputError(f"{save}: is what this command reads: name another folder")


def vision_of(runner: Runner, shown: Shown) -> Vision:
    """How the bundle takes pictures. Raises InputError where it does not say, OptionError where
    nothing can be drawn."""
    from compiler.runtime.vision import VisionError

    try:
        vision = runner.vision
    except VisionError as error:
        raise InputError(f"{runner.bundle.path}: {error}") from error
    if vision.task is None:
        if shown.save is not None:
            raise OptionError(
                "nothing can be drawn: the bundle does not say what its outputs mean", "save"
            )
        notices(
            [
                "the bundle does not say what its outputs mean: here are their largest values; "
                "--output FILE.npz writes all"
            ]
        )
    return vision


def results(
    runner: Runner, files: Sequence[Path], source: Path, shown: Shown, broken: list[Path]
) -> Iterator[Mapping[str, np.ndarray]]:
    """Run the pictures of `source`, tell what is seen in each, and give its outputs.

    Those of a folder that cannot be read are told, left out and put into `broken`. Raises
    InputError, OptionError.
    """
    from compiler.runtime.vision import VisionError

    vision = vision_of(runner, shown)
    destination = _destination(source, shown.save)
    read: deque[Path] = deque()
    images = _opened(files, read, broken if source.is_dir() else None)
    for prepared, outputs in vision.looks(images, runner.stream):
        file = read.popleft()
        if vision.task is None:
            _tell_values(file, prepared.size, outputs, shown)
        else:
            try:
                found = vision.read(outputs, prepared, shown.least)
            except VisionError as error:
                raise InputError(f"{runner.bundle.path}: {error}") from error
            _tell(file, vision.task, prepared.size, found, shown)
            if destination is not None:
                _draw(file, found, destination(file))
        yield outputs


def _destination(source: Path, save: Path | None) -> Callable[[Path], Path] | None:
    """Where a picture is drawn, if at all. Makes the folder for the pictures of a folder."""
    from compiler import files

    if save is None:
        return None
    if not source.is_dir():
        return lambda picture: save
    with files.writing(save):
        save.mkdir(parents=True, exist_ok=True)
    return lambda picture: save / picture.name


def _opened(files: Sequence[Path], read: deque[Path], broken: list[Path] | None) -> Iterator[Image]:
    """The pictures, whose files are put into `read`; those that cannot be read into `broken`."""
    for file in files:
        try:
            image = _opened_one(file)
        except InputError as error:
            if broken is None:
                raise
            broken.append(file)
            notices([f"left out: {error}"])
            continue
        read.append(file)
        yield image


def _opened_one(file: Path) -> Image:
    from compiler.runtime.pictures import PictureError, read

    try:
        return read(file)
    except PictureError as error:
        raise InputError(f"{file}: {error}") from error


def _tell(
    file: Path, task: str, size: tuple[int, int], found: Sequence[Prediction], shown: Shown
) -> None:
    """Say what is seen in a picture on standard output."""
    from compiler.runtime.vision import as_json

    if shown.as_json:
        print(json.dumps({"file": str(file), **as_json(task, size, found)}), flush=True)
        return
    height, width = size
    count = "1 object" if len(found) == 1 else f"{len(found)} objects"
    what = f", {count}" if task == "detect" else ""
    _line(f"{file}: {width} x {height} pixels{what}")
    for prediction in found:
        where = ""
        if prediction.box is not None:
            left, top, right, bottom = (round(side) for side in prediction.box)
            where = f"  from ({left}, {top}) to ({right}, {bottom})"
        _line(f"  {prediction.score:.2f}  {prediction.label}{where}")


def _tell_values(file: Path, size: tuple[int, int], outputs: Arrays, shown: Shown) -> None:
    """Say the largest values of outputs of which the meaning is not known."""
    import numpy as np

    height, width = size
    shapes = {name: list(array.shape) for name, array in outputs.items()}
    if shown.as_json:
        entry = {"file": str(file), "task": None, "width": width, "height": height}
        print(json.dumps({**entry, "outputs": shapes}), flush=True)
        return
    _line(f"{file}: {width} x {height} pixels")
    for name, array in outputs.items():
        flat = array.reshape(-1)
        largest = np.argsort(-flat.astype(np.float64), kind="stable")[:_TOP]
        values = []
        for index in largest:
            place = [int(axis) for axis in np.unravel_index(index, array.shape)]
            values.append(f"{flat[index]:.4g} at {place}")
        _line(f"  {name} {shapes[name]} {array.dtype}: {', '.join(values)}")


def _line(text: str) -> None:
    # A console would write over the progress bars, which make way for `print`.
    print(one_line(text), flush=True)


def _draw(file: Path, found: Sequence[Prediction], destination: Path) -> None:
    from compiler import files
    from compiler.runtime import drawing

    # Read once more: the pictures of all that are on their way would fill the memory.
    image = drawing.drawn(_opened_one(file), found)
    with files.output(destination, [file]) as target:
        drawing.save(image, target, destination)
