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
from compiler.graph import attribute_of, consumers_of, is_constant, shape_of
from compiler.runtime import arrays
from compiler.runtime.arrays import ArrayError
from compiler.runtime.inputs import stacked

Sample = dict[str, np.ndarray]
IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
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

    loaders: Sequence[Callable[[], Sample]]
    random: bool = False

    def __len__(self) -> int:
        return len(self.loaders)

    def __iter__(self) -> Iterator[Sample]:
        return (load() for load in self.loaders)

    def split(self) -> tuple[Samples, Samples]:
        """(for calibration, held out for verification): every fourth is held out; a single one
        serves both."""
        if len(self) < 2:
            return self, self
        step = 4 if len(self) >= 4 else 2
        held = self.loaders[step - 1 :: step]
        kept = [load for i, load in enumerate(self.loaders) if i % step != step - 1]
        return Samples(kept, self.random), Samples(held, self.random)


def load(
    path: Path | None, inputs: Sequence[ir.Value], options: ImageOptions, seed: int = 0
) -> Samples:
    """Samples for the inputs of a model. Raises CalibrationError with what does not fit and what
    would."""
    if path is None:
        loaders = [partial(random_sample, inputs, seed + i) for i in range(RANDOM_SAMPLES)]
        return Samples(loaders, random=True)
    if not path.exists():
        raise CalibrationError(f"{path}: no such file or folder")
    if path.is_file():
        return Samples(_from_files([path], inputs))
    if not path.is_dir():
        raise CalibrationError(f"{path}: neither a file nor a folder")
    files = sorted(p for p in path.iterdir() if p.is_file())
    images = [p for p in files if p.suffix.lower() in IMAGES]
    saved = [p for p in files if p.suffix in (".npz", ".npy")]
    if images and not saved:
        value = _image_input(path, inputs)
        return Samples([lambda p=p: {str(value.name): _image(p, value, options)} for p in images])  # type: ignore[misc]
    if not saved:
        raise CalibrationError(f"{path}: holds no .npz, .npy or image files")
    return Samples(_from_files(saved, inputs))


def _from_files(paths: Sequence[Path], inputs: Sequence[ir.Value]) -> list[Callable[[], Sample]]:
    """The samples of files, which together hold no more than one may."""
    room, loaders = arrays.largest(), []
    for path in paths:
        if path.suffix not in (".npz", ".npy"):
            raise CalibrationError(f"{path}: not an .npz or .npy file")
        try:
            loaded = arrays.read(path, room)
        except ArrayError as error:
            raise CalibrationError(f"{path}: {error}") from error
        if isinstance(loaded, np.ndarray):
            if len(inputs) != 1:
                names = ", ".join(f"'{v.name}'" for v in inputs)
                raise CalibrationError(
                    f"{path}: one array for {len(inputs)} inputs ({names}): use an .npz file"
                )
            loaded = {str(inputs[0].name): loaded}
        room -= sum(array.nbytes for array in loaded.values())
        loaders += split_arrays(loaded, inputs, str(path))
    return loaders


def split_arrays(
    arrays: Sample, inputs: Sequence[ir.Value], where: str
) -> list[Callable[[], Sample]]:
    """Checks arrays against a model's inputs and cuts them into samples along their first axis."""
    wanted = {str(v.name): v for v in inputs}
    for name in arrays:
        if name not in wanted:
            raise CalibrationError(
                f"{where}: array '{name}' is no input of the model; it has {', '.join(wanted)}"
            )
    counts = {}
    for name, value in wanted.items():
        if name not in arrays:
            raise CalibrationError(f"{where}: array '{name}' is missing")
        arrays[name], counts[name] = _stacked(arrays[name], value, where)
    if len(set(counts.values())) > 1:
        raise CalibrationError(f"{where}: the arrays hold different numbers of samples: {counts}")
    if not arrays or not next(iter(counts.values())):
        raise CalibrationError(f"{where}: holds no samples")
    number = next(iter(counts.values()))
    return [partial(_sample_at, arrays, index) for index in range(number)]


def _sample_at(arrays: Mapping[str, np.ndarray], index: int) -> Sample:
    return {name: np.asarray(array[index]) for name, array in arrays.items()}


def _stacked(array: np.ndarray, value: ir.Value, where: str) -> tuple[np.ndarray, int]:
    """An array as [samples, *input shape], and the number of samples."""
    shape, dtype = shape_of(value), value.dtype.numpy()  # type: ignore[union-attr]
    what = f"{where}: array '{value.name}' {list(array.shape)} {array.dtype}"
    if array.dtype.kind != np.dtype(dtype).kind:
        raise CalibrationError(f"{what}: the model takes {np.dtype(dtype).name}")
    found = stacked(array, shape)
    if found is None:
        raise CalibrationError(
            f"{what}: the model takes {list(shape)}, or several stacked along the first axis"
        )
    with np.errstate(over="ignore"):
        found = found.astype(dtype, copy=False)
    if found.dtype.kind == "f" and not np.isfinite(found).all():
        raise CalibrationError(
            f"{what}: holds NaN, infinity, or what is infinite as {np.dtype(dtype).name}"
        )
    return found, len(found)


def _image_input(path: Path, inputs: Sequence[ir.Value]) -> ir.Value:
    if len(inputs) != 1 or len(shape_of(inputs[0])) != 4 or inputs[0].dtype != ir.DataType.FLOAT:
        raise CalibrationError(
            f"{path}: images need a model with one float image input: use .npz files"
        )
    return inputs[0]


def _image(path: Path, value: ir.Value, options: ImageOptions) -> np.ndarray:
    shape = shape_of(value)
    last = shape[-1] in (1, 3) and shape[1] not in (1, 3)
    channels, height, width = (shape[3], shape[1], shape[2]) if last else shape[1:]
    tall, wide = options.size or (height, width)
    if tall < height or wide < width:
        raise CalibrationError(
            f"--size {tall},{wide}: smaller than the input of the model, {height},{width}"
        )
    if tall * wide > MOST_PIXELS:
        raise CalibrationError(f"--size {tall},{wide}: more than {MOST_PIXELS:,} pixels")
    if channels not in (1, 3):
        raise CalibrationError(
            f"{path}: the model takes {channels} channels, images have 1 or 3: use .npz files"
        )
    _check_numbers(options, channels)
    pixels = _pixels(path, tall, wide, channels)
    top, left = (tall - height) // 2, (wide - width) // 2
    pixels = pixels[top : top + height, left : left + width]
    array = (pixels - np.array(options.mean, np.float32)) / np.array(options.std, np.float32)
    return np.ascontiguousarray(array if last else array.transpose(2, 0, 1))[None].astype(
        np.float32
    )


def _check_numbers(options: ImageOptions, channels: int) -> None:
    for numbers in (options.mean, options.std):
        if len(numbers) not in (1, channels) or not np.isfinite(numbers).all():
            raise CalibrationError(f"--mean and --std: give 1 or {channels} finite numbers")
    if 0 in options.std:
        raise CalibrationError("--std 0: images cannot be divided by 0")


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
                    f"{path}: {file.width} x {file.height} pixels; at most {MOST_PIXELS:,} are read: make it smaller"
                )
            image = file.convert("L" if channels == 1 else "RGB").resize(
                (wide, tall), Image.Resampling.BILINEAR
            )
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
    sample = {}
    for value in inputs:
        shape, dtype = shape_of(value), value.dtype.numpy()  # type: ignore[union-attr]
        array: np.ndarray
        if np.dtype(dtype).kind == "f":
            array = rng.standard_normal(shape)
        elif np.dtype(dtype).kind == "b":
            array = np.ones(shape)
        else:
            rows = _table_rows(value)
            array = rng.integers(0, rows, shape) if rows else np.ones(shape)
        sample[str(value.name)] = array.astype(dtype)
    return sample


def _table_rows(value: ir.Value) -> int | None:
    """Rows of the table that a Gather looks up with this value, seen through Cast and Reshape."""
    for node in consumers_of(value):
        if node.op_type == "Gather" and node.inputs[1] is value and is_constant(node.inputs[0]):
            return shape_of(node.inputs[0])[int(attribute_of(node, "axis", 0))]
        if node.op_type in ("Cast", "Reshape", "Unsqueeze", "Squeeze"):
            rows = _table_rows(node.outputs[0])
            if rows:
                return rows
    return None
