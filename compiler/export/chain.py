"""The TPU segments of a bundle as models that follow each other with nothing in between."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from compiler.errors import OptionError
from compiler.runtime import Bundle
from compiler.runtime.manifest import SegmentEntry, TensorEntry

# Characters of file names that no shell, YAML file or program stumbles over.
_UNUSUAL = re.compile(r"[^A-Za-z0-9._-]")

_LAYOUT = {"Transpose", "Reshape"}


@dataclass(frozen=True)
class Chain:
    """TPU segments in the order to run, each of which reads what the first one reads or what one
    before it gives.

    `before` and `after` are the host's segments, which are not exported: whoever runs the files
    does their work, or does without.
    """

    bundle: Bundle
    segments: Sequence[SegmentEntry]
    before: Sequence[SegmentEntry]
    after: Sequence[SegmentEntry]

    @property
    def name(self) -> str:
        """A name for files, after the source model."""
        stem = Path(self.bundle.manifest["model"]["file"]).stem
        return _UNUSUAL.sub("_", stem).lstrip(".-") or "model"

    @property
    def inputs(self) -> Sequence[TensorEntry]:
        return self.segments[0]["inputs"]

    @property
    def outputs(self) -> Sequence[TensorEntry]:
        return self.segments[-1]["outputs"]

    def plain_files(self) -> list[Path]:
        """The int8 TFLite file of each segment."""
        return [self.bundle.path / segment["files"][0]["path"] for segment in self.segments]

    def compiled_files(self) -> list[Path] | None:
        """What edgetpu_compiler made of them; None unless it took all."""
        found = []
        for segment in self.segments:
            if segment["compiled"] is None:
                return None
            found.append(self.bundle.path / segment["compiled"]["path"])
        return found


def chain(bundle: Bundle) -> Chain:
    """The chain of a bundle. Raises OptionError where its TPU segments are none: the host computes
    in between, or results leave before the end."""
    where = str(bundle.path)
    if "language" in bundle.manifest:
        raise OptionError(
            f"{where}: is a language model, which is more than its segments: use `serve`"
        )
    segments = bundle.manifest["segments"]
    on_tpu = [segment for segment in segments if segment["device"] == "tpu"]
    if not on_tpu:
        raise OptionError(f"{where}: nothing of it runs on an Edge TPU: there is nothing to export")
    after = _behind(segments)
    made_behind = _made_by(after)
    behind = {segment["index"] for segment in after}
    before = []
    for segment in segments:
        if segment["device"] == "host" and segment["index"] not in behind:
            before.append(segment)
    for segment in on_tpu:
        for name in _names(segment["inputs"]):
            if name in made_behind:
                _refuse_host_between(where, segment["index"], made_behind[name])
    found = Chain(bundle, on_tpu, before, after)
    _check_inputs(where, found)
    _check_outputs(where, found)
    return found


def single(found: Chain, form: str) -> SegmentEntry:
    """The only segment of a chain. Raises OptionError for several."""
    if len(found.segments) == 1:
        return found.segments[0]
    devices = {segment["tpu"] for segment in found.segments}
    reason = f"it is planned for {len(devices)} Edge TPUs: build it for one, or use pycoral's form"
    if len(devices) == 1:
        reason = "they were cut apart as options asked: build without cuts, or use pycoral's form"
    raise OptionError(
        f"{found.bundle.path}: has {len(found.segments)} TPU segments, {form} takes one file; "
        f"{reason}"
    )


def _behind(segments: Sequence[SegmentEntry]) -> list[SegmentEntry]:
    """The host segments that need results of an Edge TPU, directly or not."""
    found = []
    from_tpu: set[str] = set()
    for segment in segments:
        reads_tpu = not from_tpu.isdisjoint(_names(segment["inputs"]))
        if segment["device"] == "host" and reads_tpu:
            found.append(segment)
        if segment["device"] == "tpu" or reads_tpu:
            from_tpu.update(_names(segment["outputs"]))
    return found


def _made_by(segments: Iterable[SegmentEntry]) -> dict[str, SegmentEntry]:
    made = {}
    for segment in segments:
        for name in _names(segment["outputs"]):
            made[name] = segment
    return made


def _refuse_host_between(where: str, index: int, host: SegmentEntry) -> None:
    """Raises OptionError that names the first operator that the host runs between two segments."""
    operators = host["operators"]
    # Changes of the layout are there for the others.
    reasons = [entry for entry in operators if entry["operator"] not in _LAYOUT]
    first = (reasons or operators)[0]
    count = len(operators)
    rest = f" and {count - 1} more operators run" if count > 1 else " runs"
    raise OptionError(
        f"{where}: on the host {first['operator']} '{first['node']}'{rest} between TPU segments, "
        f"in front of segment {index} ({first['reason']}): end the model in front of it, or run "
        "the bundle itself, for Frigate with `serve --zmq`"
    )


def _check_inputs(where: str, found: Chain) -> None:
    """Raises OptionError for a segment that reads what neither comes in at the first one nor is
    made by one before."""
    known = set(_names(found.inputs))
    for segment in found.segments:
        for name in _names(segment["inputs"]):
            if name not in known:
                raise OptionError(
                    f"{where}: segment {segment['index']} reads '{name}', which the first segment "
                    "does not read: a chain of files takes all inputs at its first one"
                )
        known.update(_names(segment["outputs"]))


def _check_outputs(where: str, found: Chain) -> None:
    """Raises OptionError for a result that a segment before the last one gives."""
    wanted = set(_names(found.bundle.manifest["outputs"]))
    for segment in found.after:
        wanted.update(_names(segment["inputs"]))
    for segment in found.segments[:-1]:
        for name in _names(segment["outputs"]):
            if name in wanted:
                raise OptionError(
                    f"{where}: '{name}' leaves behind segment {segment['index']}, and chains give "
                    "only what their last file gives: build for fewer Edge TPUs"
                )


def _names(tensors: Iterable[TensorEntry]) -> list[str]:
    return [tensor["name"] for tensor in tensors]
