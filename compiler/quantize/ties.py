"""Finds which channels of activations must have the same factor, and which can have none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compiler.graph import (
    activations_around,
    activations_of,
    consumers_of,
    grid_of,
    is_constant,
)
from compiler.ops import operator_of
from compiler.ops.common import ChannelTie, channels


@dataclass(frozen=True)
class Numbering:
    """The channels (last axis) of activations, numbered from 0 to `count`."""

    first: Mapping[ir.Value, int]
    count: int

    @property
    def values(self) -> list[ir.Value]:
        return list(self.first)

    def of(self, value: ir.Value) -> np.ndarray:
        """Numbers of the channels of an activation."""
        return self.first[value] + np.arange(channels(value))

    def around(self, node: ir.Node) -> list[ir.Value]:
        """What a node reads and makes, as often as it does, as far as it is numbered."""
        return [value for value in [*activations_of(node), *node.outputs] if value in self.first]


def number_channels(values: Iterable[ir.Value]) -> Numbering:
    first: dict[ir.Value, int] = {}
    count = 0
    for value in values:
        first[value] = count
        count += channels(value)
    return Numbering(first, count)


@dataclass(frozen=True)
class FactorClasses:
    """For each channel the lowest number among those that must have its factor, and whether that
    factor must be 1."""

    of: np.ndarray
    fixed: np.ndarray


def factor_classes(nodes: Sequence[ir.Node], numbering: Numbering) -> FactorClasses:
    """The channels around nodes that run in int8, by the factors that they can have."""
    ties = _Ties(numbering)
    inside = set(nodes)
    for value in numbering.values:
        # What others make or read has to stay as it is.
        is_made_inside = value.producer() in inside and not value.is_graph_output()
        if not is_made_inside or not inside.issuperset(consumers_of(value)):
            ties.fix(value)
    products = [node for node in nodes if _is_product(node, numbering)]
    for node in nodes:
        if not _is_product(node, numbering):
            _tie_around(node, numbering, ties)
    _settle_products(products, numbering, ties)
    classes = ties.classes()
    return FactorClasses(classes, np.isin(classes, classes[ties.fixed]))


def takes_factors(node: ir.Node) -> bool:
    """Whether a layer can have other weights: constant ones, not given as int8."""
    if not operator_of(node).is_linear:
        return False
    _, weight, bias = node.inputs
    if weight is None or not is_constant(weight) or not is_constant(bias):
        return False
    return grid_of(weight) is None


def _is_known(node: ir.Node, numbering: Numbering) -> bool:
    """Whether all activations around a node are numbered, and none is read twice."""
    return numbering.around(node) == activations_around([node])


def _is_product(node: ir.Node, numbering: Numbering) -> bool:
    """Whether a node multiplies two activations."""
    is_product = operator_of(node).combines == "product" and _is_known(node, numbering)
    return is_product and len(activations_of(node)) == 2


def _tie_around(node: ir.Node, numbering: Numbering, ties: _Ties) -> None:
    """A layer takes factors into its weights; other operators pass them on, or bear none."""
    is_known = _is_known(node, numbering)
    if is_known and takes_factors(node):
        return
    found = operator_of(node).ties(node) if is_known else None
    if found is None:
        ties.fix(*numbering.around(node))
    else:
        ties.join(found)


def _settle_products(products: list[ir.Node], numbering: Numbering, ties: _Ties) -> None:
    """A product of two activations takes the factors of one of them where the other's are fixed.

    Each product that is settled can fix the inputs of others.
    """
    waiting = products
    while waiting:
        classes = ties.classes()
        fixed = np.isin(classes, classes[ties.fixed])
        undecided = []
        for node in waiting:
            y = node.outputs[0]
            gates = []
            free = []
            for value in activations_of(node):
                if fixed[numbering.of(value)].all():
                    gates.append(value)
                elif channels(value) == channels(y):
                    free.append(value)
            if len(gates) == 1 and free:
                ties.join([ChannelTie(free[0], y)])
            elif gates:
                ties.fix(y, *activations_of(node))
            else:
                undecided.append(node)
        if len(undecided) == len(waiting):
            # Nothing says which factor is the gate: the second one is taken for it.
            ties.fix(*activations_of(undecided[0])[1:])
        waiting = undecided


class _Ties:
    """Collects channels that must have the same factor, and those that must keep theirs."""

    def __init__(self, numbering: Numbering) -> None:
        self._numbering = numbering
        self.fixed = np.zeros(numbering.count, bool)
        self._pairs: list[tuple[np.ndarray, np.ndarray]] = []

    def fix(self, *values: ir.Value) -> None:
        for value in values:
            self.fixed[self._numbering.of(value)] = True

    def join(self, ties: Iterable[ChannelTie]) -> None:
        for tie in ties:
            first = self._numbering.of(tie.a)[tie.of_a]
            second = self._numbering.of(tie.b)[tie.of_b]
            self._pairs.append((first, second))

    def classes(self) -> np.ndarray:
        """For each channel the lowest number among those that it is tied to."""
        lowest = np.arange(self._numbering.count)
        if not self._pairs:
            return lowest
        first = np.concatenate([pair[0] for pair in self._pairs])
        second = np.concatenate([pair[1] for pair in self._pairs])
        while True:
            least = np.minimum(lowest[first], lowest[second])
            lower = lowest.copy()
            np.minimum.at(lower, first, least)
            np.minimum.at(lower, second, least)
            # Follow the links that are known so far, so that long chains end soon.
            lower = lower[lower]
            if np.array_equal(lower, lowest):
                return lower
            lowest = lower
