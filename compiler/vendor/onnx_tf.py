"""Lowers segments by onnx-tf and TensorFlow's TFLiteConverter instead of our own writer, in a
sidecar environment.

onnx-tf is no longer maintained and needs versions of onnx, TensorFlow and Python that nothing else
here can have, so it lives in an environment of its own, made from a lock file with hashes. We talk
to it through files and a process.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx.version_converter
import onnx_ir as ir

from compiler import files
from compiler.errors import ToolchainError, first_line
from compiler.graph import DIALECT, array_of, shape_of, values_read
from compiler.graph.reference import Reference
from compiler.ops.activation import GELU_GATES
from compiler.partition import Program, Segment
from compiler.quant import Quant
from compiler.quantize.samples import Samples

SIDECARS = Path(__file__).parent / "sidecars"
# A Python that has onnx-tf, instead of the one that `toolchain install` makes.
VARIABLE = "CORAL_BUNDLE_ONNX_TF"
OPSET = 15  # the newest that onnx-tf 1.10 knows most operators of
TIMEOUT = 600  # seconds for one segment
SAMPLES = 64  # as many as calibrate a segment


@dataclass(frozen=True)
class ConvertedSegment:
    """A segment as onnx-tf and TensorFlow wrote it: an int8 TFLite file, and the scales that
    TensorFlow chose for its inputs and outputs, in the order of the file."""

    file: bytes
    inputs: Mapping[ir.Value, Quant]
    outputs: Mapping[ir.Value, Quant]


def home() -> Path:
    """Where `toolchain install onnx-tf` makes its environment."""
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "coral-bundle" / "onnx-tf"


def find() -> Path:
    """The Python that has onnx-tf. Raises ToolchainError."""
    python = Path(os.environ.get(VARIABLE) or home() / "bin" / "python")
    if not python.exists():
        raise ToolchainError(f"onnx-tf: {python} is not there: run `toolchain install onnx-tf`")
    return python


def install(python: str) -> Path:
    """Make the environment with `python`, which must be 3.11. Raises ToolchainError; nothing
    half-made is left."""
    version = _version(python)
    if version != "3.11":
        raise ToolchainError(f"{python}: is {version}; onnx-tf's TensorFlow 2.15 needs Python 3.11")
    place = home()
    shutil.rmtree(place, ignore_errors=True)
    pip = [str(place / "bin" / "python"), "-m", "pip"]
    locked = ["--quiet", "--no-deps", "--require-hashes", "-r", str(SIDECARS / "onnx-tf.txt")]
    for command in ([python, "-m", "venv", str(place)], [*pip, "install", *locked]):
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode:
            shutil.rmtree(place, ignore_errors=True)
            raise ToolchainError(f"{place}: cannot be made: {_first_error(ran.stderr)}")
    return place


def _version(python: str) -> str:
    """'3.11' and the like. Raises ToolchainError for what is no Python."""
    command = [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        raise ToolchainError(f"{python}: is no Python: {error}") from error


def _first_error(text: str) -> str:
    """The line of pip or venv that says why."""
    lines = text.splitlines()
    for line in lines:
        if line.startswith("ERROR"):
            return line
    return lines[0] if lines else "it does not say why"


def lower(
    program: Program, samples: Samples, progress: Callable[[str, int], Callable[[], None]]
) -> tuple[dict[int, ConvertedSegment], dict[int, str]]:
    """(TPU segments that onnx-tf converted, why it did not the others), by index. Scales are
    TensorFlow's own, of at most `SAMPLES` of the samples. Raises ToolchainError."""
    python = find()
    segments = [segment for segment in program.plan.segments if segment.device == "tpu"]
    step = progress("onnx-tf", len(segments))
    with files.temporary("onnx-tf") as folder:
        folders = {segment.index: folder.path / str(segment.index) for segment in segments}
        _write_samples(program, segments, samples, folders)

        def convert(segment: Segment) -> ConvertedSegment | str:
            try:
                return _convert(program, segment, folders[segment.index], python)
            finally:
                step()

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            results = list(pool.map(convert, segments))
    done: dict[int, ConvertedSegment] = {}
    failed: dict[int, str] = {}
    for segment, result in zip(segments, results, strict=True):
        if isinstance(result, ConvertedSegment):
            done[segment.index] = result
        else:
            failed[segment.index] = result
    return done, failed


def _write_samples(
    program: Program,
    segments: Sequence[Segment],
    samples: Samples,
    folders: Mapping[int, Path],
) -> None:
    """What each segment reads in float, under the names that it has in its file."""
    values: dict[str, ir.Value] = {}
    for segment in segments:
        values |= {str(value.name): value for value in segment.inputs}
    stacks: dict[str, list[np.ndarray]] = {name: [] for name in values}
    inner = [value for value in values.values() if not value.is_graph_input()]
    with Reference(program.model, inner) as reference:
        names = [name for name in values if name in reference.names]
        for sample in itertools.islice(samples, SAMPLES):
            found = sample | reference.run(sample, names)
            for name, stack in stacks.items():
                stack.append(found[name])
    for segment in segments:
        folders[segment.index].mkdir()
        arrays = {}
        for index, value in enumerate(segment.inputs):
            arrays[f"v{index}"] = np.stack(stacks[str(value.name)])
        np.savez(folders[segment.index] / "samples.npz", **arrays)  # type: ignore[arg-type]


def _convert(
    program: Program, segment: Segment, folder: Path, python: Path
) -> ConvertedSegment | str:
    """A segment through the sidecar, or why it does not go."""
    try:
        onnx.save(_model(program, segment), folder / "model.onnx")
    except Exception as error:  # of ONNX's converters, which fail as they please
        return f"it cannot be written in opset {OPSET}: {first_line(error)}"
    # Our own packages must not come before those of the environment.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["TF_CPP_MIN_LOG_LEVEL"] = "3"
    try:
        ran = subprocess.run(
            [str(python), str(SIDECARS / "lower.py"), str(folder)],
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            env=environment,
            cwd=folder,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no end after {TIMEOUT} s"
    if ran.returncode or not (folder / "result.json").is_file():
        lines = [line.strip() for line in ran.stderr.splitlines() if line.strip()]
        return lines[-1] if lines else f"exit code {ran.returncode}"
    result = json.loads((folder / "result.json").read_text())
    values = _names(segment)
    inputs = _scales(result["inputs"], values)
    outputs = _scales(result["outputs"], values)
    if inputs is None or outputs is None:
        return "not all of what it made is int8"
    return ConvertedSegment((folder / "model.tflite").read_bytes(), inputs, outputs)


def _scales(
    tensors: Iterable[Mapping[str, Any]], values: Mapping[str, ir.Value]
) -> dict[ir.Value, Quant] | None:
    """The scales of tensors that the sidecar reports; None where one is not int8."""
    found = {}
    for tensor in tensors:
        if tensor["dtype"] != "int8" or tensor["scale"] <= 0:
            return None
        found[values[tensor["name"]]] = Quant(tensor["scale"], tensor["zero_point"])
    return found


def _names(segment: Segment) -> dict[str, ir.Value]:
    """Names that TensorFlow takes: it refuses slashes and colons, of which exported models are
    full. The inputs come first, as v0, v1 and so on."""
    values = dict.fromkeys(segment.inputs)
    for node in segment.nodes:
        values.update(dict.fromkeys(node.outputs))
    return {f"v{index}": value for index, value in enumerate(values)}


def _model(program: Program, segment: Segment) -> onnx.ModelProto:
    """The segment in float as plain ONNX of an opset that onnx-tf knows."""
    names = {value: name for name, value in _names(segment).items()}
    graph = onnx.GraphProto(name="segment")
    for node in segment.nodes:
        for value in values_read(node):
            if value not in names:
                names[value] = f"w{len(names)}"
                constant = onnx.numpy_helper.from_array(array_of(value), names[value])
                graph.initializer.append(constant)
        graph.node.append(_node(node, names))
    graph.input.extend(_value_info(value, names) for value in segment.inputs)
    graph.output.extend(_value_info(value, names) for value in segment.outputs)
    version = program.model.graph.opset_imports[""]
    opsets = [onnx.helper.make_opsetid("", version), onnx.helper.make_opsetid(DIALECT, 1)]
    whole = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    for function in program.model.functions.values():
        whole.functions.append(ir.serde.serialize_function(function))
    # The dialect's operators are functions of ONNX's own.
    return onnx.version_converter.convert_version(onnx.inliner.inline_local_functions(whole), OPSET)


def _node(node: ir.Node, names: Mapping[ir.Value, str]) -> onnx.NodeProto:
    """A node under the names of the segment's file."""
    proto = ir.serde.serialize_node(node)
    proto.input[:] = ["" if value is None else names[value] for value in node.inputs]
    proto.output[:] = [names[value] for value in node.outputs]
    proto.name = proto.output[0]
    if node.op_type in ("FakeQuantize", "Requantize"):
        # Scales are TensorFlow's to choose here.
        return onnx.helper.make_node("Identity", proto.input[:1], proto.output)
    if node.op_type in GELU_GATES:
        # TFLite has no ERF, which the gate is made of.
        return onnx.helper.make_node("Sigmoid", proto.input, proto.output)
    return proto


def _value_info(value: ir.Value, names: Mapping[ir.Value, str]) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(names[value], onnx.TensorProto.FLOAT, shape_of(value))
