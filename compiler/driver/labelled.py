"""Accuracy on the user's labelled pictures: of the float model before passes change its graph, and
of the bundle once it is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import onnx_ir as ir

from compiler.checks import baseline, labelled
from compiler.checks.accuracy import accuracy
from compiler.checks.labelled import Labelled
from compiler.driver.options import BuildOptions
from compiler.driver.picture import class_count
from compiler.driver.stages import stage
from compiler.emit import manifest as manifests
from compiler.errors import OptionError
from compiler.importer import pixels
from compiler.progress import Progress
from compiler.runtime import Bundle, Pipeline
from compiler.runtime.manifest import AccuracyEntry, Manifest, MeasuredEntry, VisionEntry
from compiler.runtime.vision import Vision


@dataclass(frozen=True)
class FloatModel:
    """The file `path`, imported as `model`; what it gives for held-out samples, and how it takes
    pictures."""

    path: Path
    model: ir.Model
    expected: baseline.Baseline
    vision: VisionEntry | None


@dataclass(frozen=True)
class Marked:
    """Labelled pictures, how they are read, and how right the float model is about them."""

    vision: Vision
    pictures: Sequence[Labelled]
    float: AccuracyEntry

    def with_bundle(self, bundle: Bundle, progress: Progress) -> MeasuredEntry:
        """The figures of both models."""
        step = progress("measuring the bundle by labels", len(self.pictures))
        ours = accuracy(self.vision, self.pictures, Pipeline(bundle).run, step)
        return {
            "labelled": {
                "pictures": len(self.pictures),
                "labels": sum(len(picture.classes) for picture in self.pictures),
                "float": self.float,
                "bundle": ours,
            }
        }


def check(options: BuildOptions) -> None:
    """Raises OptionError where there is no such folder."""
    if options.labelled_path is not None:
        labelled.require_folder(options.labelled_path)


def mark(source: FloatModel, options: BuildOptions, progress: Progress) -> Marked | None:
    """The float model on labelled pictures; None where the user gives none.

    Raises OptionError for a folder that does not fit the model.
    """
    folder = options.labelled_path
    if folder is None:
        return None
    with stage("float model"):
        pictures = _read(folder, source.vision, source.expected.results[0])
        graph = source.model.graph
        form = pixels.of(source.model)
        inputs = [manifests.input_entry(value, form) for value in graph.inputs]
        # Reading pictures needs no more of a manifest.
        vision = Vision(cast(Manifest, {"vision": source.vision, "inputs": inputs}))
        step = progress("measuring the float model by labels", len(pictures))
        with baseline.running(source.path, source.model, source.expected.kind) as run:
            return Marked(vision, pictures, accuracy(vision, pictures, run, step))


def _read(
    folder: Path, entry: VisionEntry | None, results: Mapping[str, Any]
) -> Sequence[Labelled]:
    """The pictures in the form that the model's task asks for."""
    if entry is None or entry["task"] is None:
        raise OptionError(
            f"{folder}: what the model's outputs say was not recognised, neither classes nor "
            "boxes: calibrate on pictures like these, so that their values tell",
            labelled.OPTION,
        )
    labels = entry.get("labels", [])
    height, width = entry["picture"]["size"]
    count = class_count(entry, results, (height, width))
    if entry["task"] == "detect":
        # Where boxes do not tell how many classes there are, only names can.
        return labelled.of_objects(folder, count or len(labels) or None)
    assert count is not None
    return labelled.of_classes(folder, labels, count)
