"""Outputs of a model that go back into its inputs at the next step: states of recurrent layers,
caches of streaming encoders.

Pairs are told by the user or recognised. A recognised output and input have one shape and type, and
names that differ by words of direction or time alone: h and hn, state and stateN, cache_in and
cache_out, past and present.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence

import onnx_ir as ir

from compiler.errors import OptionError
from compiler.graph import shape_of
from compiler.graph.shapes import infer
from compiler.importer.inputs import Hints

# Where an imported model keeps {output: input}, as JSON, which goes into copies of it too.
META = "edgetpu.state"
# How many names an error offers.
_CLOSEST = 3

# Words that name a state by themselves.
_STATES = {"state", "hidden", "cell", "memory", "mem", "buffer", "buf", "ctx", "context"}
_STATES |= {"cache", "cached", "lstm", "gru", "rnn", "h", "c", "kv"}
# Words that say before or after, of a tensor of any name.
_BEFORE = {"past", "prev", "previous", "old", "last"}
_AFTER = {"present", "next", "new", "updated"}
# Words that only say which side of the model a tensor is on.
_GOES_IN = {"in", "input", "inputs", "init", "initial", "0", "x"}
_COMES_OUT = {"out", "output", "outputs", "final", "n", "r", "y"}

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")


def settle(model: ir.Model, named: Mapping[str, str] | None) -> dict[str, str]:
    """Note which outputs of a model go back into which inputs; returns {output: input}.

    `named` are pairs that the user gives; where it is None, they are recognised. Raises
    OptionError for names that the model does not have, and for pairs of unlike shapes or types.
    """
    graph = model.graph
    if any(value.shape is None for value in graph.outputs):
        infer(model)
    found = recognised(graph.inputs, graph.outputs)
    pairs = found if named is None else _checked(model, named)
    model.metadata_props[META] = json.dumps(pairs)
    return pairs


def of(model: ir.Model) -> dict[str, str]:
    """{output: input} of an imported model's state."""
    pairs: dict[str, str] = json.loads(model.metadata_props.get(META, "{}"))
    return pairs


def recognised(inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]) -> dict[str, str]:
    """{output: input} of what shapes, types and names show to be a state.

    A name that fits several is left out, as are all pairs where no input would be left.
    """
    pairs: dict[str, str] = {}
    for output in outputs:
        fitting = [value for value in inputs if _are_alike(output, value)]
        found = [value for value in fitting if is_pair(str(output.name), str(value.name))]
        if len(found) == 1:
            pairs[str(output.name)] = str(found[0].name)
    taken = list(pairs.values())
    pairs = {output: name for output, name in pairs.items() if taken.count(name) == 1}
    return pairs if len(pairs) < len(inputs) else {}


def is_pair(output: str, name: str) -> bool:
    """Whether the names of an output and an input are those of one state after and before a
    step."""
    after = _words(output)
    before = _words(name)
    # Without a word for a state, both have to speak of time: past and present.
    are_timed = not _AFTER.isdisjoint(after) and not _BEFORE.isdisjoint(before)
    stems = _stems(after, _AFTER, _COMES_OUT) & _stems(before, _BEFORE, _GOES_IN)
    return any(are_timed or not _STATES.isdisjoint(stem) for stem in stems)


def _words(name: str) -> list[str]:
    """The words of a name in small letters, without plurals; `hn`, `hx` and `stateN` are two."""
    found = []
    for word in _WORD.findall(name):
        small = word.lower()
        single = small.removesuffix("s")
        if single in _STATES:
            found.append(single)
        elif small[:-1] in _STATES and small[-1] in "nxy":
            found += [small[:-1], small[-1]]
        else:
            found.append(small)
    return found


def _stems(words: Sequence[str], time: set[str], side: set[str]) -> set[tuple[str, ...]]:
    """What may be left of a name without words of direction: all of them, or one alone, as `0` may
    be the number of a layer, and `n` a part of a name."""
    untimed = [word for word in words if word not in time]
    found = set()
    for kept in (list(words), untimed):
        found.add(tuple(kept))
        found.add(tuple(word for word in kept if word not in side))
        for index, word in enumerate(kept):
            if word in side:
                found.add(tuple(kept[:index] + kept[index + 1 :]))
    return found


def _are_alike(output: ir.Value, value: ir.Value) -> bool:
    """Whether an output can be an input's next value, as far as its shape is known."""
    if output.dtype is not None and output.dtype != value.dtype:
        return False
    if output.shape is None:
        return True
    wanted = shape_of(value)
    if len(output.shape) != len(wanted):
        return False
    pairs = zip(output.shape, wanted, strict=True)
    return all(not isinstance(size, int) or size == other for size, other in pairs)


def _checked(model: ir.Model, named: Mapping[str, str]) -> dict[str, str]:
    """The pairs that a user names. Raises OptionError."""
    inputs = {str(value.name): value for value in model.graph.inputs}
    outputs = {str(value.name): value for value in model.graph.outputs}
    for output, name in named.items():
        given = f"{output}={name}"
        for wanted, known, what in ((output, outputs, "output"), (name, inputs, "input")):
            if wanted not in known:
                offered = _closest(wanted, known)
                raise OptionError(
                    f"{given}: the model has no {what} '{wanted}'; {offered}", "state"
                )
        if not _are_alike(outputs[output], inputs[name]):
            raise OptionError(
                f"{given}: output '{output}' is {_form(outputs[output])}, input '{name}' is "
                f"{_form(inputs[name])}: a state keeps its shape and type",
                "state",
            )
    return dict(named)


def _closest(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    close = difflib.get_close_matches(name, names, _CLOSEST, cutoff=0.4)
    offered = ", ".join(f"'{other}'" for other in close or names)
    return f"the closest are {offered}" if close else f"it has {offered}"


def _form(value: ir.Value) -> str:
    dims = ", ".join(str(dim) for dim in value.shape or ())
    dtype = "of unknown type" if value.dtype is None else str(value.dtype.numpy().name)
    return f"[{dims}] {dtype}"


def hints(inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]) -> Hints:
    """1 for the open batch of inputs that a state goes into, which no sample tells."""
    found: dict[str, list[int | None]] = {}
    for value in inputs:
        name = str(value.name)
        if value.shape is None or not any(is_pair(str(output.name), name) for output in outputs):
            continue
        places = [axis for axis, dim in enumerate(value.shape) if not _is_size(dim)]
        # A second 1 could be the batch, and what is open a length.
        if len(places) == 1 and 1 not in value.shape and _may_be_batch(value.shape[places[0]]):
            sizes: list[int | None] = [None] * len(value.shape)
            sizes[places[0]] = 1
            found[name] = sizes
    return found


def _is_size(dim: int | ir.SymbolicDim) -> bool:
    return isinstance(dim, int) and dim >= 0


def _may_be_batch(dim: int | ir.SymbolicDim) -> bool:
    name = None if isinstance(dim, int) else dim.value
    return not name or "batch" in str(name).lower()
