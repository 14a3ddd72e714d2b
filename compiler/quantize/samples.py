"""Calibration samples: the user's arrays or images, or seeded random data where there are none."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from compiler.errors import CalibrationError, first_line
from compiler.graph import attribute_of, consumers_of, is_constant, key_of, shape_of
from compiler.ops import Moves, operator_of
from compiler.runtime import arrays
from compiler.runtime.arrays import ArrayError
from compiler.runtime.inputs import stacked

Sample = dict[str, np.ndarray]
Loader = Callable[[], Sample]

IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
ARRAYS = (".npz", ".npy")
# Pixels of an image, also after resizing: in Pillow 4 bytes each.
MOST_PIXELS = 64_000_000
RANDOM_SAMPLES = 8


@dataclass(frozen=True)
class ImageOptions:
    """How an image becomes an array: resized to `size` (height, width), its centre cut out to the
    input's size, scaled to [0, 1], then (x - mean) / std."""

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Samples:
    """Samples, read when they are needed. `random` tells that they are not the user's."""

    loaders: Sequence[Loader]
    random: bool = False

    def __len__(self) -> int:
        return len(self.loaders)

    def __iter__(self) -> Iterator[Sample]:
        for load_one in self.loaders:
            yield load_one()

    def split(self) -> tuple[Samples, Samples]:
        """(for calibration, held out for verification): every fourth is held out; a single one
        serves both."""
        if len(self) < 2:
            return self, self
        step = 4 if len(self) >= 4 else 2
        kept = list(self.loaders)
        held = kept[step - 1 :: step]
        del kept[step - 1 :: step]
        return Samples(kept, self.random), Samples(held, self.random)


def load(
    path: Path | None, inputs: Sequence[ir.Value], options: ImageOptions, seed: int = 0
) -> Samples:
    """Samples for the inputs of a model.

    `path` is a file of arrays, or a folder of these or of images; where it is None, the data are
    random. Raises CalibrationError with what does not fit and what would.
    """
    if path is None:
        loaders = [partial(random_sample, inputs, seed + i) for i in range(RANDOM_SAMPLES)]
        return Samples(loaders, random=True)
    if not path.exists():
        raise CalibrationError(f"{path}: no such file or folder")
    if path.is_file():
        return Samples(_from_files([path], inputs))
    if not path.is_dir():
        raise CalibrationError(f"{path}: neither a file nor a folder")
    files = sorted(file for file in path.iterdir() if file.is_file())
    saved = [file for file in files if file.suffix in ARRAYS]
    if saved:
        return Samples(_from_files(saved, inputs))
    images = [file for file in files if file.suffix.lower() in IMAGES]
    if not images:
        raise CalibrationError(f"{path}: holds no .npz, .npy or image files")
    value = _image_input(path, inputs)
    return Samples([partial(_image_sample, image, value, options) for image in images])


def _from_files(paths: Sequence[Path], inputs: Sequence[ir.Value]) -> list[Loader]:
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
        loaders += split_arrays(loaded, inputs, str(path))
    return loaders


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
    dtype = _dtype_of(value)
    what = f"{where}: array '{value.name}' {list(array.shape)} {array.dtype}"
    if array.dtype.kind != dtype.kind:
        raise CalibrationError(f"{what}: the model takes {dtype.name}")
    found = stacked(array, shape)
    if found is None:
        raise CalibrationError(
            f"{what}: the model takes {list(shape)}, or several stacked along the first axis"
        )
    with np.errstate(over="ignore"):
        found = found.astype(dtype, copy=False)
    if found.dtype.kind == "f" and not np.isfinite(found).all():
        raise CalibrationError(f"{what}: holds NaN, infinity, or what is infinite as {dtype.name}")
    return found


def _dtype_of(value: ir.Value) -> np.dtype:
    assert value.dtype is not None
    return np.dtype(value.dtype.numpy())


def _image_input(path: Path, inputs: Sequence[ir.Value]) -> ir.Value:
    if len(inputs) == 1:
        value = inputs[0]
        if len(shape_of(value)) == 4 and value.dtype == ir.DataType.FLOAT:
            return value
    raise CalibrationError(
        f"{path}: images need a model with one float image input: use .npz files"
    )


def _image_sample(path: Path, value: ir.Value, options: ImageOptions) -> Sample:
    return {str(value.name): _image(path, value, options)}


def _image(path: Path, value: ir.Value, options: ImageOptions) -> np.ndarray:
    """An image as the input takes it: [1, C, H, W], or [1, H, W, C] where that has the channels."""
    shape = shape_of(value)
    is_nhwc = shape[-1] in (1, 3) and shape[1] not in (1, 3)
    if is_nhwc:
        _, height, width, channels = shape
    else:
        _, channels, height, width = shape
    tall, wide = options.size or (height, width)
    _check_image_options(options, channels, (tall, wide), (height, width))
    if channels not in (1, 3):
        raise CalibrationError(
            f"{path}: the model takes {channels} channels, images have 1 or 3: use .npz files"
        )
    pixels = _pixels(path, tall, wide, channels)
    top = (tall - height) // 2
    left = (wide - width) // 2
    centre = pixels[top : top + height, left : left + width]
    mean = np.array(options.mean, np.float32)
    std = np.array(options.std, np.float32)
    scaled = (centre - mean) / std
    ordered = scaled if is_nhwc else scaled.transpose(2, 0, 1)
    return np.ascontiguousarray(ordered)[None].astype(np.float32)


def _check_image_options(
    options: ImageOptions, channels: int, size: tuple[int, int], inner: tuple[int, int]
) -> None:
    """Raises CalibrationError for options that do not fit an input of (height, width) `inner`."""
    tall, wide = size
    height, width = inner
    if tall < height or wide < width:
        raise CalibrationError(
            f"{tall},{wide}: smaller than the input of the model, {height},{width}", "size"
        )
    if tall * wide > MOST_PIXELS:
        raise CalibrationError(f"{tall},{wide}: more than {MOST_PIXELS:,} pixels", "size")
    if channels not in (1, 3):
        return
    for name, numbers in (("mean", options.mean), ("std", options.std)):
        if len(numbers) not in (1, channels) or not np.isfinite(numbers).all():
            given = ",".join(map(str, numbers))
            raise CalibrationError(f"{given}: give 1 or {channels} finite numbers", name)
    if 0 in options.std:
        raise CalibrationError("0: images cannot be divided by 0", "std")


def _pixels(path: Path, tall: int, wide: int, channels: int) -> np.ndarray:
    """An image [tall, wide, channels] in [0, 1]."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our limit is lower
            file = Image.open(path, formats=FORMATS)
        with file:
            if file.width * file.height > MOST_PIXELS:
                raise CalibrationError(
                    f"{path}: {file.width} x {file.height} pixels; at most {MOST_PIXELS:,} are "
                    "read: make it smaller"
                )
            coloured = file.convert("L" if channels == 1 else "RGB")
            image = coloured.resize((wide, tall), Image.Resampling.BILINEAR)
    except CalibrationError:
        raise
    except Image.DecompressionBombError as error:
        raise CalibrationError(
            f"{path}: more than {MOST_PIXELS:,} pixels are not read: make it smaller"
        ) from error
    except Exception as error:  # decoders fail in too many ways to list
        raise CalibrationError(
            f"{path}: not an image that can be read ({first_line(error)})"
        ) from error
    return np.asarray(image, np.float32).reshape(tall, wide, channels) / np.float32(255)


def random_sample(inputs: Sequence[ir.Value], seed: int) -> Sample:
    """Standard normal floats; integers within the table that they index, else ones (a mask that
    hides nothing)."""
    rng = np.random.default_rng(seed)
    return {str(value.name): _random_array(value, rng) for value in inputs}


def _random_array(value: ir.Value, rng: np.random.Generator) -> np.ndarray:
    shape = shape_of(value)
    dtype = _dtype_of(value)
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
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
