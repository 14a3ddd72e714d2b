"""What the compiler knows of a pass besides its code: when it runs, and what runs before it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

import onnx_ir as ir

from compiler.graph import OPSET, RAISED, origin_of

ContextT = TypeVar("ContextT")

Kind = Literal["exact", "accuracy", "optional"]
"""When a pass runs: always ("exact"), unless it is left out because it only serves accuracy
("accuracy"), or only where it is asked for, because it trades time for accuracy ("optional")."""


@dataclass(frozen=True)
class Pass(Generic[ContextT]):
    """A change of a model, in place, into a valid model that computes the same in float.

    `run` gets a context (passes/context.py), which knows the target and is told what matched.
    A model whose ONNX opset is below `lowest_opset` is left alone: passes that read operators count
    on the form that these have since RAISED, those that write operators of the newest opset need
    OPSET. `after` names the passes that must come before this one, each with the reason.
    A pass that `reads_only` leaves the model as it is, so that there is nothing to check. One that
    is `for_tpu` is of no use in a model of which no node runs on an Edge TPU.
    """

    name: str
    run: Callable[[ir.Model, ContextT], None]
    kind: Kind = "exact"
    lowest_opset: int = RAISED
    after: Mapping[str, str] = field(default_factory=dict)
    reads_only: bool = False
    for_tpu: bool = False

    def accepts(self, model: ir.Model) -> bool:
        """Whether the operators of a model have the form that the pass was written for."""
        return model.graph.opset_imports.get("", OPSET) >= self.lowest_opset


def in_order(*passes: Pass[ContextT], earlier: Iterable[str] = ()) -> tuple[Pass[ContextT], ...]:
    """The passes as they are given, once it is sure that each comes after those that it names.

    `earlier` are names of passes that run before all of these. Raises ValueError for a pass that
    comes too early or twice.
    """
    seen = set(earlier)
    for record in passes:
        for name, reason in record.after.items():
            if name not in seen:
                raise ValueError(f"pass {record.name} must come after {name}: {reason}")
        if record.name in seen:
            raise ValueError(f"two passes are named {record.name}")
        seen.add(record.name)
    return passes


def named(passes: Iterable[Pass[ContextT]], kind: Kind) -> tuple[str, ...]:
    """The names of the passes of one kind, in order."""
    return tuple(record.name for record in passes if record.kind == kind)


@dataclass(frozen=True)
class Steps:
    """Which accuracy and optional passes run, and where.

    `without` names accuracy passes that are left out, `also` the optional ones that run. `at` says
    otherwise for single nodes: by the name of the pass, then by that of the node in the source.
    `on_host` leaves out all passes that are for an Edge TPU.
    """

    without: frozenset[str] = frozenset()
    also: frozenset[str] = frozenset()
    at: Mapping[str, Mapping[str, bool]] = field(default_factory=dict)
    on_host: bool = False

    def want(self, record: Pass[ContextT]) -> bool:
        """Whether a pass runs at any node."""
        if self.on_host and record.for_tpu:
            return False
        return self._by_default(record) or any(self.at.get(record.name, {}).values())

    def takes(self, record: Pass[ContextT], node: ir.Node) -> bool:
        """Whether a pass may rewrite a node."""
        return self.at.get(record.name, {}).get(origin_of(node), self._by_default(record))

    def _by_default(self, record: Pass[ContextT]) -> bool:
        if record.name in self.without:
            return False
        return record.kind != "optional" or record.name in self.also
