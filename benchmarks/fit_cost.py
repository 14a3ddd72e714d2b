"""Fits the cost model to public figures and tells how far it is off for networks that the fit has
not seen.

    python -m benchmarks.fit_cost FOLDER

FOLDER holds pairs.json (compiled models with the compiler's own `estimated_cycles_64`) and
latency.json (rows of coral.ai's benchmark and model pages: `model`, `usb_ms`, `devboard_ms`).
Prints what belongs into compiler/targets/chips/edgetpu.toml and compiler/targets/*.toml. Cycles are
fitted by least squares, latencies by the least mean absolute error, both relative.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from ortools.linear_solver import pywraplp

from benchmarks.groundtruth import operators
from compiler.device import cost
from compiler.driver import build
from compiler.driver.options import BuildOptions
from compiler.graph import element_count
from compiler.ops import BUILTINS
from compiler.ops.rules import OpInfo, TensorInfo
from compiler.partition import streamed
from compiler.targets import Host, Target
from fixtures import networks

# Rows of latency.json whose architecture fixtures/networks.py knows, and the family that is left
# out with them.
ROWS = {
    "DenseNet (224x224)": ("densenet121", "densenet"),
    "Inception v1 (224x224)": ("inception_v1", "inception v1"),
    "Inception V1": ("inception_v1", "inception v1"),
    "Inception V3": ("inception_v3", "inception v3"),
    "Inception v4 (299x299)": ("inception_v4", "inception v4"),
    "Inception V4": ("inception_v4", "inception v4"),
    "Inception-ResNet V2 (299x299)": ("inception_resnet_v2", "inception-resnet"),
    "MobileNet v1 (224x224)": ("mobilenet_v1", "mobilenet"),
    "MobileNet V1 0.25": ("mobilenet_v1_0.25_128", "mobilenet"),
    "MobileNet v2 (224x224)": ("mobilenet_v2", "mobilenet"),
    "ResNet-50 V1 (299x299)": ("resnet50_299", "resnet"),
    "ResNet-50 V2 (299x299)": ("resnet50_v2_299", "resnet"),
    "ResNet-152 V2 (299x299)": ("resnet152_v2_299", "resnet"),
    "SqueezeNet (224x224)": ("squeezenet", "squeezenet"),
    "VGG16 (224x224)": ("vgg16", "vgg"),
    "VGG19 (224x224)": ("vgg19", "vgg"),
    "EfficientNet-EdgeTpu-S": ("efficientnet_edge_s", "efficientnet"),
    "EfficientNet-EdgeTpu-M": ("efficientnet_edge_m", "efficientnet"),
    "EfficientNet-EdgeTpu (S)": ("efficientnet_edge_s", "efficientnet"),
    "EfficientNet-EdgeTpu (M)": ("efficientnet_edge_m", "efficientnet"),
    "EfficientNet-EdgeTpu (L)": ("efficientnet_edge_l", "efficientnet"),
}
# google-coral/edgetpu, benchmarks/reference/basic_engine_reference_rp3b.csv: Raspberry Pi 3B, USB
# 2, milliseconds.
USB2 = {"inception_v1": 19.21, "inception_v4": 1060.16, "mobilenet_v1": 9.22, "mobilenet_v2": 10.77}

# Jorgitou98/EdgeTPU-QuantRL-Evaluation, commit ecd386c, milliseconds by width: networks
# 64-N-N-N-N-10 (FC_MACs/results/minN100-maxN2640-stepN40-L4-I64.csv), and five 3x3 convolutions of
# N filters on 64 x 64 x 3 images (CONV_MACs/results/minF32-maxF702-stepF10.csv). Invocations take
# at least 0.21 ms on USB (RingCanary), 0.08 here.
DENSE = {
    260: 0.110,
    500: 0.150,
    740: 0.134,
    980: 0.173,
    1220: 0.173,
    1460: 0.254,
    1700: 8.085,
    1940: 10.443,
}
DENSE |= {2180: 25.730, 2420: 30.881}
CONV = {
    32: 2.150,
    102: 6.581,
    202: 14.392,
    302: 23.699,
    402: 37.755,
    452: 61.607,
    522: 96.895,
    582: 116.807,
}
CONV |= {642: 232.828, 702: 254.284}


@dataclass(frozen=True)
class Sample:
    """`known` milliseconds are not fitted; `features` are."""

    name: str
    family: str
    real: float
    known: float
    features: tuple[float, ...]


def fit(samples: Sequence[Sample], least: float = 0.0) -> list[float]:
    """Non-negative coefficients with the least mean absolute relative error; the first is at least
    `least`."""
    solver = pywraplp.Solver.CreateSolver("GLOP")
    floors = [least, *[0.0] * (len(samples[0].features) - 1)]
    coefficients = [solver.NumVar(floor, solver.infinity(), "") for floor in floors]
    errors = []
    for sample in samples:
        error = solver.NumVar(0, solver.infinity(), "")
        predicted = sum(
            c * (f / sample.real) for c, f in zip(coefficients, sample.features, strict=True)
        )
        solver.Add(predicted + sample.known / sample.real - 1 <= error)
        solver.Add(1 - predicted - sample.known / sample.real <= error)
        errors.append(error)
    solver.Minimize(solver.Sum(errors))
    assert solver.Solve() == pywraplp.Solver.OPTIMAL
    return [c.solution_value() for c in coefficients]


def predict(sample: Sample, coefficients: Sequence[float]) -> float:
    return sample.known + sum(c * f for c, f in zip(coefficients, sample.features, strict=True))


def squares(samples: Sequence[Sample], least: float = 0.0) -> list[float]:
    """Coefficients with the least squares of relative errors."""
    rows = np.array([np.array(s.features) / s.real for s in samples])
    rest = np.array([1 - s.known / s.real for s in samples])
    coefficients = np.linalg.lstsq(rows, rest, rcond=None)[0]
    return [float(c) for c in coefficients]


Fit = Callable[[Sequence[Sample], float], list[float]]


def held_out(samples: Sequence[Sample], least: float, how: Fit) -> list[tuple[Sample, float]]:
    """Each sample as predicted by a fit that saw nothing of its family."""
    found = []
    for family in dict.fromkeys(s.family for s in samples):
        coefficients = how([s for s in samples if s.family != family], least)
        found += [(s, predict(s, coefficients)) for s in samples if s.family == family]
    return found


def show(
    title: str, names: Sequence[str], samples: Sequence[Sample], least: float = 0.0, how: Fit = fit
) -> None:
    coefficients = how(samples, least)
    print(
        f"\n{title}: " + ", ".join(f"{n} {c:.6g}" for n, c in zip(names, coefficients, strict=True))
    )
    unseen = held_out(samples, least, how)
    for sample, predicted in unseen:
        print(f"  {sample.name:34} real {sample.real:10.2f}  predicted unseen {predicted:10.2f}")
    print(f"  mean absolute error of unseen: {error(unseen):.1%} over {len(unseen)} rows")


def error(rows: Sequence[tuple[Sample, float]]) -> float:
    return sum(abs(p - s.real) / s.real for s, p in rows) / len(rows)


def cycles(folder: Path, target: Target) -> list[Sample]:
    """The compiler's own cycles against the work of each kind."""
    kinds = ("pointwise", "depthwise", "vector")
    samples = {}
    for pair in json.loads((folder / "pairs.json").read_text()):
        real = 0
        for operator in pair["custom_ops"]:
            real += sum(e.get("estimated_cycles_64", 0) for e in operator["executables"])
        if real < 10_000:
            continue  # nothing but a fixed cost
        amounts = dict.fromkeys((*kinds, "conv", "dense", "broadcast"), 0.0)
        for op in operators(pair)[: pair["n_ops"] - pair["n_cpu"]]:
            work = BUILTINS[op.builtin].work(op, target)
            amounts[work.kind] += work.amount
        known = sum(amounts[kind] / getattr(target, kind) for kind in ("conv", "dense"))
        known += amounts["broadcast"] / target.broadcast
        name = pair["name"].split("__")[-1]
        samples[real] = Sample(name[-34:], name[:22], real, known, tuple(amounts[k] for k in kinds))
    return list(samples.values())


def network(name: str, target: Target, folder: Path) -> dict[str, Any]:
    """What the prediction of a whole network on one Edge TPU is made of."""
    # Published are networks as others convert them.
    options = BuildOptions(without=("cache_constants",))
    program = build.plan_program(build.read(networks.generate(name, folder), options), options)
    nodes = [*program.model.graph]
    host, placements = Host.load(), program.plan.placements
    costs = [cost.of_node(n, target, host, placements[n].device == "tpu") for n in nodes]
    return {
        "operators": sum(c.tpu > 0 for c in costs),
        "compute": 1e3 * sum(c.tpu for c in costs),
        "streamed": streamed(costs, target)[1],
        "in": sum(map(element_count, program.model.graph.inputs)),
        "out": sum(map(element_count, program.model.graph.outputs)),
    }


def latencies(
    rows: Sequence[tuple[str, str, str, float]], target: Target, link_in_stream: bool
) -> list[Sample]:
    """Milliseconds of each row; what is fitted are invocation, streamed bytes, compute, and
    operators."""
    bare = Target(**{**vars(target), "operator": 0.0, "slowdown": 1.0})
    samples, made = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for label, name, family, real in rows:
            made[name] = made.get(name) or network(name, bare, Path(folder))
            m = made[name]
            if link_in_stream:
                known = m["compute"] * target.slowdown + m["operators"] * target.operator * 1e3
                samples.append(Sample(label, family, real, known, (1, m["streamed"] + m["in"])))
            else:
                known = 1e3 * (m["in"] / target.down + m["out"] / target.up)
                features = (1, m["streamed"], m["compute"], m["operators"])
                samples.append(Sample(label, family, real, known, features))
    return samples


def sweep(target: Target) -> list[tuple[Sample, float]]:
    """The published sweeps on PCIe, as predicted."""
    rows = []
    for size, real in DENSE.items():
        sizes = [64, size, size, size, size, 10]
        ops = [
            OpInfo("FULLY_CONNECTED", 4, (_tensor(1, i), _weights(o, i)), (_tensor(1, o),), {})
            for i, o in pairwise(sizes)
        ]
        rows.append((Sample(f"dense {size}", "", real, 0, ()), predict_operators(ops, target)))
    for size, real in CONV.items():
        ops = [
            OpInfo(
                "CONV_2D",
                3,
                (_tensor(1, 64, 64, i), _weights(size, 3, 3, i)),
                (_tensor(1, 64, 64, size),),
                {},
            )
            for i in (3, size, size, size, size)
        ]
        rows.append((Sample(f"conv {size}", "", real, 0, ()), predict_operators(ops, target)))
    return rows


def _tensor(*shape: int) -> TensorInfo:
    return TensorInfo("a tensor", shape, "int8")


def _weights(*shape: int) -> TensorInfo:
    return TensorInfo("weights", shape, "int8", True)


def predict_operators(ops: Sequence[OpInfo], target: Target) -> float:
    """Milliseconds of a chain of operators in one invocation."""
    costs = [cost.of_operators([op], target) for op in ops]
    ends = ops[0].activations[0].elements / target.down + ops[-1].outputs[0].elements / target.up
    return 1e3 * (target.invoke + sum(c.tpu for c in costs) + ends + streamed(costs, target)[2])


def main(folder: Path) -> None:
    usb3 = Target.load("usb3")
    show("cycles per unit", ("pointwise", "depthwise", "vector"), cycles(folder, usb3), how=squares)
    table = [e for e in json.loads((folder / "latency.json").read_text()) if e["model"] in ROWS]
    names = ("invoke ms", "stream ms/byte", "slowdown", "operator ms")
    for target, column, least in (
        (usb3, "usb_ms", 0.21),
        (Target.load("devboard"), "devboard_ms", 0.08),
    ):
        rows = [(e["model"], *ROWS[e["model"]], e[column]) for e in table if e.get(column)]
        show(f"{target.name}: milliseconds", names, latencies(rows, target, False), least)
    rows = [(name, name, name, real) for name, real in USB2.items()]
    show("usb2: milliseconds", names[:2], latencies(rows, Target.load("usb2"), True))

    print("\npcie: milliseconds")
    rows = sweep(Target.load("pcie"))
    for sample, predicted in rows:
        print(f"  {sample.name:34} real {sample.real:10.2f}  predicted {predicted:10.2f}")
    print(
        f"  mean absolute error: {error(rows):.1%} over {len(rows)} rows, "
        "of which some gave the rates"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
