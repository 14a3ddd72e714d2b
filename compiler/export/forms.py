"""Writes a bundle in the form that other software takes, once the exported files were run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from compiler import files
from compiler.errors import OptionError, OutputError
from compiler.export import frigate, metadata, pycoral, trial
from compiler.export.chain import Chain, chain, single
from compiler.export.trial import Trial
from compiler.runtime import Bundle
from compiler.runtime.manifest import FILE_NAME as MANIFEST
from compiler.runtime.manifest import TensorEntry, VisionEntry
from compiler.validation import require_choice

Form = Literal["tflite", "frigate", "pycoral", "libcoral"]
FORMS: tuple[str, ...] = get_args(Form)
_COMPILED = "_edgetpu"


@dataclass(frozen=True)
class Export:
    """What was exported.

    form:     for whom: "tflite", "frigate", "pycoral" or "libcoral"
    folder:   where the files are
    chain:    the segments, and what stays on the host
    trial:    how the files were run
    compiled: whether they include what edgetpu_compiler made
    written:  names of the files
    notes:    what their user has to know, a sentence each
    """

    form: str
    folder: Path
    chain: Chain
    trial: Trial
    compiled: bool
    written: Sequence[str] = ()
    notes: Sequence[str] = ()


@dataclass
class _Content:
    """Files to write by name, those made by edgetpu_compiler byte for byte."""

    models: dict[str, bytes] = field(default_factory=dict)
    compiled: dict[str, bytes] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def files(self) -> dict[str, bytes]:
        encoded = {name: text.encode("utf-8") for name, text in self.texts.items()}
        return self.models | self.compiled | encoded


def export(bundle: Bundle, form: str, folder: Path, force: bool = False) -> Export:
    """Write the TPU segments of `bundle` into `folder`, as `form` takes them.

    The plain files are run on drawn inputs, pictures where the bundle takes these, and give the
    bytes that the bundle gives. Files of other names in `folder` stay; those of the same names are
    replaced with `force` only.

    Raises OptionError where the bundle does not fit the form, OutputError where files cannot be
    written, ToolchainError where an exported file gives other results.
    """
    require_choice("form", form, FORMS)
    found = chain(bundle)
    if form in ("tflite", "frigate"):
        single(found, form)
    if (folder / MANIFEST).exists():
        raise OutputError(f"{folder}: is a bundle: name another folder")
    vision = bundle.manifest.get("vision")
    content = _models(found, vision)
    with files.temporary("export") as work:
        paths = []
        for name, data in content.models.items():
            paths.append(work.path / name)
            paths[-1].write_bytes(data)
        tried = trial.run(found, paths)
    if form == "frigate":
        _add_frigate(content, found, vision, tried)
    else:
        _add_labels(content, vision)
        _note_pixels(content, found, vision, tried, form)
    if form == "pycoral":
        names = content.compiled or content.models
        content.texts[pycoral.SCRIPT] = pycoral.script(list(names), found.inputs)
    if not content.compiled:
        listed = " ".join(content.models)
        content.notes.append(
            f"not compiled for the Edge TPU: run `edgetpu_compiler {listed}` there, or `compile` "
            "on the bundle and export again"
        )
    _write(content, bundle, folder, force)
    return Export(
        form,
        folder,
        found,
        tried,
        bool(content.compiled),
        list(content.files()),
        content.notes,
    )


def _models(found: Chain, vision: VisionEntry | None) -> _Content:
    """The models of a chain: the plain ones with metadata, and the compiled ones as they are."""
    content = _Content()
    count = len(found.segments)
    stems = [found.name]
    if count > 1:
        stems = [f"{found.name}_segment_{index}_of_{count}" for index in range(count)]
    labels = _labels(vision)
    labelled = _labelled(found, vision)
    for index, path in enumerate(found.plain_files()):
        segment = found.segments[index]
        picture = vision["picture"] if vision is not None and index == 0 else None
        told = metadata.Description(
            stems[index],
            segment["inputs"],
            segment["outputs"],
            picture,
            labels,
            labelled if index == count - 1 else None,
        )
        content.models[f"{stems[index]}.tflite"] = metadata.with_metadata(path.read_bytes(), told)
    for stem, path in zip(stems, found.compiled_files() or [], strict=False):
        content.compiled[f"{stem}{_COMPILED}.tflite"] = path.read_bytes()
    return content


def _labels(vision: VisionEntry | None) -> list[str]:
    return [] if vision is None else list(vision.get("labels", []))


def _labelled(found: Chain, vision: VisionEntry | None) -> str | None:
    """The output whose last axis has a class each; None where none or several may be it."""
    count = len(_labels(vision))
    outputs: list[TensorEntry] = []
    for tensor in found.outputs:
        if count and tensor["shape"] and tensor["shape"][-1] == count:
            outputs.append(tensor)
    return outputs[0]["name"] if len(outputs) == 1 else None


def _add_frigate(content: _Content, found: Chain, vision: VisionEntry | None, tried: Trial) -> None:
    """Frigate's labels and configuration. Raises OptionError where its detector refuses."""
    reason = frigate.refusal(found, vision, tried.takes_pixels)
    if reason is not None or vision is None:
        raise OptionError(
            f"{found.bundle.path}: not a model for Frigate's Edge TPU detector: {reason}; "
            "`serve --zmq` lets Frigate use the bundle itself"
        )
    count = frigate.classes(found.outputs)
    labels = _labels(vision)
    if len(labels) != count:
        content.notes.append(
            f"the bundle has no names for its {count} classes: {frigate.LABELMAP} calls them "
            "class_0, class_1, ...: build with --labels, or edit it"
        )
        labels = [f"class_{index}" for index in range(count)]
    # Frigate's detector loads a file on the Edge TPU, so the compiled one is what it is given.
    file = f"{found.name}{_COMPILED}.tflite"
    content.texts[frigate.LABELMAP] = frigate.labelmap(labels)
    content.texts[frigate.CONFIG] = frigate.config(found, vision, file)


def _add_labels(content: _Content, vision: VisionEntry | None) -> None:
    labels = _labels(vision)
    if labels:
        content.texts[metadata.LABELS] = "".join(f"{label}\n" for label in labels)


def _note_pixels(
    content: _Content, found: Chain, vision: VisionEntry | None, tried: Trial, form: str
) -> None:
    """Say what has to go in where it is not plain pixels."""
    if vision is None:
        return
    if not tried.takes_pixels:
        content.notes.append(
            "the input is not plain pixels: build with --input uint8 for a file that takes them"
        )
    elif form in ("pycoral", "libcoral") and found.inputs[0]["dtype"] == "int8":
        content.notes.append(
            "the input is int8, pixels less 128; programs such as pycoral's classify_image.py take "
            "uint8 only: build with --input uint8"
        )


def _write(content: _Content, bundle: Bundle, folder: Path, force: bool) -> None:
    """All files, none of which replaces another unless `force` says so. Raises OutputError."""
    if folder.resolve().is_relative_to(bundle.path.resolve()):
        raise OutputError(f"{folder}: lies in the bundle: name another folder")
    written = content.files()
    if not force:
        for name in written:
            if (folder / name).exists():
                raise OutputError(f"{folder / name}: exists already; the option force replaces it")
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name, data in written.items():
        with files.output(folder / name, bundle.paths()) as file:
            file.write(data)
