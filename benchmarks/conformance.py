"""What becomes of ONNX's own backend tests, as a table for docs/conformance.md.

    python -m benchmarks.conformance docs/conformance.md

Each case is built and run with its own inputs and held to the outputs that ONNX expects
(tests/conformance/cases.py).
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import onnx

from tests.conformance import cases
from tests.conformance.cases import Outcome

STATES = ("tpu", "host", "onnxruntime", "refused", "wrong", "crashed")


def outcome(task: tuple[str, str]) -> Outcome:
    kind, name = task
    with tempfile.TemporaryDirectory() as folder:
        try:
            return cases.outcome(cases.cases(kind)[name], Path(folder))
        except Exception as error:
            return Outcome("crashed", f"{type(error).__name__}: {error}".splitlines()[0])


def general(reason: str) -> str:
    """A reason without the names of its case."""
    reason = re.sub(r"/\S+/model.onnx", "MODEL", reason)
    reason = re.sub(r"\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ", "", reason)
    reason = re.sub(r"'[^']*'", "'...'", reason)
    return re.sub(r"add --.*", "add --dim or --shape", reason)[:110]


def main(target: Path) -> None:
    tasks: list[tuple[str, str]] = []
    for kind in cases.KINDS:
        tasks += [(kind, name) for name in sorted(cases.cases(kind))]
    with ProcessPoolExecutor() as pool:
        found = dict(zip(tasks, pool.map(outcome, tasks, chunksize=20), strict=True))
    lines = [
        "# Conformance",
        "",
        f"The backend tests of ONNX {onnx.__version__}, run by `python -m benchmarks.conformance`.",
        "",
        "- *Edge TPU*: built with at least one int8 segment; the outputs are as ONNX expects, with",
        f"  at least {cases.LEAST_DB:.0f} dB.",
        "- *Host*: built for the host alone; the outputs are within ONNX's tolerances, in float.",
        "- *As onnxruntime*: onnxruntime gives something else than ONNX expects, and the bundle",
        "  gives the same.",
        "",
        "The *node* tests have all operands as inputs, which the Edge TPU takes of few operators,",
        "and many have a batch, which it does not take. The *constant* tests are the same with all",
        "inputs but the first as constants.",
        "",
        "| tests | number | Edge TPU | host | as onnxruntime | refused | wrong | crashed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for kind in cases.KINDS:
        states = Counter(o.status for (k, _), o in found.items() if k == kind)
        lines.append(
            f"| {kind} | {states.total()} | " + " | ".join(str(states[s]) for s in STATES) + " |"
        )
    lines += ["", "## Refused, and why", "", "| number | reason | for example |", "|---|---|---|"]
    groups: dict[str, list[str]] = {}
    for (_, name), result in found.items():
        if result.status == "refused":
            groups.setdefault(general(result.detail), []).append(name)
    for reason, names in sorted(groups.items(), key=lambda g: -len(g[1])):
        lines.append(f"| {len(names)} | {reason.replace('|', ' ')} | {names[0]} |")
    bad = [(name, o) for (_, name), o in found.items() if o.status in ("wrong", "crashed")]
    if bad:
        lines += ["", "## Wrong or crashed", "", "| test | what |", "|---|---|"]
        lines += [f"| {name} | {o.detail.replace('|', ' ')[:160]} |" for name, o in bad]
    target.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
