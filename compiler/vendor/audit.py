"""Compares what a compiled file holds with the plain file that it should be made of.

Weights, biases, effective scales and zero points of each layer are looked for, byte for byte, in
the parameters of the compiled file. So are the scales of what goes in and out, and the constants of
operators that were left on the CPU. Instructions are not read: a number that stands only there
cannot be compared, such as the scales between layers whose weights have one scale.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from compiler.device.tflite_file import file_bytes, tflite_file, unpacked
from compiler.errors import ModelError
from compiler.vendor import constants, darwinn
from compiler.vendor.constants import Graph, Layer, text
from compiler.vendor.darwinn import StoredPackage
from compiler.vendor.differences import Comparison
from compiler.vendor.parameters import Parameters, Pool, all_vectors, front, layouts, usual_vectors

Status = Literal["equal", "differs", "not judged"]

_ALIGNMENT = 16  # bytes; a layer begins at a multiple
_NEAR = 0.5  # share of weights that may differ in what is still taken for the same layer
_TOLD = 3  # complaints of one kind that are spelled out

# Operators that brought no parameters of their own in any public pair. Others, such as SOFTMAX or
# MUL of two activations, may bring tables whose content is not known.
_WITHOUT_TABLES = {
    "ADD",
    "AVERAGE_POOL_2D",
    "CONV_2D",
    "DEPTHWISE_CONV_2D",
    "FULLY_CONNECTED",
    "MAX_POOL_2D",
    "MEAN",
    "PAD",
    "RESHAPE",
    "RESIZE_BILINEAR",
    "SUB",
}


@dataclass(frozen=True)
class Verdict:
    """Whether a layer of the plain file is in the compiled one: `index` is its place in the plain
    file, `name` that of its output, `detail` where it is, what differs or why it is not judged."""

    index: int
    operator: str
    name: str
    status: Status
    detail: str


@dataclass(frozen=True)
class Audit:
    """What a comparison found.

    layers:     the operators with constants, in the order of the plain file
    complaints: what differs beside them
    unread:     bytes of parameters that are tables of other operators, which are not read
    """

    layers: tuple[Verdict, ...]
    complaints: tuple[str, ...]
    unread: int

    @property
    def status(self) -> Status:
        """ "equal" only where every layer was found."""
        found = {layer.status for layer in self.layers}
        if self.complaints or "differs" in found:
            return "differs"
        return "not judged" if "not judged" in found else "equal"

    @property
    def first_difference(self) -> str:
        """The first layer that differs, else the first complaint; empty where there is none."""
        differing = self.of("differs")
        if not differing:
            return next(iter(self.complaints), "")
        layer = differing[0]
        text = f"{layer.operator} {layer.name!r} (operator {layer.index}): {layer.detail}"
        more = len(differing) - 1
        return f"{text}; and {more} more layers" if more else text

    def of(self, status: Status) -> list[Verdict]:
        return [layer for layer in self.layers if layer.status == status]


def audit(compiled: Path, plain: Path) -> Audit:
    """Compare a compiled file with a plain one. Raises ModelError for what is neither."""
    with tflite_file(plain, "a TFLite model"):
        source = Graph.of(unpacked(file_bytes(plain)))
        layers = list(constants.layers(source))
    if any(name == darwinn.CUSTOM for name, _ in source.operators):
        raise ModelError(f"{plain}: is compiled itself: give the plain file that went in")
    with tflite_file(compiled, "a compiled TFLite model"):
        made = Graph.of(unpacked(file_bytes(compiled)))
        options = [bytes(o.customOptions) for name, o in made.operators if name == darwinn.CUSTOM]
        packages = [darwinn.stored(package) for package in options]
    if not packages:
        raise darwinn.not_compiled(compiled)
    return _compare(source, layers, made, packages)


def _compare(
    source: Graph, layers: Sequence[Layer], made: Graph, packages: Sequence[StoredPackage]
) -> Audit:
    on_cpu = {text(made.outputs(o)[0].name): o for n, o in made.operators if n != darwinn.CUSTOM}
    mapped = [layer for layer in layers if layer.name not in on_cpu]
    blobs = [blob for package in packages for blob in package.parameters]
    stored = _Stored(blobs, packages[0].min_runtime)
    verdicts = _judge(mapped, stored)
    verdicts += _judge_on_cpu(source, layers, made, on_cpu)
    complaints = [*_tensors(source, made), *_numerics(source, packages)]
    unread = stored.unread()
    owners = _owners(source, mapped, on_cpu)
    is_found = all(verdict.status == "equal" for verdict in verdicts)
    if unread and not owners and is_found:
        complaints.append(f"{unread} bytes of its parameters are of no layer of the plain file")
    verdicts.sort(key=lambda verdict: verdict.index)
    return Audit(tuple(verdicts), tuple(complaints), unread if owners else 0)


class _Stored:
    """The parameters of a compiled file, and which of them no layer has claimed yet."""

    def __init__(self, blobs: Sequence[bytes], min_runtime: int) -> None:
        self.blobs = blobs
        self.min_runtime = min_runtime
        # (blob, first byte, end)
        self.free = [(index, 0, len(blob)) for index, blob in enumerate(blobs)]

    def find(self, needle: bytes) -> tuple[int, int] | None:
        """(blob, position) of bytes that no layer has claimed."""
        if not needle:
            return 0, 0
        for blob, start, end in self.free:
            place = self.blobs[blob].find(needle, start, end)
            while place > 0 and place % _ALIGNMENT:
                place = self.blobs[blob].find(needle, place + 1, end)
            if place >= 0:
                return blob, place
        return None

    def claim(self, blob: int, start: int, end: int) -> None:
        free = []
        for other, first, last in self.free:
            if other != blob or last <= start or end <= first:
                free.append((other, first, last))
                continue
            if first < start:
                free.append((other, first, start))
            if end < last:
                free.append((other, end, last))
        self.free = free

    def room(self, size: int) -> Iterator[tuple[int, int]]:
        """(blob, position) where unclaimed bytes begin that have room for `size`."""
        for blob, start, end in self.free:
            place = -(-start // _ALIGNMENT) * _ALIGNMENT
            if place + size <= end:
                yield blob, place

    def bytes(self, blob: int, start: int, size: int) -> np.ndarray:
        return np.frombuffer(self.blobs[blob], np.uint8, size, start)

    def unread(self) -> int:
        """How many bytes that are not zero no layer has claimed."""
        count = 0
        for blob, start, end in self.free:
            count += int(np.count_nonzero(self.bytes(blob, start, end - start)))
        return count


def _judge(layers: Sequence[Layer], stored: _Stored) -> list[Verdict]:
    """Look for the parameters of mapped layers."""
    verdicts = []
    missing = []
    # Large layers first, as the bytes of a small one may also occur within a larger one.
    for layer in sorted(layers, key=_size, reverse=True):
        if layer.parameters is None:
            verdicts.append(_verdict(layer, "not judged", layer.reason))
        elif _is_found(layer.parameters, stored):
            verdicts.append(_verdict(layer, "equal", "on the Edge TPU"))
        elif layer.behind is not None and _is_found(layer.behind, stored):
            verdicts.append(
                _verdict(layer, "equal", "on the Edge TPU, with the QUANTIZE behind it")
            )
        else:
            missing.append(layer)
    for layer in sorted(missing, key=lambda layer: layer.index):
        verdicts.append(_explain(layer, stored))
    return verdicts


def _size(layer: Layer) -> int:
    return 0 if layer.parameters is None else layer.parameters.weights.size


def _is_found(parameters: Parameters, stored: _Stored) -> bool:
    """Whether a layer's parameters are there, which it then claims."""
    pool = Pool(parameters)
    vectors = usual_vectors(parameters, stored.min_runtime)
    for layout in layouts(parameters, pool, [vectors]):
        start = pool.bytes[layout[: front(parameters, vectors)]]
        if stored.find(start.tobytes()) is None:
            return False  # whatever stands behind
        place = stored.find(pool.bytes[layout].tobytes())
        if place is not None:
            stored.claim(*place, place[1] + len(layout))
            return True
    return False


def _is_held(parameters: Parameters, stored: _Stored) -> bool:
    """Whether the parameters are there, though another layer has claimed them."""
    everything = _Stored(stored.blobs, stored.min_runtime)
    return _is_found(parameters, everything)


def _explain(layer: Layer, stored: _Stored) -> Verdict:
    """What differs of a layer, where something like it is stored."""
    assert layer.parameters is not None
    pool = Pool(layer.parameters)
    best = _NEAR, 0
    found = None
    vectors = all_vectors(layer.parameters)
    for layout in layouts(layer.parameters, pool, vectors, even=True):
        for blob, place in stored.room(len(layout)):
            content = stored.bytes(blob, place, len(layout))
            comparison = Comparison(layer, pool, layout, content)
            if comparison.distance < best:
                best = comparison.distance
                found = blob, place, comparison
    if found is not None:
        blob, place, comparison = found
        stored.claim(blob, place, place + len(comparison.layout))
        return _verdict(layer, "differs", comparison.describe())
    if _is_held(layer.parameters, stored):
        return _verdict(layer, "equal", "on the Edge TPU, stored once for several layers")
    if layer.parameters.kind in ("channels", "elements"):
        # How these are stored was seen in few files only.
        return _verdict(layer, "not judged", "its constants were not found")
    return _verdict(layer, "differs", "its weights are nowhere in the compiled file")


def _verdict(layer: Layer, status: Status, detail: str) -> Verdict:
    return Verdict(layer.index, layer.operator, layer.name, status, detail)


def _judge_on_cpu(
    source: Graph, layers: Sequence[Layer], made: Graph, on_cpu: dict[str, Any]
) -> list[Verdict]:
    """Compare the constants of operators that were left on the CPU, which are in the file as they
    were."""
    verdicts = []
    for layer in layers:
        if layer.name not in on_cpu:
            continue
        _, operator = source.operators[layer.index]
        own = [source.constant(tensor) for tensor in source.inputs(operator)]
        others = [made.constant(tensor) for tensor in made.inputs(on_cpu[layer.name])]
        is_equal = len(own) == len(others) and all(map(_same, own, others))
        if is_equal:
            verdicts.append(_verdict(layer, "equal", "left on the CPU"))
        else:
            verdicts.append(_verdict(layer, "differs", "left on the CPU with other constants"))
    return verdicts


def _same(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    if one is None or other is None:
        return one is other
    return np.array_equal(one, other)


def _tensors(source: Graph, made: Graph) -> list[str]:
    """Tensors of the compiled file that the plain one does not have, or has otherwise."""
    known: dict[str, list[Any]] = {}
    for tensor in source.tensors:
        known.setdefault(text(tensor.name), []).append(_kind(tensor))
    unknown = []
    complaints = []
    for tensor in made.tensors:
        name = text(tensor.name)
        if name not in known:
            unknown.append(f"it has a tensor {name!r}, which the plain file has not")
        elif _kind(tensor) not in known[name]:
            was = known[name][0]
            complaints.append(f"tensor {name!r} is {_spell(_kind(tensor))}, not {_spell(was)}")
    return _first(unknown, "such tensors") + _first(complaints, "tensors")


def _kind(tensor: Any) -> tuple[Any, ...]:
    """Type, shape, scales and zero points of a tensor."""
    shape = () if tensor.shape is None else tuple(int(size) for size in tensor.shape)
    quantization = tensor.quantization
    if quantization is None or quantization.scale is None:
        return tensor.type, shape, (), ()
    scales = tuple(float(scale) for scale in quantization.scale)
    return tensor.type, shape, scales, tuple(int(zero) for zero in quantization.zeroPoint)


def _spell(kind: tuple[Any, ...]) -> str:
    dtype, shape, scales, zero_points = kind
    names = {value: name.lower() for name, value in vars(schema.TensorType).items()}
    sizes = "x".join(map(str, shape))
    words = f"{names[dtype]} {sizes}"
    if len(scales) == 1:
        words += f" of scale {scales[0]:.6g} and zero point {zero_points[0]}"
    return words


def _numerics(source: Graph, packages: Sequence[StoredPackage]) -> list[str]:
    """Scales and zero points that the executables give to tensors otherwise than the plain file."""
    quantized = {}
    for tensor in source.tensors:
        raised = {schema.TensorType.INT8: 128, schema.TensorType.UINT8: 0}.get(tensor.type)
        _, _, scales, zero_points = _kind(tensor)
        if raised is not None and len(scales) == 1:
            quantized[text(tensor.name)] = scales[0], zero_points[0] + raised
    complaints = []
    for package in packages:
        for name, numbers in package.numerics.items():
            if name in quantized and numbers != quantized[name]:
                scale, zero_point = numbers
                own_scale, own_zero_point = quantized[name]
                complaints.append(
                    f"the executable has {name!r} at scale {scale:.6g} and zero point {zero_point} "
                    f"of uint8, the plain file at {own_scale:.6g} and {own_zero_point}"
                )
    return _first(complaints, "tensors of executables")


def _first(complaints: Sequence[str], what: str) -> list[str]:
    more = len(complaints) - _TOLD
    return [*complaints[:_TOLD], *([f"and so {more} more {what}"] if more > 0 else [])]


def _owners(source: Graph, mapped: Sequence[Layer], on_cpu: Iterable[str]) -> bool:
    """Whether there are operators on the Edge TPU that may own bytes that no layer claimed."""
    if any(layer.parameters is None for layer in mapped):
        return True
    cpu = set(on_cpu)
    for name, operator in source.operators:
        if name not in _WITHOUT_TABLES and text(source.outputs(operator)[0].name) not in cpu:
            return True
    return False
