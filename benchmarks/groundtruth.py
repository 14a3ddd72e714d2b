"""Agreement with what edgetpu_compiler did to public models: of `check`, operator by operator, and
of parameter bytes.

    python -m benchmarks.groundtruth FOLDER [MODELS]

FOLDER holds pairs.json, an array of models with their operators before compiling (`ops`: op,
version, inputs, outputs, options) and the counts of operators that the real compiler left on the
CPU (`cpu_counts`), and, for some of the models, pairs/NAME/model.tflite; and logs.json, an array of
the compiler's logs with their operator tables. The model of a log is that of its pair, or the file
MODELS/OWNER/REPOSITORY/PATH, or one that benchmarks/rebuilt.py draws. Every file of MODELS beside
which a compiled one stands (X.tflite, X_edgetpu.tflite) is compared too. Every disagreement is
printed.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.rebuilt import rebuilt
from compiler.device.legality import Subgraphs, verdicts
from compiler.device.tflite_file import read_operators
from compiler.ops import BUILTINS
from compiler.ops.rules import OpInfo, TensorInfo
from compiler.targets import Target, stored_bytes

MAPPED = "Mapped to Edge TPU"

# Why the model of a log cannot be drawn, by the log's file.
UNKNOWN = {
    "068.log": "an EfficientDet with a head of its own",
    "110.log": "its networks' layers are not published; the file is in the repository (MODELS)",
    "113.log": "the number of its classes is not known",
    "114.log": "a part of the table is missing",
}


def agreement(folder: Path) -> tuple[int, int, list[str]]:
    """(operators that agree, all operators, a line for each model that differs)."""
    target = Target.load()
    agree, total, lines = 0, 0, []
    for pair in json.loads((folder / "pairs.json").read_text()):
        ops = operators_of_pair(folder, pair)
        subgraphs: Subgraphs = "many" if pair.get("n_custom", 1) > 1 else "one"
        real = Counter(pair["cpu_counts"])
        wrong, line = compared(ops, real, target, subgraphs)
        agree, total = agree + pair["n_ops"] - wrong, total + pair["n_ops"]
        if wrong:
            lines.append(f"{pair['name']}: {line}")
    return agree, total, lines


def compared(
    ops: Sequence[OpInfo], real: Counter[str], target: Target, subgraphs: Subgraphs
) -> tuple[int, str]:
    """(operators that we place elsewhere than the real compiler, what both leave on the CPU)."""
    reasons = verdicts(ops, target, subgraphs)
    left = [(op.builtin, reason) for op, reason in zip(ops, reasons, strict=True) if reason]
    ours = Counter(name for name, _ in left)
    wrong = sum(((ours - real) + (real - ours)).values())
    why = "; ".join(sorted({f"{name}: {reason}" for name, reason in left}))
    return wrong, f"predicted {dict(ours)}, real {dict(real)}; {why}"


def files_beside(models: Path) -> tuple[int, int, list[str]]:
    """(operators that agree, all operators, a line for each file that differs) of all files that
    have a compiled one beside them."""
    target = Target.load()
    agree, total, lines = 0, 0, []
    for compiled in sorted(models.rglob("*_edgetpu.tflite")):
        plain = compiled.with_name(compiled.name.replace("_edgetpu.tflite", ".tflite"))
        if not plain.is_file():
            continue
        left = Counter(op.builtin for op in read_operators(compiled))
        parts = left.pop("CUSTOM:edgetpu-custom-op", 0)
        ops = read_operators(plain)
        wrong, line = compared(ops, left, target, "many" if parts > 1 else "one")
        agree, total = agree + len(ops) - wrong, total + len(ops)
        if wrong:
            lines.append(f"{plain.relative_to(models)}: {line}")
    return agree, total, lines


def operators_of_pair(folder: Path, pair: dict[str, Any]) -> list[OpInfo]:
    """From the file of a pair where it is at hand, else from the list of its operators."""
    file = folder / "pairs" / pair["name"] / "model.tflite"
    return read_operators(file) if file.is_file() else connected(operators(pair))


def connected(ops: Sequence[OpInfo]) -> list[OpInfo]:
    """A list of operators without tensor names, with names by which each reads the latest result of
    the shape and type that it asks for; one that nothing read so far, if there is one."""
    made: list[TensorInfo] = []
    unread: set[str] = set()
    found = []
    for op in ops:
        inputs = []
        for tensor in op.inputs:
            if tensor is None or tensor.constant:
                inputs.append(tensor)
                continue
            like = [m for m in made if (m.shape, m.dtype) == (tensor.shape, tensor.dtype)]
            fresh = [m for m in like if m.name in unread]
            source = (fresh or like or [tensor])[-1]
            unread.discard(source.name)
            inputs.append(replace(tensor, name=source.name))
        outputs = [
            replace(tensor, name=f"{len(found)}:{index}") for index, tensor in enumerate(op.outputs)
        ]
        made += outputs
        unread |= {tensor.name for tensor in outputs}
        found.append(replace(op, inputs=tuple(inputs), outputs=tuple(outputs)))
    return found


def tables(folder: Path, models: Path | None = None) -> tuple[int, int, list[str], list[str]]:
    """(operators that agree, all operators, a line for each log that differs, logs without a model)
    over the operator tables of the compiler's logs."""
    target = Target.load()
    pairs = json.loads((folder / "pairs.json").read_text())
    agree, total, lines, without = 0, 0, [], []
    for log in json.loads((folder / "logs.json").read_text()):
        if not log["table"]:
            continue
        ops = next(of_log(folder, log, pairs, models), None)
        if ops is None:
            why = UNKNOWN.get(log["file"], "not drawn")
            without.append(f"{log['file']} ({log['source']}): {why}")
            continue
        left = counted(log, on_cpu=True)
        subgraphs: Subgraphs = "many" if (log["subgraphs"] or 1) > 1 else "one"
        wrong, line = compared(ops, left, target, subgraphs)
        agree, total = agree + len(ops) - wrong, total + len(ops)
        if wrong:
            lines.append(f"{log['file']}: {line}")
    return agree, total, lines, without


def counted(log: dict[str, Any], on_cpu: bool = False) -> Counter[str]:
    """The operators of a log's table, or those that it leaves on the CPU."""
    counts: Counter[str] = Counter()
    for row in log["table"]:
        if not on_cpu or row["status"] != MAPPED:
            counts[row["op"]] += row["count"]
    return counts


def of_log(
    folder: Path, log: dict[str, Any], pairs: Sequence[dict[str, Any]], models: Path | None
) -> Iterator[list[OpInfo]]:
    """The operators of a log's model from each source that has as many as the log's table."""
    for ops in _sources(folder, log, pairs, models):
        if Counter(op.builtin.partition(":")[0] for op in ops) == counted(log):
            yield ops


def _sources(
    folder: Path, log: dict[str, Any], pairs: Sequence[dict[str, Any]], models: Path | None
) -> Iterator[list[OpInfo]]:
    path = Path(log["path"] or "")
    for pair in pairs:
        source = pair["source"]
        compiled = Path(source["compiled"]).with_suffix(".log")
        if (source["repo"], compiled) == (log["source"], path):
            yield operators_of_pair(folder, pair)
    repository = log["source"].removeprefix("https://github.com/")
    if models is not None and log["input"]:
        # The log may stand in a folder below that of its model.
        for parent in path.parents:
            file = models / repository / parent / Path(log["input"]).name
            if file.is_file():
                yield read_operators(file)
    drawn = rebuilt(f"{repository}/{path}")
    if drawn is not None:
        yield drawn


def operators(pair: dict[str, Any]) -> list[OpInfo]:
    """The operators of a model before it was compiled."""
    made = []
    for entry in pair["ops"]:
        inputs = tuple(tensor(t) for t in entry["inputs"])
        outputs = tuple(tensor(t) for t in entry["outputs"])
        made.append(
            OpInfo(entry["op"], entry["version"], inputs, outputs, entry.get("options") or {})
        )  # type: ignore[arg-type]
    return made


def tensor(entry: dict[str, Any] | None) -> TensorInfo | None:
    if entry is None:
        return None
    shape, constant = tuple(entry["shape"]), entry["const"]
    dtype = entry["dtype"].lower()
    # The list has no values: constants that are joined are taken for zeros, biases are not.
    zeros = constant and dtype != "int32"
    return TensorInfo("a tensor", shape, dtype, constant, zeros, entry.get("nscale") or 1)


def stored(folder: Path) -> list[tuple[str, int, int]]:
    """(model, bytes of parameters that we expect, bytes that the compiled model holds), of the
    models that hold any."""
    target = Target.load()
    rows = []
    for pair in json.loads((folder / "pairs.json").read_text()):
        real = pair["param_bytes_total"]
        if real:
            file = folder / "pairs" / pair["name"] / "model.tflite"
            ops = read_operators(file) if file.is_file() else operators(pair)
            mapped = _mapped(ops, pair["cpu_counts"])
            rows.append((pair["name"], expected_bytes(mapped, _is_recent(pair), target), real))
    return rows


def _mapped(ops: list[OpInfo], on_cpu: dict[str, int]) -> list[OpInfo]:
    """The operators that the compiler took: of each kind, it left the last ones on the CPU."""
    left = Counter(on_cpu)
    found = []
    for op in reversed(ops):
        if left[op.builtin] > 0:
            left[op.builtin] -= 1
        else:
            found.append(op)
    return found[::-1]


def _is_recent(pair: dict[str, Any]) -> bool:
    """Whether a compiler of 2021 or later wrote the model: its options have two more fields."""
    return all("7" in operator["flexkeys"] for operator in pair["custom_ops"])


def expected_bytes(ops: list[OpInfo], is_recent: bool, target: Target) -> int:
    """Bytes of parameters of a compiled model. Older compilers wrote no tables."""
    total = 0
    # The host hands over the inputs in whatever layout the first operators ask for.
    from_host = {tensor.name for op in ops for tensor in op.activations}
    from_host -= {tensor.name for op in ops for tensor in op.outputs}
    for op in ops:
        is_first = op.activations[0].name in from_host
        if is_first and op.builtin == "QUANTIZE":
            from_host.add(op.outputs[0].name)
        layer = BUILTINS[op.builtin].layer(op) if op.builtin in BUILTINS else None
        if layer is None or (layer.kind == "table" and not is_recent):
            continue
        if not (is_first and op.builtin == "RESHAPE"):
            total += stored_bytes(layer, target)
    return total


def show(what: str, agree: int, total: int, lines: Sequence[str]) -> None:
    for line in lines:
        print(line)
    print(f"{agree} of {total} operators of {what} agree ({agree / total:.2%})")


if __name__ == "__main__":
    given = Path(sys.argv[1])
    models = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    show("the pairs", *agreement(given))
    *found, without = tables(given, models)
    show("the logs", *found)
    print("logs whose model is neither at hand nor known:", *without, sep="\n  ")
    if models is not None:
        show("other files", *files_beside(models))
    rows = stored(Path(sys.argv[1]))
    errors = {name: expected / real - 1 for name, expected, real in rows}
    exact = sum(error == 0 for error in errors.values())
    close = sum(abs(error) <= 0.02 for error in errors.values())
    print(f"parameter bytes: {exact} of {len(rows)} models exact, {close} within 2%;", end=" ")
    name, expected, real = max(rows, key=lambda row: abs(errors[row[0]]))
    print(f"farthest is {name}: {expected} expected, {real} real ({errors[name]:+.1%})")
