"""Our cuts beside others' on 1 to 8 Edge TPUs, under one cost model, and on public planner inputs.

    python -m benchmarks.partitions [NETWORK ...]
    python -m benchmarks.partitions --public FOLDER

Peers: equal parameter bytes (what edgetpu_compiler --num_segments does), SEGM_BALANCED (Villarrubia
et al. 2025, arXiv:2503.01035: levels of depth with the smallest largest share, then refined until
nothing streams), and weights of equal size in the file's order (onnx2tf's splitting). All place
what the Edge TPU takes on Edge TPUs. Each may also be there several times, on fewer TPUs each.
FOLDER holds the computation graphs of Tarnawski et al. (NeurIPS 2020) as JSON.
"""

from __future__ import annotations

import bisect
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import networkx as nx
import onnx_ir as ir

from compiler import planner
from compiler.driver import build
from compiler.driver.options import BuildOptions
from compiler.partition import PartitionOptions, Plan, partition_for_all
from compiler.partition.placement import place_nodes
from compiler.partition.problem import planner_problem, units_of
from compiler.partition.segments import assemble
from compiler.partition.task import Task
from compiler.targets import Target
from fixtures import networks

NAMES = (
    "resnet50",
    "resnet101",
    "resnet152",
    "inception_v3",
    "inception_v4",
    "densenet121",
    "efficientnet_edge_l",
)
NAMES += ("mobilenet_v1", "mobilenet_v2", "vgg16", "bert_base")
TPUS = range(1, 9)
OBJECTIVES: tuple[planner.Objective, ...] = ("throughput", "latency")

Cut = Callable[[planner.Problem, Sequence[int], int], list[int]]
"""Gives each TPU node of an order the number of its device."""


def equal_parameters(problem: planner.Problem, order: Sequence[int], tpus: int) -> list[int]:
    total, so_far, devices = sum(problem.sizes), 0, []
    for n in order:
        devices.append(min(tpus - 1, so_far * tpus // max(total, 1)))
        so_far += problem.sizes[n]
    return devices


def contiguous_bytes(problem: planner.Problem, order: Sequence[int], tpus: int) -> list[int]:
    most, device, held, devices = sum(problem.sizes) / tpus, 0, 0, []
    for n in order:
        if held and held + problem.sizes[n] > most and device < tpus - 1:
            device, held = device + 1, 0
        held += problem.sizes[n]
        devices.append(device)
    return devices


def balanced(problem: planner.Problem, order: Sequence[int], tpus: int) -> list[int]:
    depth = problem.depth
    ranks = sorted({depth[n] for n in order})
    total: Counter[int] = Counter()
    for n in order:
        total[depth[n]] += problem.sizes[n]
    weight = [total[d] for d in ranks]
    starts = _smallest_largest(weight, tpus)

    def devices(starts: Sequence[int]) -> list[int]:
        place = {d: bisect.bisect_right(starts, i) - 1 for i, d in enumerate(ranks)}
        return [place[depth[n]] for n in order]

    def streams(starts: Sequence[int]) -> float:
        given = devices(starts)
        rows: dict[int, list[int]] = {}
        for n, device in zip(order, given, strict=True):
            rows.setdefault(device, []).append(n)
        return sum(planner.cached(problem, row)[1] for _, row in sorted(rows.items()))

    for _ in range(len(ranks)):
        moves = []
        for i, step in product(range(1, len(starts)), (-1, 1)):
            moved = [*starts[:i], starts[i] + step, *starts[i + 1 :]]
            if all(a < b for a, b in pairwise(moved)) and moved[-1] < len(ranks):
                moves.append(moved)
        best = min(moves, key=streams, default=starts)
        if streams(best) >= streams(starts):
            break
        starts = best
    return devices(starts)


def _smallest_largest(weight: Sequence[int], parts: int) -> list[int]:
    """Starts of contiguous parts whose largest sum is smallest, by bisection."""
    low, high = max(weight), sum(weight)

    def greedy(most: int) -> list[int]:
        starts, held = [0], 0
        for i, w in enumerate(weight):
            if held + w > most:
                starts.append(i)
                held = 0
            held += w
        return starts

    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(greedy(middle)) <= parts else (middle + 1, high)
    return greedy(low)


PEERS: dict[str, Cut] = {"equal": equal_parameters, "balanced": balanced, "bytes": contiguous_bytes}


def stages_of(cut: Cut, problem: planner.Problem) -> planner.Stages:
    """A peer's cut of what runs on Edge TPUs, with the host's stages in between."""
    turns = planner.alternate(
        problem, range(problem.count), [t != float("inf") for t in problem.tpu]
    )
    order: list[int] = []
    for on_tpu, nodes in turns:
        if on_tpu:
            order += nodes
    device = dict(zip(order, cut(problem, order, problem.tpus), strict=True))
    stages: list[tuple[int, tuple[int, ...]]] = []
    for side, nodes in turns:
        rows: dict[int, list[int]] = {}
        for n in nodes:
            rows.setdefault(device[n] if side else planner.HOST, []).append(n)
        stages += [(d, tuple(row)) for d, row in sorted(rows.items())]
    return tuple(stages)


def lowered(name: str, folder: Path) -> ir.Model:
    options = BuildOptions()
    return build.rewrite(build.read(networks.generate(name, folder), options), options)


def ours(model: ir.Model, tpus: int, objective: planner.Objective) -> Plan:
    return partition_for_all(model, Target.load(), PartitionOptions(tpus, objective))[1]


def peers(model: ir.Model, tpus: int) -> dict[str, list[Plan]]:
    """Peers' cuts with what our model predicts of them; each also several times on fewer TPUs, as
    ours may be."""
    task = Task(model.graph, Target.load(), PartitionOptions(tpus, "throughput"))
    placements = place_nodes(task)
    units = units_of(model.graph, placements)
    problem = planner_problem(task, units, placements)
    plans: dict[str, list[Plan]] = {label: [] for label in PEERS}
    for copies, (label, cut) in product(range(1, tpus + 1), PEERS.items()):
        stages = stages_of(cut, replace(problem, tpus=tpus // copies))
        several = {device: copies for device, _ in stages if device != planner.HOST}
        plans[label].append(assemble(stages, units, placements.costs, task, several))
    return plans


def compare(name: str, folder: Path) -> None:
    model = lowered(name, folder)
    for tpus in TPUS:
        started = time.perf_counter()
        rows = {f"ours, {objective}": [ours(model, tpus, objective)] for objective in OBJECTIVES}
        seconds = (time.perf_counter() - started) / len(OBJECTIVES)
        rows |= peers(model, tpus)
        cells = []
        for plans in rows.values():
            fastest = min(plans, key=lambda plan: plan.interval)
            latency = min(plan.latency for plan in plans)
            streamed = _streamed(fastest)
            cells.append(f"{1e3 * fastest.interval:.2f} / {1e3 * latency:.1f} / {streamed:.1f}")
        print(f"| {name} | {tpus} | " + " | ".join(cells) + f" | {seconds:.1f} |", flush=True)


def _streamed(plan: Plan) -> float:
    return sum(s.streamed for s in plan.segments) / 2**20


# Public planner inputs


def public(path: Path) -> planner.Problem:
    """An input of Tarnawski et al.: nodes of one colour, and of one cycle, stay together."""
    data = json.loads(path.read_text())
    colour = {
        n["id"]: ("colour", n["colorClass"]) if "colorClass" in n else n["id"]
        for n in data["nodes"]
    }
    graph = nx.DiGraph()
    graph.add_nodes_from(colour.values())
    graph.add_edges_from((colour[e["sourceId"]], colour[e["destId"]]) for e in data["edges"])
    whole = nx.condensation(graph)
    number = {c: i for i, c in enumerate(nx.lexicographical_topological_sort(whole))}
    index = {node: number[whole.graph["mapping"][c]] for node, c in colour.items()}
    count = len(number)
    tpu, host, sizes = [0.0] * count, [0.0] * count, [0] * count
    for node in data["nodes"]:
        i = index[node["id"]]
        tpu[i] += node["fpgaLatency"] if node["supportedOnFpga"] else float("inf")
        host[i] += node["cpuLatency"]
        sizes[i] += int(node["size"])
    moves: dict[int, float] = {}
    readers: dict[int, set[int]] = {}
    for edge in data["edges"]:
        source, reader = edge["sourceId"], index[edge["destId"]]
        if index[source] != reader:
            moves[source] = max(moves.get(source, 0.0), edge["cost"])
            readers.setdefault(source, set()).add(reader)
    tensors = [
        planner.Tensor(index[s], tuple(sorted(r)), False, moves[s], moves[s])
        for s, r in readers.items()
    ]
    edges: set[tuple[int, int]] = set()
    for tensor in tensors:
        if tensor.source is not None:
            edges |= {(tensor.source, reader) for reader in tensor.readers}
    return planner.Problem(
        tpu=tpu,
        host=host,
        edges=sorted(edges),
        tensors=tensors,
        sizes=sizes,
        stream=[float("inf")] * count,
        capacities=[int(data["maxSizePerFPGA"])] * count,
        tpus=int(data["maxFPGAs"]),
        objective="throughput",
        host_stages=int(data["maxCPUs"]),
    )


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["--public"]:
        print(
            "| input | nodes | heuristic | s | exact | bound | s |\n|---|---|---|---|---|---|---|"
        )
        for path in sorted(Path(arguments[1]).glob("*.json")):
            problem = public(path)
            started = time.perf_counter()
            guess = planner.heuristic(problem)
            between = time.perf_counter()
            best = planner.exact(problem, 60.0)
            assert best is not None
            times = between - started, time.perf_counter() - between
            print(f"| {path.stem} | {problem.count} | {guess.cost:.4f} | {times[0]:.1f} ", end="")
            print(f"| {best.cost:.4f} | {best.bound:.4f} | {times[1]:.1f} |", flush=True)
        return
    print("Slowest stage ms / latency ms / streamed MiB\n")
    heads = ["network", "TPUs", "ours, throughput", "ours, latency", *PEERS, "s"]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments or NAMES:
            compare(name, Path(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
