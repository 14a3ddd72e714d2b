"""Our int8, our cuts and our text beside those of others, on the same models, samples and machine.

    python -m benchmarks.scoreboard [--minilm FOLDER] [--gguf FILE] [--onnx2tf PYTHON]
                                    [--onnx-tf PYTHON] [--llama PYTHON] [--output FOLDER]

Makes the environments that are not given: onnx2tf 2.6.9 needs Python 3.12, onnx-tf Python 3.11
(`toolchain install`), llama.cpp is llama-cpp-python. FOLDER of MiniLM is what export_minilm.py
wrote, FILE a language model; without them their part is left out. Networks of the onnx package have
random weights, and random pictures as samples. SQNR is of what varies, in the worst part of the
worst output (docs/manifest.md); the plain one counts means as signal. Cuts are judged by our own
cost model. Raw figures go to scoreboard.json, a plot to scoreboard.svg.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.version_converter
import onnxruntime as ort

from benchmarks import generation, partitions
from benchmarks.peers import (
    ROOT,
    Case,
    Row,
    apart,
    by_onnx2tf,
    by_onnx_tf,
    by_onnxruntime,
    milliseconds,
    ours,
    session,
)
from compiler.vendor import onnx_tf
from fixtures import light

CALIBRATION, HELD_OUT = 16, 16
CUT, TPUS = ("resnet50", "inception_v3", "densenet121", "mobilenet_v2", "bert_base"), (2, 4, 8)


def network(name: str, folder: Path) -> Case:
    """A network of the onnx package, raised to an opset that every tool here takes."""
    model = onnx.load(light.generate(name, folder / "model.onnx"))
    weights = {t.name: t for t in model.graph.initializer}
    (value,) = [i.name for i in model.graph.input if i.name not in weights]
    known = {i.name for i in model.graph.input}
    model.graph.input.extend(
        onnx.helper.make_tensor_value_info(n, t.data_type, t.dims)
        for n, t in weights.items()
        if n not in known
    )
    model = onnx.version_converter.convert_version(model, 13)
    inputs = [i for i in model.graph.input if i.name == value]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.ir_version = 8
    onnx.save(model, folder / "model.onnx")
    data = light.pictures(CALIBRATION + HELD_OUT)
    np.savez(folder / "calibration.npz", **{value: data[:CALIBRATION]})
    return reference(Case(name, folder, [{value: row[None]} for row in data[CALIBRATION:]]))


def minilm(source: Path, folder: Path) -> Case:
    (folder / "model.onnx").write_bytes((source / "model.onnx").read_bytes())
    (folder / "calibration.npz").write_bytes((source / "calibration.npz").read_bytes())
    arrays = dict(np.load(source / "test.npz"))
    rows = []
    for i in range(HELD_OUT):
        rows.append({name: array[i : i + 1] for name, array in arrays.items()})
    return reference(Case("minilm", folder, rows))


def reference(case: Case) -> Case:
    run = session(case.folder / "model.onnx")
    names = [
        output.name
        for output in onnx.load(case.folder / "model.onnx", load_external_data=False).graph.output
    ]
    case.want = [dict(zip(names, run(sample), strict=True)) for sample in case.test]
    case.float_ms = milliseconds(run, case)
    return case


def environment(path: Path, python: str, packages: Sequence[str]) -> Path:
    if not (path / "bin" / "python").exists():
        subprocess.run([python, "-m", "venv", path], check=True)
        subprocess.run(
            [path / "bin" / "python", "-m", "pip", "install", "--quiet", *packages], check=True
        )
    return path / "bin" / "python"


def table(rows: Sequence[Row]) -> str:
    def cell(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    lines = [
        "| model | tool | build s | peak MB | SQNR dB | plain dB | cosine | read off | run ms | |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        figures = (
            cell(r.seconds, ".1f"),
            cell(r.peak_mb, ".0f"),
            cell(r.sqnr_db, ".1f"),
            cell(r.plain_sqnr_db, ".1f"),
            cell(r.cosine, ".4f"),
            r.reads,
            cell(r.run_ms, ".2f"),
        )
        lines.append(
            f"| {r.model} | {r.tool} | {' | '.join(figures)} | {r.note.replace('|', ' ')} |"
        )
    return "\n".join(lines)


def cuts() -> list[dict[str, Any]]:
    """Predicted milliseconds of the slowest stage on several Edge TPUs."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name in CUT:
            model = partitions.lowered(name, Path(folder))
            for tpus in TPUS:
                plans = {
                    "coral-bundle": partitions.ours(model, tpus, "throughput")
                } | partitions.peers(model, tpus)
                found += [
                    {
                        "network": name,
                        "tpus": tpus,
                        "cut": label,
                        "interval_ms": 1e3 * plan.interval,
                    }
                    for label, plan in plans.items()
                ]
    return found


def cut_table(found: Sequence[dict[str, Any]]) -> str:
    labels = list(dict.fromkeys(entry["cut"] for entry in found))
    lines = [f"| network | TPUs | {' | '.join(labels)} |", f"|{'---|' * (len(labels) + 2)}"]
    for name, tpus in dict.fromkeys((e["network"], e["tpus"]) for e in found):
        times = [e["interval_ms"] for e in found if (e["network"], e["tpus"]) == (name, tpus)]
        lines.append(f"| {name} | {tpus} | {' | '.join(f'{t:.1f}' for t in times)} |")
    return "\n".join(lines)


Bars = list[tuple[str, float, bool]]
"""(label, value, whether it is ours)."""


def plot(panels: Sequence[tuple[str, Bars]]) -> str:
    """Bars, one panel below the other; none is longer than four times the median, so that one does
    not hide others."""
    left, width, height, parts, y = 330, 760, 22, list[str](), 0
    for title, bars in panels:
        parts.append(f'<text x="10" y="{y + 20}" font-weight="bold">{title}</text>')
        y += 30
        values = [value for _, value, _ in bars]
        most = min(max(values), 4 * statistics.median(values))
        for label, value, own in bars:
            size = min(1.0, max(0.0, value / most)) * (width - left - 60)
            colour = "#1f77b4" if own else "#b0b0b0"
            parts += [
                f'<text x="{left - 8}" y="{y + 14}" text-anchor="end">{label}</text>',
                f'<rect x="{left}" y="{y + 2}" width="{size:.1f}" height="{height - 5}" '
                f'fill="{colour}"/>',
                f'<text x="{left + size + 6:.1f}" y="{y + 14}">{value:.1f}</text>',
            ]
            y += height
        y += 10
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y}" '
        'font-family="sans-serif" font-size="12">'
    )
    return "\n".join([head, *parts, "</svg>"]) + "\n"


def panels(
    rows: Sequence[Row], cut: Sequence[dict[str, Any]], text: dict[str, Any]
) -> list[tuple[str, Bars]]:
    judged = [
        (f"{r.model}, {r.tool}", r.sqnr_db, r.tool == "coral-bundle")
        for r in rows
        if r.sqnr_db is not None
    ]
    found = (
        [("int8 against float, of what varies over held-out samples, dB (more is better)", judged)]
        if judged
        else []
    )
    for tpus in TPUS:
        bars = [
            (f"{e['network']}, {e['cut']}", e["interval_ms"], e["cut"] == "coral-bundle")
            for e in cut
            if e["tpus"] == tpus
        ]
        found.append((f"slowest stage on {tpus} Edge TPUs as predicted, ms (less is better)", bars))
    for index, phase in enumerate(("prefill", "decode")):
        bars = [
            (name, speeds[index], name.startswith("bundle"))
            for name, speeds in text.get("tokens_per_second", {}).items()
        ]
        found += [(f"{phase}, tokens/s (more is better)", bars)] if bars else []
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("--minilm", "--gguf", "--onnx2tf", "--onnx-tf", "--llama"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--networks", default="squeezenet,shufflenet,resnet50")
    parser.add_argument("--output", type=Path, default=ROOT / "docs")
    options = parser.parse_args()
    place = Path.home() / ".cache" / "coral-bundle"
    onnx2tf = options.onnx2tf or environment(
        place / "onnx2tf", "python3.12", ["onnx2tf==2.6.9", "tensorflow", "tf-keras"]
    )
    installed = onnx_tf.home() / "bin" / "python"
    if options.onnx_tf is None and not installed.exists():
        onnx_tf.install("python3.11")
    rows: list[Row] = []
    cases: list[tuple[Callable[..., Case], object]] = [
        (network, n) for n in options.networks.split(",") if n
    ]
    if options.minilm is not None:
        cases.append((minilm, options.minilm))
    for make, source in cases:
        with tempfile.TemporaryDirectory() as folder:
            case = apart(make, source, Path(folder))
            rows.append(
                Row(case.name, f"onnxruntime {ort.__version__} float", run_ms=case.float_ms)
            )
            rows += [
                ours(case),
                by_onnxruntime(case),
                by_onnx_tf(case, options.onnx_tf or installed),
                by_onnx2tf(case, onnx2tf),
            ]
    text: dict[str, Any] = {}
    if options.gguf is not None:
        llama = options.llama or environment(place / "llama", "python3.11", ["llama-cpp-python"])
        text = apart(generation.measure, options.gguf, llama)
    cut = cuts()
    raw = {
        "rows": [asdict(r) for r in rows],
        "calibration": CALIBRATION,
        "held_out": HELD_OUT,
        "cuts": cut,
        "text": text,
    }
    options.output.mkdir(exist_ok=True)
    (options.output / "scoreboard.json").write_text(json.dumps(raw, indent=1) + "\n")
    (options.output / "scoreboard.svg").write_text(plot(panels(rows, cut, text)))
    print(table(rows), cut_table(cut), generation.summary(text) if text else "", sep="\n\n")


if __name__ == "__main__":
    main()
