"""What passes are given beside the model, and what they tell about their work."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from compiler.graph import origin_of
from compiler.progress import Progress, silent
from compiler.quantize.calibrate import ChannelStats, Ranges
from compiler.quantize.products import Product
from compiler.quantize.samples import Samples
from compiler.targets import Target


@dataclass(frozen=True)
class NearMiss:
    """Where a rewrite began to fit, why it did not, and how many nodes of its pattern did."""

    node: str
    reason: str
    fitted: int


@dataclass
class Trace:
    """What one pass did, in names of nodes of the source model."""

    matches: list[str] = field(default_factory=list)
    misses: list[NearMiss] = field(default_factory=list)

    def nearest(self) -> NearMiss | None:
        """The first of the misses of which most nodes fitted."""
        return max(self.misses, key=lambda miss: miss.fitted, default=None)


def everywhere(_: ir.Node) -> bool:
    """A pass that is left to itself rewrites every node that it fits."""
    return True


@dataclass
class PassContext:
    """The target, what a pass may rewrite, and ears for what it matched and nearly matched.

    `takes` says whether the pass that runs is wanted at a node: accuracy and optional passes ask it
    where they would rewrite. `kept` names nodes of the source that stay on the host.
    """

    target: Target
    trace: Trace = field(default_factory=Trace)
    takes: Callable[[ir.Node], bool] = everywhere
    kept: Collection[str] = frozenset()

    def matched(self, node: ir.Node) -> None:
        """Note a rewrite that starts or ends at `node`."""
        self.trace.matches.append(origin_of(node))

    def missed(self, node: ir.Node, reason: str, fitted: int = 1) -> None:
        """Note why a rewrite does not take `node`, of whose pattern `fitted` nodes were found.

        Only for nodes at which a user would expect the rewrite, not for each that it skips.
        """
        self.trace.misses.append(NearMiss(origin_of(node), reason, fitted))


@dataclass
class SampleContext(PassContext):
    """What passes that look at samples know besides, and what they find out.

    `nodes` run on the Edge TPU in int8, and `joins` pass int8 on between them on the host;
    `products` are the normalised products among them. `ranges`
    of activations, by name, are known without calibration. `stats` are what the samples show of
    each channel of the others, `means` the averages by which biases are corrected. Activations in
    `rescaled` were multiplied by factors that their readers undo.
    """

    samples: Samples = field(default_factory=lambda: Samples([]))
    announce: Progress = silent
    nodes: Sequence[ir.Node] = ()
    joins: Sequence[ir.Node] = ()
    products: Sequence[Product] = ()
    ranges: Ranges = field(default_factory=dict)
    stats: Mapping[str, ChannelStats] = field(default_factory=dict)
    means: Mapping[str, np.ndarray] = field(default_factory=dict)
    rescaled: set[str] = field(default_factory=set)
