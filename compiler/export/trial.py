"""Runs exported files as their reader would, and compares every byte with the bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compiler.errors import OptionError, ToolchainError
from compiler.export.chain import Chain
from compiler.runtime import Pipeline, pictures
from compiler.runtime.conversion import convert
from compiler.runtime.manifest import PictureEntry, SegmentEntry, TensorEntry, fixed_shape
from compiler.runtime.tflite_segment import interpreter_module

SAMPLES = 8
# Coarse patches, as in pictures, under noise that takes every value of a pixel.
_PATCHES = 8
_NOISE = 40

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Trial:
    """What was run: `samples` inputs, for which all bytes of the outputs were the bundle's.

    `takes_pixels`: the first file's input is the pixels of a picture, as they are for uint8, less
    128 for int8, and the files were run on these.
    """

    samples: int
    takes_pixels: bool


class Files:
    """TFLite files that are run one after the other, tensors going from one to the next by name as
    they are.

    Raises OptionError for a chain of several whose tensors do not have the names that the manifest
    gives them.
    """

    def __init__(self, chain: Chain, paths: Sequence[Path]) -> None:
        self._interpreters = [_loaded(path) for path in paths]
        if len(paths) > 1:
            for interpreter, segment in zip(self._interpreters, chain.segments, strict=True):
                _check_names(interpreter.get_input_details(), segment["inputs"], segment)
                _check_names(interpreter.get_output_details(), segment["outputs"], segment)

    def run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The outputs of the last file, for the inputs of the first."""
        first = self._interpreters[0].get_input_details()
        values = dict(zip([entry["name"] for entry in first], arrays, strict=True))
        results: dict[str, np.ndarray] = {}
        for interpreter in self._interpreters:
            for entry in interpreter.get_input_details():
                interpreter.set_tensor(entry["index"], values[entry["name"]])
            interpreter.invoke()
            results = {}
            for entry in interpreter.get_output_details():
                results[entry["name"]] = interpreter.get_tensor(entry["index"])
            values |= results
        return list(results.values())


def _check_names(
    details: Sequence[Mapping[str, Any]], tensors: Sequence[TensorEntry], segment: SegmentEntry
) -> None:
    for entry, tensor in zip(details, tensors, strict=True):
        if entry["name"] != tensor["name"]:
            file = segment["files"][0]["path"]
            raise OptionError(
                f"{file}: '{tensor['name']}' has the name '{entry['name']}' in this file, and "
                "chains find tensors by name: build it with the direct lowering"
            )


def _loaded(path: Path) -> Any:
    interpreter = interpreter_module().Interpreter(model_path=str(path), num_threads=1)
    interpreter.allocate_tensors()
    return interpreter


def run(chain: Chain, paths: Sequence[Path]) -> Trial:
    """Hold exported files to the bundle on drawn inputs. Raises ToolchainError where a byte
    differs, which would be a defect of this program."""
    pipeline = Pipeline(chain.bundle)
    exported = Files(chain, paths)
    vision = chain.bundle.manifest.get("vision")
    picture = None if vision is None else vision["picture"]
    rng = np.random.default_rng(0)
    takes_pixels = picture is not None
    for _ in range(SAMPLES):
        sample, pixels = _drawn(chain, picture, rng)
        fed, want = _by_bundle(pipeline, chain, sample)
        if pixels is None or not np.array_equal(pixels, fed[0]):
            takes_pixels = False
        _compare(exported.run(fed), want, chain)
    return Trial(SAMPLES, takes_pixels)


def _by_bundle(
    pipeline: Pipeline, chain: Chain, sample: Arrays
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """What goes into the first TPU segment in the bundle, and what comes out of the last."""
    values = pipeline.check_inputs(sample)
    fed = []
    for index, segment in enumerate(pipeline.segments):
        if segment["index"] == chain.segments[0]["index"]:
            for tensor in segment["inputs"]:
                fed.append(convert(values[tensor["name"]], tensor, None))
        values.update(pipeline.run_segment(index, values))
        if segment["index"] == chain.segments[-1]["index"]:
            break
    return fed, [values[tensor["name"]] for tensor in chain.outputs]


def _compare(got: Sequence[np.ndarray], want: Sequence[np.ndarray], chain: Chain) -> None:
    for tensor, array, expected in zip(chain.outputs, got, want, strict=True):
        if not np.array_equal(array, expected):
            raise ToolchainError(
                f"{chain.bundle.path}: the exported file gives other bytes of '{tensor['name']}' "
                f"{tensor['shape']} than the bundle: nothing was written; please report this"
            )


def _drawn(
    chain: Chain, picture: PictureEntry | None, rng: np.random.Generator
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """A random sample of the bundle's inputs; of a picture also its pixels as the first file would
    take them."""
    sample = {}
    pixels = None
    for tensor in chain.bundle.manifest["inputs"]:
        if picture is not None and tensor["name"] == picture["input"]:
            sample[tensor["name"]], pixels = _picture(tensor, picture, chain.inputs[0], rng)
        else:
            sample[tensor["name"]] = _array(tensor, rng)
    return sample, pixels if len(chain.inputs) == 1 else None


def _picture(
    tensor: TensorEntry, entry: PictureEntry, first: TensorEntry, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    from PIL import Image

    height, width = entry["size"]
    patches = rng.integers(0, 256, (_PATCHES, _PATCHES, 3)).astype(np.uint8)
    coarse = Image.fromarray(patches).resize((width, height), Image.Resampling.BICUBIC)
    noise = rng.normal(0, _NOISE, (height, width, 3))
    noisy = np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8)
    image = Image.fromarray(noisy)
    prepared = pictures.prepare(image, entry, np.dtype(tensor["dtype"]))
    zero = 128.0 if first["dtype"] == "int8" else 0.0
    raw: PictureEntry = {**entry, "layout": "NHWC", "mean": [zero], "std": [1.0]}
    plain = pictures.prepare(image, raw, np.dtype(first["dtype"]))
    return prepared.array, plain.array


def _array(tensor: TensorEntry, rng: np.random.Generator) -> np.ndarray:
    shape = fixed_shape(tensor)
    dtype = np.dtype(tensor["dtype"])
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    if dtype in (np.dtype(np.int8), np.dtype(np.uint8)):
        limits = np.iinfo(dtype)
        return rng.integers(limits.min, limits.max + 1, shape).astype(dtype)
    return np.ones(shape, dtype)
