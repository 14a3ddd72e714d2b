"""Calibration samples: the user's arrays or images, or seeded random data where there are none."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from compiler.errors import CalibrationError
from compiler.graph import attribute_of, consumers_of, is_constant, key_of, shape_of
from compiler.importer.inputs import Hints
from compiler.importer.pixels import PixelInput
from compiler.ops import Moves, operator_of
from compiler.runtime import arrays, pictures
from compiler.runtime.arrays import ArrayError
from compiler.runtime.inputs import stacked
from compiler.runtime.manifest import PictureEntry
from compiler.runtime.pictures import PictureError

Sample = dict[str, np.ndarray]
Loader = Callable[[], Sample]

ARRAYS = (".npz", ".npy")
RANDOM_SAMPLES = 8


@dataclass(frozen=True)
class Form:
    """How samples become what a model takes: pictures by `picture`, arrays of its file's own input
    by `pixels`."""

    picture: PictureEntry | None = None
    pixels: PixelInput | None = None


@dataclass(frozen=True)
class Samples:
    """Samples, read when they are needed. `random` tells that they are not the user's, `starts`
    which of them begin sequences; it is empty where samples do not follow each other."""

    loaders: Sequence[Loader]
    random: bool = False
    starts: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.loaders)

    def __iter__(self) -> Iterator[Sample]:
        for load_one in self.loaders:
            yield load_one()

    def split(self) -> tuple[Samples, Samples]:
        """(for calibration, held out for verification): every fourth is held out, of sequences
        every fourth sequence; a single one serves both."""
        if self.starts:
            return self._split_sequences()
        if len(self) < 2:
            return self, self
        step = 4 if len(self) >= 4 else 2
        kept = list(self.loaders)
        held = kept[step - 1 :: step]
        del kept[step - 1 :: step]
        return Samples(kept, self.random), Samples(held, self.random)

    def _split_sequences(self) -> tuple[Samples, Samples]:
        """Whole sequences are held out; of a single one the last quarter, which goes on from the
        state that it has there."""
        ends = [*self.starts[1:], len(self)]
        parts = [self.loaders[start:end] for start, end in zip(self.starts, ends, strict=True)]
        if len(parts) == 1 and len(self) > 1:
            last = len(self) - max(1, len(self) // 4)
            parts = [self.loaders[:last], self.loaders[last:]]
        step = 4 if len(parts) >= 4 else 2
        held = parts[step - 1 :: step]
        kept = [part for index, part in enumerate(parts) if index % step != step - 1]
        return self._joined(kept), self._joined(held or kept)

    def first_sequences(self, steps: int) -> Samples:
        """As many whole sequences as have up to so many steps together, or the first steps of one
        that has more."""
        ends = [*self.starts[1:], len(self)]
        end = max((end for end in ends if end <= steps), default=min(steps, len(self)))
        starts = tuple(start for start in self.starts if start < end)
        return Samples(self.loaders[:end], self.random, starts)

    def _joined(self, parts: Sequence[Sequence[Loader]]) -> Samples:
        loaders: list[Loader] = []
        starts = []
        for part in parts:
            starts.append(len(loaders))
            loaders += part
        return Samples(loaders, self.random, tuple(starts))


def load(
    path: Path | None, inputs: Sequence[ir.Value], form: Form | None = None, seed: int = 0
) -> Samples:
    """Samples for the inputs of a model.

    `path` is a file of arrays, or a folder of these or of pictures, which need `form.picture`;
    where it is None, the data are random. Raises CalibrationError with what does not fit and what
    would.
    """
    form = form or Form()
    if path is None:
        loaders = [
            partial(random_sample, inputs, seed + i, form.pixels) for i in range(RANDOM_SAMPLES)
        ]
        return Samples(loaders, random=True)
    saved = array_files(path)
    if saved:
        return Samples(_from_files(saved, inputs, form.pixels))
    images = _files_of(path, pictures.SUFFIXES)
    if not images:
        raise CalibrationError(f"{path}: holds no .npz, .npy or image files")
    if form.picture is None:
        raise CalibrationError(
            f"{path}: pictures need a model of one input of 1 or 3 channels: use .npz files"
        )
    (value,) = inputs
    return Samples([partial(_picture_sample, image, value, form.picture) for image in images])


def holds_pictures(path: Path | None) -> bool:
    """Whether samples in `path` are pictures."""
    if path is None or not path.is_dir() or _files_of(path, ARRAYS):
        return False
    return bool(_files_of(path, pictures.SUFFIXES))


def shapes_in(path: Path | None, inputs: Sequence[ir.Value]) -> Hints:
    """The shapes that samples in `path` say of inputs: pictures that there is one at a time, arrays
    those of the first file. What cannot be read is told when the samples are."""
    if holds_pictures(path):
        return {str(value.name): (1, None, None, None) for value in inputs if _rank(value) == 4}
    try:
        files = _files_of(path, ARRAYS) if path is not None else []
        loaded = arrays.read(files[0]) if files else {}
    except (ArrayError, CalibrationError):
        return {}
    if isinstance(loaded, np.ndarray):
        loaded = {str(inputs[0].name): loaded} if len(inputs) == 1 else {}
    hints = {}
    for value in inputs:
        array = loaded.get(str(value.name))
        hint = None if array is None else _sample_shape(array, value)
        if hint is not None:
            hints[str(value.name)] = hint
    return hints


def _sample_shape(array: np.ndarray, value: ir.Value) -> tuple[int, ...] | None:
    """The shape of a sample of `value` in an array, which may hold several; None where it does not
    go with the dimensions that are fixed."""
    rank = _rank(value)
    if value.shape is None or rank is None:
        return None
    if array.ndim == rank + 1:
        found = array.shape[1:]
    elif array.ndim == rank and rank:
        found = (1, *array.shape[1:])
    else:
        return None
    known = [dim if isinstance(dim, int) and dim >= 0 else None for dim in value.shape]
    if _goes_with(found, known):
        return found
    # Pixels come with their channels last, also for a file that has them first.
    first = (found[0], found[-1], *found[1:-1])
    return first if rank == 4 and _goes_with(first, known) else None


def _rank(value: ir.Value) -> int | None:
    return None if value.shape is None else len(value.shape)


def _goes_with(shape: Sequence[int], known: Sequence[int | None]) -> bool:
    pairs = zip(shape, known, strict=True)
    return all(wanted in (None, size) for size, wanted in pairs)


def array_files(path: Path) -> list[Path]:
    """The files of arrays in `path`, or `path` itself. Raises CalibrationError where nothing is
    there."""
    return _files_of(path, ARRAYS)


def _files_of(path: Path, suffixes: Collection[str]) -> list[Path]:
    """The file `path`, or files in the folder `path`, with one of these suffixes. Raises
    CalibrationError where nothing is there."""
    if not path.exists():
        raise CalibrationError(f"{path}: no such file or folder")
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise CalibrationError(f"{path}: neither a file nor a folder")
    files = sorted(file for file in path.iterdir() if file.is_file())
    return [file for file in files if file.suffix.lower() in suffixes]


def _from_files(
    paths: Sequence[Path], inputs: Sequence[ir.Value], pixels: PixelInput | None
) -> list[Loader]:
    """The samples of files, which together hold no more bytes than one may."""
    room = arrays.largest()
    loaders: list[Loader] = []
    for path in paths:
        if path.suffix not in ARRAYS:
            raise CalibrationError(f"{path}: not an .npz or .npy file")
        try:
            loaded = arrays.read(path, room)
        except ArrayError as error:
            raise CalibrationError(f"{path}: {error}") from error
        if isinstance(loaded, np.ndarray):
            if len(inputs) != 1:
                names = ", ".join(f"'{value.name}'" for value in inputs)
                raise CalibrationError(
                    f"{path}: one array for {len(inputs)} inputs ({names}): use an .npz file"
                )
            loaded = {str(inputs[0].name): loaded}
        room -= sum(array.nbytes for array in loaded.values())
        if pixels is not None:
            _take_pixels(loaded, inputs, pixels, str(path))
        loaders += split_arrays(loaded, inputs, str(path))
    return loaders


def _take_pixels(
    arrays: Sample, inputs: Sequence[ir.Value], pixels: PixelInput, where: str
) -> None:
    """Turn arrays as the model's file takes them into the pixels that the model takes."""
    array = arrays.get(pixels.name)
    (value,) = (value for value in inputs if value.name == pixels.name)
    if array is None or array.dtype.kind != "f" or not array.size:
        return
    order = pixels.file_order(shape_of(value))
    samples = stacked(array, order)
    if samples is None:
        return
    try:
        made = [pixels.from_file(sample) for sample in samples]
    except ValueError as error:
        raise CalibrationError(f"{where}: array '{pixels.name}': {error}") from error
    arrays[pixels.name] = np.stack(made)


def split_arrays(arrays: Sample, inputs: Sequence[ir.Value], where: str) -> list[Loader]:
    """Checks arrays against a model's inputs and cuts them into samples along their first axis."""
    wanted = {str(value.name): value for value in inputs}
    for name in arrays:
        if name not in wanted:
            known = ", ".join(wanted) or "no inputs"
            raise CalibrationError(
                f"{where}: array '{name}' is no input of the model; it has {known}"
            )
    counts = {}
    for name, value in wanted.items():
        if name not in arrays:
            raise CalibrationError(f"{where}: array '{name}' is missing")
        arrays[name] = _stacked(arrays[name], value, where)
        counts[name] = len(arrays[name])
    if len(set(counts.values())) > 1:
        raise CalibrationError(f"{where}: the arrays hold different numbers of samples: {counts}")
    number = min(counts.values(), default=0)
    if not number:
        raise CalibrationError(f"{where}: holds no samples")
    return [partial(_sample_at, arrays, index) for index in range(number)]


def _sample_at(arrays: Mapping[str, np.ndarray], index: int) -> Sample:
    return {name: np.asarray(array[index]) for name, array in arrays.items()}


def _stacked(array: np.ndarray, value: ir.Value, where: str) -> np.ndarray:
    """An array as [samples, *input shape], of the input's type."""
    shape = shape_of(value)
    found = stacked(array, shape)
    if found is None:
        raise CalibrationError(
            f"{_named(array, value, where)}: the model takes {list(shape)}, or several stacked "
            "along the first axis"
        )
    return typed(found, value, where)


def typed(array: np.ndarray, value: ir.Value, where: str) -> np.ndarray:
    """An array in the type of an input. Raises CalibrationError for another kind of number, NaN and
    infinity."""
    dtype = dtype_of(value)
    what = _named(array, value, where)
    if array.dtype.kind != dtype.kind:
        raise CalibrationError(f"{what}: the model takes {dtype.name}")
    with np.errstate(over="ignore"):
        found = array.astype(dtype, copy=False)
    if found.dtype.kind == "f" and not np.isfinite(found).all():
        raise CalibrationError(f"{what}: holds NaN, infinity, or what is infinite as {dtype.name}")
    return found


def _named(array: np.ndarray, value: ir.Value, where: str) -> str:
    return f"{where}: array '{value.name}' {list(array.shape)} {array.dtype}"


def dtype_of(value: ir.Value) -> np.dtype:
    """numpy's type of an input."""
    assert value.dtype is not None
    return np.dtype(value.dtype.numpy())


def _picture_sample(path: Path, value: ir.Value, entry: PictureEntry) -> Sample:
    try:
        image = pictures.read(path)
    except PictureError as error:
        raise CalibrationError(f"{path}: {error}") from error
    return {str(value.name): pictures.prepare(image, entry, dtype_of(value)).array}


def random_sample(
    inputs: Sequence[ir.Value], seed: int, pixels: PixelInput | None = None
) -> Sample:
    """Standard normal floats; any pixels; other integers within the table that they index, else
    ones (a mask that hides nothing)."""
    rng = np.random.default_rng(seed)
    found = {str(value.name): _random_array(value, rng) for value in inputs}
    if pixels is not None and pixels.dtype != "float32":
        limits = np.iinfo(pixels.dtype)
        shape = found[pixels.name].shape
        found[pixels.name] = rng.integers(
            limits.min, limits.max, shape, pixels.dtype, endpoint=True
        )
    return found


def _random_array(value: ir.Value, rng: np.random.Generator) -> np.ndarray:
    shape = shape_of(value)
    dtype = dtype_of(value)
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    if dtype == np.uint8 and len(shape) == 4:
        return rng.integers(0, 256, shape, np.uint8)
    rows = None if dtype.kind == "b" else _table_rows(value)
    if rows:
        return rng.integers(0, rows, shape).astype(dtype)
    return np.ones(shape, dtype)


def _table_rows(value: ir.Value) -> int | None:
    """Rows of the table that a Gather looks up with this value, in whatever shape and order."""
    for node in consumers_of(value):
        is_lookup = key_of(node) == ("", "Gather") and node.inputs[1] is value
        if is_lookup and is_constant(node.inputs[0]):
            return shape_of(node.inputs[0])[int(attribute_of(node, "axis", 0))]
        if operator_of(node).moves >= Moves.ELEMENTS:
            rows = _table_rows(node.outputs[0])
            if rows:
                return rows
    return None
