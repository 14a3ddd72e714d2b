"""TFLite's standard metadata: what a file says of its inputs, outputs and labels.

The tables are those of tflite-support's metadata_schema.fbs (file identifier M001); a table is
given here as its fields by number. Files such as labels lie in a zip archive behind the model.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from compiler.runtime.manifest import PictureEntry, TensorEntry

LABELS = "labels.txt"
_BUFFER = "TFLITE_METADATA"
_IDENTIFIER = b"M001"
_MODEL_IDENTIFIER = b"TFL3"
# Numbers of the schema: AssociatedFileType.TENSOR_AXIS_LABELS, ContentProperties.ImageProperties,
# ProcessUnitOptions.NormalizationOptions and ColorSpaceType.
_AXIS_LABELS = 2
_IMAGE = 2
_NORMALIZATION = 1
_RGB = 1
_GREY = 2
# A fixed date, so that the same export has the same bytes.
_DATE = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Byte:
    """A field of one byte: an enumeration or the kind of a union."""

    value: int


@dataclass(frozen=True)
class Table:
    """Fields of a flatbuffer table by number: text, bytes, unsigned integers, tables, and lists of
    floats or of tables."""

    fields: Mapping[int, Any]


@dataclass(frozen=True)
class Description:
    """What is told of a file: its `inputs` and `outputs`, the `picture` that its first input takes
    if it does, and the `labels` of the last axis of the output `labelled`."""

    name: str
    inputs: Sequence[TensorEntry]
    outputs: Sequence[TensorEntry]
    picture: PictureEntry | None = None
    labels: Sequence[str] = ()
    labelled: str | None = None


def with_metadata(model: bytes, told: Description) -> bytes:
    """A TFLite file with metadata, and its labels behind it."""
    inputs = [_input(tensor, told.picture) for tensor in told.inputs]
    outputs = [_output(tensor, tensor["name"] == told.labelled) for tensor in told.outputs]
    subgraph = Table({2: inputs, 3: outputs})
    root = Table({0: told.name, 3: [subgraph], 7: "1.0.0"})
    builder = flatbuffers.Builder(1024)
    builder.Finish(_written(builder, root), _IDENTIFIER)
    found = _with_buffer(model, bytes(builder.Output()))
    if told.labelled is None:
        return found
    file = io.BytesIO(found)
    with zipfile.ZipFile(file, "a") as archive:
        entry = zipfile.ZipInfo(LABELS, _DATE)
        archive.writestr(entry, "".join(f"{label}\n" for label in told.labels))
    return file.getvalue()


def _input(tensor: TensorEntry, picture: PictureEntry | None) -> Table:
    fields: dict[int, Any] = {0: tensor["name"]}
    if picture is not None:
        height, width = picture["size"]
        colours = _GREY if picture["colours"] == "L" else _RGB
        size = Table({0: width, 1: height})
        fields[1] = f"a picture, {picture['colours']}"
        fields[3] = Table({0: Byte(_IMAGE), 1: Table({0: Byte(colours), 1: size})})
        if "scale" in tensor:
            # What a pixel is in the real numbers that the quantization stands for. int8 holds
            # pixels less 128.
            least = 128 if tensor["dtype"] == "int8" else 0
            mean = float(tensor["zero_point"] + least)
            scaling = Table({0: [mean], 1: [1 / tensor["scale"]]})
            fields[4] = [Table({0: Byte(_NORMALIZATION), 1: scaling})]
    return Table(fields)


def _output(tensor: TensorEntry, is_labelled: bool) -> Table:
    fields: dict[int, Any] = {0: tensor["name"]}
    if is_labelled:
        fields[6] = [Table({0: LABELS, 2: Byte(_AXIS_LABELS)})]
    return Table(fields)


def _with_buffer(model: bytes, metadata: bytes) -> bytes:
    """The TFLite file with one more buffer, entered as its metadata."""
    found = schema.ModelT.InitFromObj(schema.Model.GetRootAs(model, 0))
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(metadata, np.uint8)
    found.buffers.append(buffer)
    entry = schema.MetadataT()
    entry.name = _BUFFER
    entry.buffer = len(found.buffers) - 1
    found.metadata = [*(found.metadata or []), entry]
    builder = flatbuffers.Builder(len(model) + len(metadata) + 1024)
    builder.Finish(found.Pack(builder), _MODEL_IDENTIFIER)
    return bytes(builder.Output())


def _written(builder: flatbuffers.Builder, table: Table) -> int:
    """The offset of a table; what it holds is written first, as flatbuffers asks."""
    offsets = {}
    for number, value in table.fields.items():
        if not isinstance(value, Byte | int):
            offsets[number] = _offset(builder, value)
    builder.StartObject(max(table.fields) + 1)
    for number, value in table.fields.items():
        if isinstance(value, Byte):
            builder.PrependUint8Slot(number, value.value, 0)
        elif isinstance(value, int):
            builder.PrependUint32Slot(number, value, 0)
        else:
            builder.PrependUOffsetTRelativeSlot(number, offsets[number], 0)
    return int(builder.EndObject())


def _offset(builder: flatbuffers.Builder, value: Any) -> int:
    if isinstance(value, str):
        return int(builder.CreateString(value))
    if isinstance(value, Table):
        return _written(builder, value)
    if all(isinstance(entry, float) for entry in value):
        return int(builder.CreateNumpyVector(np.array(value, np.float32)))
    entries = [_written(builder, entry) for entry in value]
    builder.StartVector(4, len(entries), 4)
    for entry in reversed(entries):
        builder.PrependUOffsetTRelative(entry)
    return int(builder.EndVector())
