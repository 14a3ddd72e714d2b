"""Compares what a compiled file holds with the plain file that it should be made of.

Weights, biases, effective scales and zero points of each layer are looked for, byte for byte, in
the parameters of the compiled file. So are the scales of what goes in and out, and the constants of
operators that were left on the CPU. Instructions are not read: a number that stands only there
cannot be compared, such as the scales between layers whose weights have one scale.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from compiler.device.tflite_file import file_bytes, tflite_file, unpacked
from compiler.errors import ModelError
from compiler.vendor import constants, darwinn
from compiler.vendor.constants import Graph, Layer, text
from compiler.vendor.darwinn import StoredPackage
from compiler.vendor.differences import Comparison
from compiler.vendor.interface import numerics, tensors
from compiler.vendor.parameters import Parameters, Pool, all_vectors, front, layouts, usual_vectors
from compiler.vendor.stored import Stored

Status = Literal["equal", "differs", "not judged"]

_NEAR = 0.5  # share of weights that may differ in what is still taken for the same layer

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
    # Scales of broken files may be anything.
    with np.errstate(all="ignore"):
        with tflite_file(plain, "a TFLite model"):
            source = Graph.of(unpacked(file_bytes(plain)))
            layers = list(constants.layers(source))
        if any(name == darwinn.CUSTOM for name, _ in source.operators):
            raise ModelError(f"{plain}: is compiled itself: give the plain file that went in")
        with tflite_file(compiled, "a compiled TFLite model"):
            made = Graph.of(unpacked(file_bytes(compiled)))
            packages = []
            for name, operator in made.operators:
                if name == darwinn.CUSTOM:
                    packages.append(darwinn.stored(bytes(operator.customOptions)))
            if not packages:
                raise darwinn.not_compiled(compiled)
            return _compare(source, layers, made, packages)


def _compare(
    source: Graph, layers: Sequence[Layer], made: Graph, packages: Sequence[StoredPackage]
) -> Audit:
    on_cpu = {}
    for name, operator in made.operators:
        if name != darwinn.CUSTOM:
            on_cpu[text(made.outputs(operator)[0].name)] = name, operator
    mapped = [layer for layer in layers if layer.name not in on_cpu]
    blobs = [blob for package in packages for blob in package.parameters]
    stored = Stored(blobs, packages[0].min_runtime)
    verdicts = _in_order(_judge(mapped, stored), stored, source.before())
    verdicts += _judge_on_cpu(source, layers, made, on_cpu)
    complaints = [*tensors(source, made), *numerics(source, packages)]
    unread = stored.unread()
    owners = _owners(source, mapped, on_cpu)
    is_found = all(verdict.status == "equal" for verdict in verdicts)
    if unread and not owners and is_found:
        complaints.append(f"{unread} bytes of its parameters are of no layer of the plain file")
    verdicts.sort(key=lambda verdict: verdict.index)
    return Audit(tuple(verdicts), tuple(complaints), unread if owners else 0)


def _judge(layers: Sequence[Layer], stored: Stored) -> list[Verdict]:
    """Look for the parameters of mapped layers."""
    verdicts = []
    missing = []
    # Large layers first, as the bytes of a small one may also occur within a larger one.
    for layer in sorted(layers, key=_size, reverse=True):
        if layer.parameters is None:
            verdicts.append(_verdict(layer, "not judged", layer.reason))
        elif _is_found(layer, layer.parameters, stored):
            verdicts.append(_verdict(layer, "equal", "on the Edge TPU"))
        elif layer.behind is not None and _is_found(layer, layer.behind, stored):
            verdicts.append(
                _verdict(layer, "equal", "on the Edge TPU, with the QUANTIZE behind it")
            )
        else:
            missing.append(layer)
    for layer in sorted(missing, key=lambda layer: layer.index):
        verdicts.append(_explain(layer, stored))
    return verdicts


def _size(layer: Layer) -> int:
    parameters = layer.parameters
    if parameters is None:
        return 0
    return parameters.weights.size or parameters.biases.size + parameters.scales.size


def _is_found(layer: Layer, parameters: Parameters, stored: Stored) -> bool:
    """Whether a layer's parameters are there, which it then claims."""
    pool = Pool(parameters)
    vectors = usual_vectors(parameters, stored.min_runtime)
    for layout in layouts(parameters, pool, [vectors]):
        start = pool.bytes[layout[: front(parameters, vectors)]]
        if stored.find(start.tobytes()) is None:
            return False  # whatever stands behind
        needle = pool.bytes[layout]
        place = stored.find(needle.tobytes())
        if place is not None:
            stored.claim(*place, place[1] + len(layout))
            # Bytes that are all the same may stand anywhere.
            if len(np.unique(needle)) > 1:
                stored.places[layer.index] = place
            return True
    return False


def _in_order(verdicts: Sequence[Verdict], stored: Stored, before: Sequence[int]) -> list[Verdict]:
    """The verdicts, those mended whose layer stands in front of one that it depends on.

    The compiler stores a layer behind all that it depends on, so these have the parameters of
    others. `before` has the operators that each depends on, as bits.
    """
    misplaced = set()
    later = [0] * len(stored.blobs)
    for index, (blob, _) in sorted(stored.places.items(), key=_place, reverse=True):
        if before[index] & later[blob]:
            misplaced.add(index)
        later[blob] |= 1 << index
    found = []
    detail = "its parameters stand in front of those of a layer that it depends on"
    for verdict in verdicts:
        is_misplaced = verdict.index in misplaced
        found.append(replace(verdict, status="differs", detail=detail) if is_misplaced else verdict)
    return found


def _place(item: tuple[int, tuple[int, int]]) -> tuple[int, int]:
    return item[1]


def _is_held(layer: Layer, parameters: Parameters, stored: Stored) -> bool:
    """Whether a layer's parameters are there, though another one has claimed them."""
    everything = Stored(stored.blobs, stored.min_runtime)
    return _is_found(layer, parameters, everything)


def _explain(layer: Layer, stored: Stored) -> Verdict:
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
    if _is_held(layer, layer.parameters, stored):
        return _verdict(layer, "equal", "on the Edge TPU, stored once for several layers")
    if layer.parameters.kind in ("channels", "elements"):
        # How these are stored was seen in few files only.
        return _verdict(layer, "not judged", "its constants were not found")
    return _verdict(layer, "differs", "its weights are nowhere in the compiled file")


def _verdict(layer: Layer, status: Status, detail: str) -> Verdict:
    return Verdict(layer.index, layer.operator, layer.name, status, detail)


def _judge_on_cpu(
    source: Graph, layers: Sequence[Layer], made: Graph, on_cpu: dict[str, tuple[str, Any]]
) -> list[Verdict]:
    """Compare the constants of operators that were left on the CPU, which are in the file as they
    were."""
    verdicts = []
    for layer in layers:
        if layer.name not in on_cpu:
            continue
        name, other = on_cpu[layer.name]
        _, operator = source.operators[layer.index]
        own = [source.constant(tensor) for tensor in source.inputs(operator)]
        others = [made.constant(tensor) for tensor in made.inputs(other)]
        is_same = name == layer.operator and len(own) == len(others)
        if is_same and all(map(_same, own, others)):
            verdicts.append(_verdict(layer, "equal", "left on the CPU"))
        else:
            verdicts.append(_verdict(layer, "differs", "left on the CPU with other constants"))
    return verdicts


def _same(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    if one is None or other is None:
        return one is other
    return np.array_equal(one, other)


def _owners(source: Graph, mapped: Sequence[Layer], on_cpu: Iterable[str]) -> bool:
    """Whether there are operators on the Edge TPU that may own bytes that no layer claimed."""
    if any(layer.parameters is None for layer in mapped):
        return True
    cpu = set(on_cpu)
    for name, operator in source.operators:
        if name not in _WITHOUT_TABLES and text(source.outputs(operator)[0].name) not in cpu:
            return True
    return False
