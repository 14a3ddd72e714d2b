"""Whether the parts of a manifest fit together, which its schema cannot say."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from compiler.runtime.detections import head_of
from compiler.runtime.manifest import (
    LanguageEntry,
    Manifest,
    PictureEntry,
    ProgramEntry,
    SegmentEntry,
    TensorEntry,
    VisionEntry,
    fixed_shape,
)
from compiler.runtime.pictures import MOST_PIXELS

# Bytes of an input of a program, and of a tensor of a language model's cache.
INPUT_BYTES = 4 << 30
_INPUT_TYPES = {"bool", "float16", "float32", "float64"}
_INPUT_TYPES |= {"int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"}

Form = tuple[str, list[int | None] | None, float | None, int | None]


def complaint(manifest: Manifest) -> str | None:
    """The first thing of a manifest that does not fit the rest; None where all does."""
    return next(_complaints(manifest), None)


def _complaints(manifest: Manifest) -> Iterator[str]:
    language = manifest.get("language")
    programs: list[ProgramEntry] = [manifest]
    if language is not None:
        programs += language["programs"].values()
    for program in programs:
        yield from _inputs(program)
        yield from _order(program)
    for program in programs:
        yield from _cache(program, language is not None)
    if language is not None:
        yield from language_complaints(manifest, language)
    yield from _state(manifest)
    vision = manifest.get("vision")
    if vision is not None:
        yield from _picture(manifest, vision["picture"])
        yield from _task(manifest, vision)


def _inputs(program: ProgramEntry) -> Iterator[str]:
    """A caller gives arrays for inputs, which a hostile manifest must not make huge."""
    for tensor in program["inputs"]:
        name = tensor["name"]
        dtype = tensor["dtype"]
        shape = tensor["shape"]
        if dtype not in _INPUT_TYPES or shape is None or None in shape:
            yield f"input '{name}' is {dtype} {shape}, not numbers of a fixed shape"
        elif math.prod(fixed_shape(tensor)) * np.dtype(dtype).itemsize > INPUT_BYTES:
            yield f"input '{name}' {shape} has more than {INPUT_BYTES >> 20} MiB"


def _order(program: ProgramEntry) -> Iterator[str]:
    """Each segment reads what comes before it, and nothing is made twice: so what waits for what
    follows from the names."""
    made = {tensor["name"] for tensor in program["inputs"]}
    for number, segment in enumerate(program["segments"]):
        yield from _segment(number, segment)
        for tensor in segment["inputs"]:
            if tensor["name"] not in made:
                yield f"segment {number} reads '{tensor['name']}', which nothing before it makes"
        for tensor in segment["outputs"]:
            if tensor["name"] in made:
                yield f"segment {number} makes '{tensor['name']}', which is there already"
            made.add(tensor["name"])
    for tensor in program["outputs"]:
        if tensor["name"] not in made:
            yield f"nothing makes the output '{tensor['name']}'"


def _segment(number: int, segment: SegmentEntry) -> Iterator[str]:
    device, tpu, compiled = segment["device"], segment["tpu"], segment["compiled"]
    if segment["index"] != number:
        yield f"segment {number} has index {segment['index']}"
    if (device == "tpu") != (tpu is not None):
        yield f"segment {number} is for the {device}, but its tpu is {tpu}"
    numbers = [tpu, *segment.get("replicas", [])]
    if len(set(numbers)) < len(numbers) or (tpu is None and len(numbers) > 1):
        yield f"segment {number} has replicas that are not further Edge TPUs"
    files = {entry["path"] for entry in segment["files"]}
    if compiled is not None and compiled["path"] not in files:
        yield f"the compiled file of segment {number} is not among its files"


def _cache(program: ProgramEntry, is_language: bool) -> Iterator[str]:
    """Outputs may be written to where an input lies in host segments of language models only, and
    to an input of the same form."""
    inputs = {tensor["name"]: tensor for tensor in program["inputs"]}
    outputs = {tensor["name"]: tensor for tensor in program["outputs"]}
    for number, segment in enumerate(program["segments"]):
        pairs = segment.get("in_place", {})
        if pairs and (not is_language or segment["device"] != "host"):
            yield (
                f"segment {number} writes in place, which only host segments of language models do"
            )
        if len(set(pairs.values())) < len(pairs):
            yield f"segment {number} writes two outputs to the same place"
        # Tensors that the segment has in common with the program.
        reads = {tensor["name"] for tensor in segment["inputs"]} & inputs.keys()
        gives = {tensor["name"] for tensor in segment["outputs"]} & outputs.keys()
        for output, source in pairs.items():
            is_known = source in reads and output in gives
            if not is_known or _form(inputs[source]) != _form(outputs[output]):
                yield f"segment {number} cannot write '{output}' to where '{source}' lies"


def _state(manifest: Manifest) -> Iterator[str]:
    """A state goes from an output into an input of the same shape and type, each once."""
    inputs = {tensor["name"]: tensor for tensor in manifest["inputs"]}
    outputs = {tensor["name"]: tensor for tensor in manifest["outputs"]}
    taken: set[str] = set()
    for entry in manifest.get("state", []):
        output, name = entry["output"], entry["input"]
        if output not in outputs or name not in inputs:
            yield f"its state goes from '{output}' to '{name}', which are not output and input"
            continue
        given, wanted = outputs[output], inputs[name]
        is_known = given["shape"] is not None and None not in given["shape"]
        is_other_shape = is_known and given["shape"] != wanted["shape"]
        if given["dtype"] != wanted["dtype"] or is_other_shape:
            yield f"its state goes from '{output}' to '{name}', which is of another form"
        if name in taken:
            yield f"two states go to '{name}'"
        taken.add(name)


def _form(tensor: TensorEntry) -> Form:
    return tensor["dtype"], tensor["shape"], tensor.get("scale"), tensor.get("zero_point")


def language_complaints(program: ProgramEntry, language: LanguageEntry) -> Iterator[str]:
    """A language model needs a program for its slots, and logits for its special tokens."""
    if language["slots"] > 1 and "batch" not in language["programs"]:
        yield f"it has {language['slots']} slots and no program for them"
    shape = program["outputs"][0]["shape"]
    size = shape[-1] if shape else None
    if size is None:
        yield f"its logits have shape {shape}"
        return
    tokenizer = language["tokenizer"]
    special = [*tokenizer["ends"]]
    if tokenizer["begin"] is not None:
        special.append(tokenizer["begin"])
    if max(special, default=0) >= size:
        yield f"token {max(special)} is none of {size}"


def _picture(manifest: Manifest, picture: PictureEntry) -> Iterator[str]:
    """A picture becomes exactly what its input takes."""
    channels = 1 if picture["colours"] == "L" else 3
    height, width = picture["size"]
    wanted = (1, height, width, channels)
    if picture["layout"] == "NCHW":
        wanted = (1, channels, height, width)
    name = picture["input"]
    shapes = {tensor["name"]: fixed_shape(tensor) for tensor in manifest["inputs"]}
    if name not in shapes:
        yield f"pictures are for '{name}', which is no input"
    elif shapes[name] != wanted:
        yield f"pictures of {list(wanted)} are for '{name}' {list(shapes[name])}"
    if math.prod(picture.get("resize", [])) > MOST_PIXELS:
        yield f"pictures are resized to more than {MOST_PIXELS:,} pixels"
    for key in ("mean", "std"):
        if len(picture[key]) not in (1, channels):
            yield f"the {key} of pictures has {len(picture[key])} numbers for {channels} channels"
    if 0 in picture["std"]:
        yield "the std of pictures is 0"


def _task(manifest: Manifest, vision: VisionEntry) -> Iterator[str]:
    """What a task reads is there."""
    names: tuple[str, ...] = ()
    if vision["task"] == "classify":
        if "scores" not in vision:
            yield "a classifier has no scores"
            return
        names = (vision["scores"],)
    elif vision["task"] == "detect":
        if "head" not in vision:
            yield "a detector has no head"
            return
        height, width = vision["picture"]["size"]
        names = head_of(vision["head"], (height, width)).outputs
    outputs = {tensor["name"] for tensor in manifest["outputs"]}
    for name in names:
        if name not in outputs:
            yield f"its {vision['task']} task reads '{name}', which is no output"
