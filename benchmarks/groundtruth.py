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
    return TensorInfo(
        "a tensor", shape, entry["dtype"].lower(), constant, constant, entry.get("nscale") or 1
    )


def stored(folder: Path) -> list[tuple[str, int, int]]:
    """(model, bytes of parameters that we expect, bytes that the compiled model holds)."""
    target, rows = Target.load(), []
    for pair in json.loads((folder / "pairs.json").read_text()):
        left = Counter(pair["cpu_counts"])
        expected = 0
        for op in reversed(operators(pair)):
            layer = BUILTINS[op.builtin].layer(op) if op.builtin in BUILTINS else None
            if left[op.builtin] > 0:
                left[op.builtin] -= 1
            elif layer is not None:
                expected += stored_bytes(layer, target)
        rows.append((pair["name"], expected, pair["param_bytes_total"]))
    return rows


if __name__ == "__main__":
    agree, total, lines = agreement(Path(sys.argv[1]))
    print(*lines, sep="\n")
    print(f"{agree} of {total} operators agree ({agree / total:.2%})")
    rows = [row for row in stored(Path(sys.argv[1])) if row[2] >= 4096]
    exact = sum(expected == real for _, expected, real in rows)
    worst = max(rows, key=lambda row: abs(row[1] / row[2] - 1))
    print(f"parameter bytes: {exact} of {len(rows)} models of 4 KiB or more exact;", end=" ")
    name, expected, real = worst
    print(f"farthest is {name}: {expected} expected, {real} real ({expected / real - 1:+.1%})")
