"""Agreement with what edgetpu_compiler did to public models: of `check`, operator by operator, and
of parameter bytes.

    python -m benchmarks.groundtruth FOLDER

FOLDER holds pairs.json, an array of models with their operators before compiling (`ops`: op,
version, inputs, outputs, options) and the counts of operators that the real compiler left on the
CPU (`cpu_counts`), and, for some of the models, pairs/NAME/model.tflite. Every disagreement is
printed.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from compiler.device.legality import check
from compiler.device.tflite_file import read_operators
from compiler.ops import BUILTINS
from compiler.ops.rules import OpInfo, TensorInfo, judge
from compiler.targets import Target, stored_bytes


def agreement(folder: Path) -> tuple[int, int, list[str]]:
    """(operators that agree, all operators, a line for each model that differs)."""
    target = Target.load()
    agree, total, lines = 0, 0, []
    for pair in json.loads((folder / "pairs.json").read_text()):
        file = folder / "pairs" / pair["name"] / "model.tflite"
        if file.is_file():
            rows = [(str(r["operator"]), r["reason"]) for r in check(file, target)]
        else:
            rows = listed(operators(pair), target)
        ours, real = Counter(name for name, reason in rows if reason), Counter(pair["cpu_counts"])
        wrong = sum(((ours - real) + (real - ours)).values())
        agree, total = agree + pair["n_ops"] - wrong, total + pair["n_ops"]
        if wrong:
            reasons = sorted({f"{name}: {reason}" for name, reason in rows if reason})
            lines.append(
                f"{pair['name']}: predicted {dict(ours)}, real {dict(real)}; {'; '.join(reasons)}"
            )
    return agree, total, lines


def listed(ops: list[OpInfo], target: Target) -> list[tuple[str, str | None]]:
    """Judges a list without tensor names: everything behind the first refusal that follows a mapped
    one stays."""
    rows: list[tuple[str, str | None]] = []
    mapped = stopped = False
    for op in ops:
        reason = judge(op, BUILTINS, target)
        if reason is None and stopped:
            reason = "it follows an operator that is not mapped"
        stopped |= reason is not None and mapped
        mapped |= reason is None
        rows.append((op.builtin, reason))
    return rows


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


if __name__ == "__main__":
    agree, total, lines = agreement(Path(sys.argv[1]))
    print(*lines, sep="\n")
    print(f"{agree} of {total} operators agree ({agree / total:.2%})")
    rows = stored(Path(sys.argv[1]))
    errors = {name: expected / real - 1 for name, expected, real in rows}
    exact = sum(error == 0 for error in errors.values())
    close = sum(abs(error) <= 0.02 for error in errors.values())
    print(f"parameter bytes: {exact} of {len(rows)} models exact, {close} within 2%;", end=" ")
    name, expected, real = max(rows, key=lambda row: abs(errors[row[0]]))
    print(f"farthest is {name}: {expected} expected, {real} real ({errors[name]:+.1%})")
