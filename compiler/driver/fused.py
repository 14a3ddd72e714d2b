"""Which feed-forward blocks of a language model run fused on the Edge TPU in prefill.

Fused (passes/fuse_blocks.py), a block has static ranges, and what is widest in it never crosses the
link. The first tokens of a chunk stay on the host: that of a text is far larger than all others
(PrefixQuant, Chen et al., 2024). What a block costs in accuracy is measured by itself, in a float
model (driver/chain.py) with nothing else quantized; these errors add up. Times are predicted from a
plan with all blocks fused and one with none. A chunk may also be run in parts that overlap
(driver/overlap.py).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from compiler.driver.overlap import Step, makespan
from compiler.frontends.decoder import FUSED, ProgramShape
from compiler.graph import origin_of
from compiler.partition import PartitionOptions, Plan, Program, Segment
from compiler.planner.selection import Option, Selection, frontier, spread
from compiler.runtime.manifest import FrontierEntry
from passes import Steps

# Tokens of a chunk that the host computes in every block.
FIRST_ROWS = 1
# Parts of a chunk that may overlap.
PARTS = (1, 2)
# A plan must be so much faster for fewer blocks to be fused, or for none.
GAIN = 0.02
# Plans of a frontier.
MOST_PLANS = 8

_LAYER = re.compile(r"blk\.(\d+)\.ffn_")


@dataclass(frozen=True)
class Fusing:
    """The layers whose feed-forward blocks are fused, and in how many parts a chunk is run."""

    layers: frozenset[int] = frozenset()
    parts: int = 1

    def shape(self, shape: ProgramShape) -> ProgramShape:
        """The shape of prefill so."""
        tokens = shape.tokens // self.parts
        # A chunk that is not longer has no tokens to set apart.
        first = min(FIRST_ROWS, tokens - 1)
        return replace(shape, tokens=tokens, fused=self.layers, first_rows=first)

    def steps(self, steps: Steps) -> Steps:
        """The steps of a build, with the fused blocks."""
        at = dict(steps.at)
        at["fuse_blocks"] = {f"blk.{layer}.ffn_down{FUSED}": True for layer in self.layers}
        return replace(steps, at=at)

    def partitioning(self, options: PartitionOptions, host_alone: bool) -> PartitionOptions:
        """How prefill is cut: the first tokens on the host, and where without fused blocks
        `host_alone` is fastest, all but these blocks."""
        if not self.layers:
            return options
        if host_alone and options.place == "auto":
            return replace(options, place="tpu", only=(f"*{FUSED}",))
        pins = dict(options.pins)
        for layer in sorted(self.layers):
            pins |= {f"blk.{layer}.ffn_{name}": "host" for name in ("gate", "up", "down")}
        return replace(options, pins=pins)


NOT_FUSED = Fusing()


@dataclass(frozen=True)
class Profile:
    """What segments take where all blocks are fused, by part of a chunk.

    steps:  the segments, each with the layer whose block it is, None for the host
    unfused: by layer, seconds that the host takes more where the block is not fused
    """

    steps: Sequence[tuple[Step, int | None]]
    unfused: Mapping[int, float]

    @classmethod
    def of(cls, fused: Plan, plain: Plan) -> Profile:
        steps: list[tuple[Step, int | None]] = []
        for segment in fused.segments:
            step = Step(segment.tpu, segment.seconds)
            steps.append((step, _fused_layer(segment)))
        more = _layer_seconds(plain)
        for layer, seconds in _layer_seconds(fused).items():
            more[layer] = more.get(layer, 0.0) - seconds
        return cls(steps, more)

    def seconds(self, layers: Collection[int], parts: int) -> float:
        """What a chunk takes where only the blocks of `layers` are fused."""
        found: list[Step] = []
        seen = set(layers)
        for step, layer in self.steps:
            own = step
            if layer is not None and layer not in layers:
                own = Step(None, 0.0 if layer in seen else self.unfused[layer])
                seen.add(layer)
            if found and found[-1].tpu is None and own.tpu is None:
                own = Step(None, found.pop().seconds + own.seconds)
            found.append(own)
        return makespan(found, parts)

    def on_tpu(self, layer: int) -> float:
        return sum(step.seconds for step, own in self.steps if own == layer)


def _layer_of(node: ir.Node) -> int | None:
    found = _LAYER.match(origin_of(node))
    return int(found.group(1)) if found else None


def _fused_layer(segment: Segment) -> int | None:
    """The layer whose fused block a segment is."""
    if segment.tpu is None:
        return None
    for node in segment.nodes:
        if origin_of(node).endswith(FUSED):
            return _layer_of(node)
    return None


def _layer_seconds(plan: Plan) -> dict[int, float]:
    """Seconds of the feed-forward part of each layer without fused blocks."""
    found: dict[int, float] = {}
    for segment in plan.segments:
        if segment.tpu is None:
            for node in segment.nodes:
                layer = _layer_of(node)
                if layer is not None:
                    found[layer] = found.get(layer, 0.0) + plan.costs[node].host
        elif _fused_layer(segment) is None:
            layers = [_layer_of(node) for node in segment.nodes]
            own = [layer for layer in layers if layer is not None]
            if own:
                found[own[0]] = found.get(own[0], 0.0) + segment.seconds
    return found


@dataclass(frozen=True)
class Candidate:
    """A plan of prefill: predicted seconds of a chunk, the divergence to be expected, and whether
    an Edge TPU is used."""

    fusing: Fusing
    seconds: float
    divergence: float
    on_tpu: bool

    def entry(self) -> FrontierEntry:
        """The plan as the manifest has it."""
        return {
            "ms": round(1e3 * self.seconds, 6),
            "figures": {"kl": round(self.divergence, 6)},
            "fused": len(self.fusing.layers),
            "parts": self.fusing.parts,
            "place": "tpu" if self.on_tpu else "host",
        }


@dataclass(frozen=True)
class Choices:
    """What there is to choose from.

    profiles:   by the number of parts of a chunk
    errors:     the divergence that fusing the block of each layer adds
    plain:      the divergence without any fused block
    host_alone: whether the host alone is fastest then
    """

    profiles: Mapping[int, Profile]
    errors: Mapping[int, float]
    plain: float
    host_alone: bool = True
    _known: dict[frozenset[int], Candidate] = field(default_factory=dict)

    def candidates(self) -> list[Candidate]:
        """Plans from the fastest to the most accurate one, each GAIN faster than the next."""
        found = {self.candidate(frozenset())}
        for layers in self._selections():
            found.add(self.candidate(layers))
        ordered = sorted(found, key=lambda c: (c.divergence, c.seconds, sorted(c.fusing.layers)))
        kept: list[Candidate] = []
        for candidate in ordered:
            if not kept or candidate.seconds < kept[-1].seconds * (1 - GAIN):
                kept.append(candidate)
        return kept[::-1]

    def offered(self) -> list[Candidate]:
        """At most MOST_PLANS of the candidates."""
        found = self.candidates()
        selections = [
            Selection((place,), candidate.seconds, candidate.divergence)
            for place, candidate in enumerate(found)
        ]
        return [found[chosen.choice[0]] for chosen in spread(selections, MOST_PLANS)]

    def fastest_within(self, divergence: float) -> Candidate:
        """The fastest plan of an expected divergence; the most accurate one where none has it."""
        found = self.candidates()
        fitting = [candidate for candidate in found if candidate.divergence <= divergence]
        return fitting[0] if fitting else found[-1]

    def candidate(self, layers: frozenset[int]) -> Candidate:
        """These blocks fused, with the number of parts that is fastest."""
        if layers not in self._known:
            times = {parts: p.seconds(layers, parts) for parts, p in self.profiles.items()}
            parts = min(times, key=lambda count: (times[count], count))
            # On the host alone nothing overlaps.
            if not layers or times[1] * (1 - GAIN) <= times[parts]:
                parts = 1
            divergence = self.plain + sum(self.errors[layer] for layer in layers)
            on_tpu = bool(layers) or not self.host_alone
            self._known[layers] = Candidate(Fusing(layers, parts), times[parts], divergence, on_tpu)
        return self._known[layers]

    def _selections(self) -> list[frozenset[int]]:
        """Sets of blocks that may be worth it: where segments run one after the other, and where
        the Edge TPU's time is hidden behind the host's."""
        layers = sorted(self.errors)
        profile = self.profiles[1]
        found = []
        for is_hidden in (False, True):
            regions = []
            for layer in layers:
                on_tpu = 0.0 if is_hidden else profile.on_tpu(layer)
                fused = Option(on_tpu, self.errors[layer])
                regions.append([Option(profile.unfused[layer], 0.0), fused])
            for selection in frontier(regions):
                chosen = [
                    layer for layer, pick in zip(layers, selection.choice, strict=True) if pick
                ]
                found.append(frozenset(chosen))
        return found


def fused_nodes(program: Program, layer: int) -> list[ir.Node]:
    """What an Edge TPU runs of the fused block of a layer; nothing where it is not fused."""
    found: list[ir.Node] = []
    for segment in program.plan.segments:
        if _fused_layer(segment) == layer:
            found += segment.nodes
    return found
