"""Runs samples through the float model and through single segments of a bundle."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from compiler.graph.reference import Reference
from compiler.partition import Program
from compiler.partition.plan import Segment
from compiler.quantize.calibrate import batches
from compiler.quantize.samples import Sample
from compiler.runtime.conversion import convert

Arrays = Mapping[str, np.ndarray]


def tpu_segments(program: Program) -> list[Segment]:
    return [segment for segment in program.plan.segments if segment.device == "tpu"]


def boundary_values(segments: Iterable[Segment]) -> dict[str, ir.Value]:
    """What segments read and write, by name; inputs of the model are left out."""
    found = {}
    for segment in segments:
        for value in [*segment.inputs, *segment.outputs]:
            if not value.is_graph_input():
                found[str(value.name)] = value
    return found


def float_tensors(
    model: ir.Model, values: Mapping[str, ir.Value], samples: Iterable[Sample]
) -> Iterator[tuple[int, Sample]]:
    """(number of a sample, some of `values` in the float model).

    onnxruntime keeps all that is asked for until a run ends, so the samples are run several times,
    for as many values at a time as fit memory.
    """
    for names in batches(values):
        with Reference(model, [values[name] for name in names]) as reference:
            for number, sample in enumerate(samples):
                yield number, reference.run(sample, names)


def outputs_in_float(segment: Mapping[str, Any], arrays: Arrays) -> Sample:
    """The outputs of a segment, an entry of the manifest, among `arrays`; int8 is dequantized."""
    found = {}
    for tensor in segment["outputs"]:
        name = tensor["name"]
        found[name] = convert(arrays[name], {**tensor, "dtype": "float32"})
    return found


class Boundaries:
    """What the float model gives between segments, kept on disk in `folder`."""

    def __init__(self, program: Program, folder: Path) -> None:
        self._values = boundary_values(tpu_segments(program))
        self._model = program.model
        self._folder = folder
        # Names of tensors may hold what names of files may not.
        self._numbers = {name: index for index, name in enumerate(self._values)}

    def save(self, samples: Sequence[Sample]) -> None:
        for number, tensors in float_tensors(self._model, self._values, samples):
            for name, array in tensors.items():
                np.save(self._path(number, name), array)

    def load(self, number: int, name: str, sample: Sample) -> np.ndarray:
        """A tensor of the float model for the sample of this number; the sample's own where it is
        an input."""
        if name not in self._numbers:
            return sample[name]
        array: np.ndarray = np.load(self._path(number, name))
        return array

    def _path(self, number: int, name: str) -> Path:
        return self._folder / f"{number}.{self._numbers[name]}.npy"
