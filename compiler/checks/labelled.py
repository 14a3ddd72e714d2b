"""A folder of pictures with what is in them: class by class, or with YOLO's .txt files.

classes   FOLDER/NAME/*.jpg, a sub-folder for each class
objects   FOLDER/*.jpg, beside each a .txt with a line `class x_centre y_centre width height` for
          each object, in shares of the upright picture; a picture without one shows none
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compiler.errors import OptionError
from compiler.runtime.pictures import SUFFIXES, in_folder

OPTION = "labelled"
_MOST_LABEL_BYTES = 1 << 20
_CLOSEST = 3
# How far beyond the picture rounded shares may lie.
_ROUNDING = 1e-3
_LINE = "class x_centre y_centre width height"


@dataclass(frozen=True)
class Labelled:
    """A picture with the `classes` [n] that are in it; of objects also `boxes` [n, 4], which are
    left, top, right, bottom in shares of the upright picture."""

    path: Path
    classes: np.ndarray
    boxes: np.ndarray | None = None


def require_folder(folder: Path) -> None:
    """Raises OptionError where there is no such folder."""
    if not folder.is_dir():
        raise OptionError(f"{folder}: no such folder", OPTION)


def of_classes(folder: Path, labels: Sequence[str], count: int) -> list[Labelled]:
    """The pictures of a folder with a sub-folder for each of `count` classes, called by its name,
    or by its number where it has no name of its own.

    Raises OptionError for a name that no class has.
    """
    numbers = _numbers(labels, count)
    found: list[Labelled] = []
    for own in sorted(path for path in folder.iterdir() if path.is_dir()):
        pictures = in_folder(own)
        if not pictures:
            continue
        number = numbers.get(own.name)
        if number is None:
            raise OptionError(f"{own}: {_unknown(own.name, numbers)}", OPTION)
        found += [Labelled(picture, np.array([number])) for picture in pictures]
    if not found:
        hint = "" if not in_folder(folder) else ", only pictures of no class"
        raise OptionError(
            f"{folder}: holds no sub-folders of pictures{hint}: a classifier needs one for each "
            "class, called as the class is",
            OPTION,
        )
    return found


def of_objects(folder: Path, count: int | None) -> list[Labelled]:
    """The pictures of a folder with the objects in their label files, of `count` classes.

    Raises OptionError for label files that do not read as such, and where nothing is labelled.
    """
    pictures = in_folder(folder)
    if not pictures:
        raise OptionError(f"{folder}: holds no pictures ({', '.join(sorted(SUFFIXES))})", OPTION)
    found = [_with_objects(picture, count) for picture in pictures]
    if not any(len(picture.classes) for picture in found):
        raise OptionError(
            f"{folder}: no picture has a .txt beside it with an object in it: a detector needs "
            f"{pictures[0].with_suffix('.txt').name} with lines '{_LINE}'",
            OPTION,
        )
    return found


def _numbers(labels: Sequence[str], count: int) -> dict[str, int]:
    """The number of each class by what its folder may be called."""
    names = {name: number for number, name in enumerate(labels[:count]) if name}
    # ImageNet has two kinds of crane; a name of two classes is none.
    own = {name: number for name, number in names.items() if list(labels).count(name) == 1}
    numerals = {str(number): number for number in range(count)}
    unnamed = {text: n for text, n in numerals.items() if n not in own.values()}
    return {**unnamed, **own}


def _unknown(name: str, numbers: Mapping[str, int]) -> str:
    close = difflib.get_close_matches(name, list(numbers), _CLOSEST, cutoff=0.4)
    if close:
        return f"no class is called '{name}'; the closest are {', '.join(close)}"
    few = list(numbers)[:_CLOSEST]
    return f"no class is called '{name}'; the {len(numbers)} classes are {', '.join(few)}, ..."


def _with_objects(picture: Path, count: int | None) -> Labelled:
    file = picture.with_suffix(".txt")
    classes = []
    boxes = []
    for number, line in enumerate(_lines(file), 1):
        if not line.strip():
            continue
        try:
            index, box = _object(line, count)
        except ValueError as error:
            raise OptionError(f"{file}: line {number}: {error}", OPTION) from error
        classes.append(index)
        boxes.append(box)
    return Labelled(picture, np.array(classes, np.int64), np.array(boxes).reshape(-1, 4))


def _lines(file: Path) -> list[str]:
    """The lines of a label file; none where there is no such file."""
    if not file.exists():
        return []
    try:
        if not file.is_file() or file.stat().st_size > _MOST_LABEL_BYTES:
            raise OptionError(f"{file}: is no file of labels", OPTION)
        return file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"{file}: cannot be read as UTF-8 text", OPTION) from error


def _object(line: str, count: int | None) -> tuple[int, list[float]]:
    """Class and box of a line. Raises ValueError with what is wrong."""
    words = line.split()
    if len(words) != 5:
        raise ValueError(f"{len(words)} words: a label is '{_LINE}'")
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        raise ValueError(f"'{line.strip()}': a label is five numbers, '{_LINE}'") from None
    index, x, y, width, height = numbers
    if not all(map(math.isfinite, numbers)) or index != int(index) or index < 0:
        raise ValueError(f"class {words[0]}: classes are whole numbers from 0")
    if count is not None and index >= count:
        raise ValueError(f"class {words[0]}: the model has {count}, from 0 to {count - 1}")
    box = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    is_inside = min(box) >= -_ROUNDING and max(box) <= 1 + _ROUNDING
    if min(width, height) <= 0 or not is_inside:
        raise ValueError(
            f"'{' '.join(words[1:])}': is no box in the picture: centre and size are in shares of "
            "its width and height, from 0 to 1"
        )
    return int(index), box
