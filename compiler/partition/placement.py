"""Where each node may run, before anything is cut: legality, the user's pins, and what never pays.

A node starts on the Edge TPU where that takes it. Then nodes at a boundary move to the host: layout
changes, elementwise nodes that only join host values, and segments that would multiply nothing.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase
from itertools import chain

import onnx_ir as ir

from compiler import planner
from compiler.device.cost import of_node
from compiler.device.legality import refusal
from compiler.errors import OptionError
from compiler.graph import activations_of, element_count, origin_of
from compiler.graph.lineage import names_of
from compiler.ops import Moves, operator_of
from compiler.partition import plain
from compiler.partition.options import PartitionOptions
from compiler.partition.plan import Placement, Placements
from compiler.partition.problem import planner_problem, units_of
from compiler.partition.task import Readers, Task, boundary
from compiler.targets import Host, Target

AT_BOUNDARY = "it only changes the layout at the border to the host"
JOINS_HOST = "it joins values of the host for the host: int8 would cost a transfer and accuracy"
IDLE = "its segment would multiply nothing: the way to the Edge TPU and back costs more"
NOT_CHOSEN = "measured: the Edge TPU would cost accuracy, or by prediction time, here"
KEPT_FLOAT = "in float for the quality goal or --keep-float: it contributes much to the error"


def place_nodes(task: Task) -> Placements:
    """The placement of every node. Raises OptionError for pins that cannot be met."""
    graph, options = task.graph, task.options
    placements = place_by_legality(graph, task.target, options)
    host = Host.load(options.host)
    costs = {
        node: of_node(node, task.target, host, placements[node].device == "tpu", options.host_int8)
        for node in graph
    }
    costs |= plain.saved(graph, costs, host, options.host_int8)
    pinned = _pin(graph, placements, options)
    found = Placements(placements, costs, pinned, set())
    _move_boundaries(graph, task.readers, found)
    if options.place == "auto":
        found.free = {n for n in graph if not found.on_host(n) and n not in pinned}
    if not found.free:
        _move_idle(task, found)
    return found


def joining(task: Task, placements: Placements) -> set[ir.Node]:
    """Nodes on the Edge TPU that only pass on or add what others make: the host may do that as well
    where it brings together what several Edge TPUs made."""
    found: set[ir.Node] = set()
    for node in task.graph:
        if placements.on_host(node) or node in placements.pinned:
            continue
        operator = operator_of(node)
        source = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
        is_join = operator.moves >= Moves.VALUES or operator.combines == "sum"
        # What treats each number by itself goes along with a join.
        is_hosted = source in found or (source is not None and placements.on_host(source))
        if is_join or (is_hosted and operator.elementwise(node) is not None):
            found.add(node)
    return found


def place_by_legality(
    graph: ir.Graph, target: Target, options: PartitionOptions
) -> dict[ir.Node, Placement]:
    """Each node by itself: the Edge TPU where that takes it, else the host and why."""
    placements = {}
    for node in graph:
        reason = "--place host" if options.place == "host" else refusal(node, target)
        if reason is None and options.only and not _is_among(node, options.only):
            reason = NOT_CHOSEN
        if reason is None:
            placements[node] = Placement("tpu", "the Edge TPU has it")
        else:
            placements[node] = Placement("host", reason)
    return placements


def _pin(
    graph: ir.Graph, placements: dict[ir.Node, Placement], options: PartitionOptions
) -> set[ir.Node]:
    """Put nodes where the user, or accuracy, wants them; returns these nodes."""
    kept = set(options.kept)
    pinned = {n for n in graph if origin_of(n) in kept and placements[n].device == "tpu"}
    for node in pinned:
        placements[node] = Placement("host", KEPT_FLOAT)
    for pattern, device in options.pins.items():
        nodes = [node for node in graph if is_pinned(node, (pattern,))]
        pin = f"--pin {pattern}={device}"
        if not nodes:
            raise OptionError(f"{pattern}={device}: {no_node(graph, pattern)}", "pins")
        legal = {origin_of(node) for node in nodes if placements[node].device == "tpu"}
        for node in nodes:
            if device == "tpu" and placements[node].device == "host":
                if origin_of(node) in legal:
                    continue  # what the host does for the operator, as normalising its rows
                reason = placements[node].reason
                raise OptionError(f"{pattern}={device}: {origin_of(node)}: {reason}", "pins")
            placements[node] = Placement(device, pin)
            pinned.add(node)
    return pinned


def is_pinned(node: ir.Node, patterns: Iterable[str]) -> bool:
    """Whether a pattern of a pin means a node."""
    names = names_of(node)
    return any(fnmatchcase(name, pattern) for pattern in patterns for name in names)


def _is_among(node: ir.Node, patterns: Iterable[str]) -> bool:
    """Whether a pattern matches the name that a node has in the source."""
    return any(fnmatchcase(origin_of(node), pattern) for pattern in patterns)


def no_node(graph: ir.Graph, name: str) -> str:
    """What to say of a name that no node has: the closest ones."""
    names: dict[str, None] = {}
    for node in graph:
        names |= dict.fromkeys(names_of(node))
    close = difflib.get_close_matches(name.strip("*?"), names, n=3)
    if not close:
        # Exporters write long paths, of which a user knows the last part.
        close = [found for found in names if name.strip("*?") in found][:3]
    if close:
        return f"no node has this name; the closest are {', '.join(map(repr, close))}"
    return "no node has this name; `inspect --json` lists the nodes"


def _move_boundaries(graph: ir.Graph, readers: Readers, found: Placements) -> None:
    """Give to the host what stands at a boundary and would only make the transfer larger.

    Each node that moves makes its neighbours boundaries, so this goes on until nothing moves.
    """
    changed = True
    while changed:
        changed = False
        tail = _tail(graph, readers, found)
        for node in graph:
            stays = found.on_host(node) or node in found.pinned
            if stays or found.costs[node].parameters:
                continue
            reason = _boundary_reason(node, node in tail, readers, found)
            if reason is not None:
                found.of[node] = Placement("host", reason)
                changed = True


def _tail(graph: ir.Graph, readers: Readers, found: Placements) -> set[ir.Node]:
    """Nodes on the Edge TPU behind which no layer with parameters follows before the host."""
    tail: set[ir.Node] = set()
    for node in reversed(graph):
        users = readers.of_node(node)
        ends = all(found.on_host(user) or user in tail for user in users)
        if ends and not found.costs[node].parameters:
            tail.add(node)
    return tail


def _boundary_reason(
    node: ir.Node, in_tail: bool, readers: Readers, found: Placements
) -> str | None:
    """Why a node at a boundary goes to the host; None where it stays."""
    sources = [value.producer() for value in activations_of(node)]
    from_host = [source is None or found.on_host(source) for source in sources]
    users = readers.of_node(node)
    is_layout = operator_of(node).moves >= Moves.ELEMENTS
    if is_layout and (all(from_host) or all(map(found.on_host, users))):
        return AT_BOUNDARY
    if in_tail and any(from_host):
        return JOINS_HOST
    return None


def _move_idle(task: Task, found: Placements) -> None:
    """Give the host what multiplies (nearly) nothing between host nodes, unless it was pinned."""
    while True:
        units = units_of(task.graph, found)
        problem = planner_problem(task, units, found)
        sides = [seconds < planner.INFINITE for seconds in problem.tpu]
        turns = planner.alternate(problem, range(problem.count), sides)
        on_tpu = [members for side, members in turns if side]
        idle: dict[ir.Node, str] = {}
        for place, members in enumerate(on_tpu):
            nodes = list(chain.from_iterable(units[unit] for unit in members))
            if found.pinned.intersection(nodes):
                continue
            reason = _idle_reason(task, found, nodes, is_first=place == 0)
            if reason is not None:
                idle |= dict.fromkeys(nodes, reason)
        if not idle:
            return
        for node, reason in idle.items():
            found.of[node] = Placement("host", reason)


def _idle_reason(task: Task, found: Placements, nodes: list[ir.Node], is_first: bool) -> str | None:
    """Why a segment of these nodes would be of no use; None where it is of some."""
    macs = sum(found.costs[node].macs for node in nodes)
    if not macs:
        return IDLE
    if is_first:
        # However small, it is what the user wants to have on the Edge TPU.
        return None
    inputs, outputs = boundary(nodes, task.readers)
    moved = sum(map(element_count, [*inputs, *outputs]))
    if macs > moved:
        return None
    return f"its segment would multiply {macs} times and move {moved} values between host nodes"
