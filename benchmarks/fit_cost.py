"""Fits the cost model to public figures and tells how far it is off for networks that the fit has
not seen.

    python -m benchmarks.fit_cost FOLDER

FOLDER holds pairs.json (compiled models with the compiler's own `estimated_cycles_64`) and
latency.json (rows of coral.ai's benchmark and model pages: `model`, `usb_ms`, `devboard_ms`).
Prints what belongs into compiler/targets/chips/edgetpu.toml and compiler/targets/*.toml. Cycles are
fitted by least squares, latencies by the least mean absolute error, both relative. Of a link only
the time of an invocation and that of an operator, or on a Raspberry Pi 4 that of a byte, are
fitted; the other rates were measured by others.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from ortools.linear_solver import pywraplp

from benchmarks.groundtruth import operators
from compiler.device import cost
from compiler.driver import build
from compiler.driver.options import BuildOptions
from compiler.graph import element_count
from compiler.ops import BUILTINS
from compiler.ops.rules import OpInfo, TensorInfo
from compiler.partition import PartitionOptions, streamed
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
_FAMILIES = dict(ROWS.values())
# Milliseconds of google-coral/edgetpu, benchmarks/reference/basic_engine_reference_*.csv, by target
# and host; on PCIe those of a Raspberry Pi Compute Module 4 (its issue 280, models_benchmark).
REFERENCE = {
    ("usb3", "desktop"): {
        "inception_v1": 3.06,
        "inception_v4": 84.25,
        "mobilenet_v1": 2.17,
        "mobilenet_v2": 2.29,
        "ssd_mobilenet_v1": 10.02,
        "ssd_mobilenet_v2_face": 5.36,
    },
    ("devboard", "devboard"): {
        "inception_v1": 4.0,
        "inception_v4": 100.33,
        "mobilenet_v1": 2.22,
        "mobilenet_v2": 2.56,
        "ssd_mobilenet_v1": 14.83,
        "ssd_mobilenet_v2_face": 7.78,
    },
    ("usb3", "pi4"): {
        "inception_v1": 6.21,
        "inception_v4": 141.2,
        "mobilenet_v1": 4.20,
        "mobilenet_v2": 4.55,
        "ssd_mobilenet_v1": 15.09,
        "ssd_mobilenet_v2_face": 9.31,
    },
    ("pcie", "pi4"): {
        "mobilenet_v1": 2.474,
        "mobilenet_v1_0.25_128": 0.993,
        "mobilenet_v1_0.5_160": 1.335,
    },
    ("usb2", "pi3"): {
        "inception_v1": 19.21,
        "inception_v4": 1060.16,
        "mobilenet_v1": 9.22,
        "mobilenet_v2": 10.77,
    },
}
# Detectors, whose results the host selects: the first gives `scalars` of its host, the others are
# not fitted. Those of coral.ai are of its C++ benchmark.
DETECTORS = ("ssd_mobilenet_v1", "ssd_mobilenet_v2_face")
DETECTOR_ROWS = {
    "MobileNet v1 SSD (224x224)": "ssd_mobilenet_v1",
    "MobileNet v2 SSD (224x224)": "ssd_mobilenet_v2",
}
# Compiled models of pairs.json whose milliseconds coral.ai's page on pose estimation gives (USB 3);
# nothing was fitted to them.
COMPILED = {
    "posenet_mobilenet_v1_075_353_481_quant_decoder": 5.8,
    "posenet_mobilenet_v1_075_481_641_quant_decoder": 10.3,
    "posenet_mobilenet_v1_075_721_1281_quant_decoder": 32.4,
}
# Weights of the models that TensorFlow Lite hosts under these names, from the sizes of their float
# files (43.6 and 121.0 MiB; tensorflow.org/lite/guide/hosted_models). They are not those of the
# papers' networks: DenseNet-121 has 8.0 x 10^6, Inception-ResNet v2 55.8 x 10^6. Assumed: coral.ai
# measured these, as the names are theirs; the 55.8 MB would not pass a link of 500 MB/s in the
# 57 ms that were published. Both networks fill the SRAM, so that what they have more streams, and
# what they have less does not.
HOSTED = {
    "DenseNet (224x224)": int(43.6 * 2**20 / 4),
    "Inception-ResNet V2 (299x299)": int(121.0 * 2**20 / 4),
}

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
class Row:
    """A published latency, in milliseconds, of a network of fixtures/networks.py."""

    label: str
    name: str
    family: str
    real: float


@dataclass(frozen=True)
class Sample:
    """`known` milliseconds are not fitted; `features` are."""

    name: str
    family: str
    real: float
    known: float
    features: tuple[float, ...]


def fit(samples: Sequence[Sample], least: Sequence[float] = ()) -> list[float]:
    """Coefficients with the least mean absolute relative error, each at least the one of `least`,
    or 0."""
    solver = pywraplp.Solver.CreateSolver("GLOP")
    floors = least or [0.0] * len(samples[0].features)
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


def squares(samples: Sequence[Sample], least: Sequence[float] = ()) -> list[float]:
    """Coefficients with the least squares of relative errors."""
    rows = np.array([np.array(s.features) / s.real for s in samples])
    rest = np.array([1 - s.known / s.real for s in samples])
    coefficients = np.linalg.lstsq(rows, rest, rcond=None)[0]
    return [float(c) for c in coefficients]


Fit = Callable[[Sequence[Sample], Sequence[float]], list[float]]


def held_out(
    samples: Sequence[Sample], least: Sequence[float], how: Fit
) -> list[tuple[Sample, float]]:
    """Each sample as predicted by a fit that saw nothing of its family."""
    found = []
    for family in dict.fromkeys(s.family for s in samples):
        coefficients = how([s for s in samples if s.family != family], least)
        found += [(s, predict(s, coefficients)) for s in samples if s.family == family]
    return found


def show(
    title: str,
    names: Sequence[str],
    samples: Sequence[Sample],
    least: Sequence[float] = (),
    how: Fit = fit,
) -> None:
    """Print the coefficients, each row as predicted unseen, and the error of these."""
    coefficients = how(samples, least)
    named = [f"{name} {value:.6g}" for name, value in zip(names, coefficients, strict=True)]
    print(f"\n{title}: {', '.join(named)}")
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


Fitted = Literal["invocation", "invocation and operator", "invocation and byte"]


@dataclass(frozen=True)
class Parts:
    """What the prediction of a whole network on one Edge TPU is made of: its weights, bytes in and
    out, those that stream, operators, milliseconds of computing, what streaming adds to these, and
    of the host behind the Edge TPU."""

    weights: int
    sent: int
    received: int
    streamed: int
    operators: int
    compute: float
    excess: float
    tail: float


def parts(name: str, target: Target, host: str, folder: Path) -> Parts:
    """What the prediction of a network of fixtures/networks.py is made of."""
    options = BuildOptions(
        target=target.name,
        partitioning=PartitionOptions(host=host),
        # Published are networks as others convert them.
        without=frozenset({"cache_constants"}),
    )
    path = networks.generate(name, folder)
    weights = onnx.load(path, load_external_data=False).graph.initializer
    program = build.plan_program(build.read(path, options), options)
    segments = program.plan.segments
    on_tpu = [segment for segment in segments if segment.device == "tpu"]
    nodes = [node for segment in on_tpu for node in segment.nodes]
    bare = Target(**{**vars(target), "operator": 0.0})
    costs = [cost.of_node(node, bare, Host.load(host), True) for node in nodes]
    behind = [s for s in segments[on_tpu[0].index :] if s.device == "host"]
    return Parts(
        weights=sum(math.prod(weight.dims) for weight in weights),
        sent=sum(map(element_count, on_tpu[0].inputs)),
        received=sum(element_count(value) for s in on_tpu for value in s.outputs),
        streamed=streamed(costs, bare)[1],
        operators=sum(c.tpu > 0 for c in costs),
        compute=1e3 * sum(c.tpu for c in costs),
        excess=1e3 * streamed(costs, bare)[2],
        tail=1e3 * sum(s.seconds for s in behind),
    )


def latencies(rows: Sequence[Row], target: Target, host: str, fitted: Fitted) -> list[Sample]:
    """The rows as samples, whose features are what `fitted` names, in milliseconds."""
    samples = []
    made: dict[str, Parts] = {}
    with tempfile.TemporaryDirectory() as folder:
        for row in rows:
            if row.name not in made:
                made[row.name] = parts(row.name, target, host, Path(folder))
            part = made[row.name]
            known = part.compute + part.tail + 1e3 * part.received / target.up
            if row.label in HOSTED:
                known += 1e3 * (HOSTED[row.label] - part.weights) / target.stream
            operators = 1e3 * part.operators * target.operator
            link = 1e3 * part.sent / target.down + part.excess
            features: tuple[float, ...] = (1.0,)
            if fitted == "invocation":
                known += operators + link
            elif fitted == "invocation and operator":
                known += link
                features = (1.0, float(part.operators))
            else:
                # What streams in the shadow of computing takes no time of its own.
                hidden = 1e3 * part.streamed / target.stream - part.excess
                known += operators - hidden
                features = (1.0, float(part.sent + part.streamed))
            samples.append(Sample(row.label, row.family, row.real, known, features))
    return samples


def compiled(folder: Path, target: Target) -> list[tuple[Sample, float]]:
    """The models of COMPILED as predicted, without what is left to the CPU. Their DMA hints tell
    the bytes that go in and out."""
    rows = []
    seen = set()
    for pair in json.loads((folder / "pairs.json").read_text()):
        for name, real in COMPILED.items():
            if name in seen or not pair["name"].endswith(name):
                continue
            seen.add(name)
            ops = operators(pair)[: pair["n_ops"] - pair["n_cpu"]]
            costs = [cost.of_operators([op], target) for op in ops]
            moved = pair["custom_ops"][0]["executables"][0]["dma_bytes"]
            ends = moved["input"] / target.down + moved["output"] / target.up
            busy = sum(c.tpu for c in costs) + streamed(costs, target)[2]
            predicted = 1e3 * (target.invoke + ends + busy)
            rows.append((Sample(name[-34:], "", real, 0, ()), predicted))
    return rows


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


def published(folder: Path, column: str) -> list[Row]:
    """Rows of latency.json whose network is known."""
    rows = []
    for entry in json.loads((folder / "latency.json").read_text()):
        if entry["model"] in ROWS and entry.get(column):
            rows.append(Row(entry["model"], *ROWS[entry["model"]], entry[column]))
    return rows


def reference(target: str, host: str, by_family: bool = True) -> list[Row]:
    """Rows of REFERENCE that run on the Edge TPU alone; where they are all that there is, each
    network stands for itself."""
    rows = []
    for name, real in REFERENCE[target, host].items():
        if name not in DETECTORS:
            family = _FAMILIES[name] if by_family else name
            rows.append(Row(f"reference {name}", name, family, real))
    return rows


def detectors(folder: Path, target: str, host: str, column: str) -> None:
    """Print what the cost model says of detectors, most of which nothing was fitted to."""
    rows = []
    for name in DETECTORS:
        rows.append(Row(f"reference {name}", name, name, REFERENCE[target, host][name]))
    for entry in json.loads((folder / "latency.json").read_text()):
        if entry["model"] in DETECTOR_ROWS and entry.get(column):
            rows.append(Row(entry["model"], DETECTOR_ROWS[entry["model"]], "", entry[column]))
    loaded = Target.load(target, host)
    found = []
    for sample in latencies(rows, loaded, host, "invocation and operator"):
        predicted = predict(sample, (1e3 * loaded.invoke, 1e3 * loaded.operator))
        found.append((sample, predicted))
    list_predictions(found)
    held = [(s, p) for s, p in found if s.name != f"reference {DETECTORS[0]}"]
    print(f"  mean absolute error: {error(held):.1%} over {len(held)} rows that were not fitted")


def list_predictions(rows: Sequence[tuple[Sample, float]]) -> None:
    for sample, predicted in rows:
        print(f"  {sample.name:34} real {sample.real:10.2f}  predicted {predicted:10.2f}")


def main(folder: Path) -> None:
    usb3 = Target.load("usb3")
    show("cycles per unit", ("pointwise", "depthwise", "vector"), cycles(folder, usb3), how=squares)
    on_link: Fitted = "invocation and operator"
    # An invocation takes at least 0.21 ms on USB (RingCanary), 0.08 on PCIe.
    for target, host, column, least in (
        ("usb3", "desktop", "usb_ms", 0.21),
        ("devboard", "devboard", "devboard_ms", 0.08),
    ):
        rows = published(folder, column) + reference(target, host)
        samples = latencies(rows, Target.load(target, host), host, on_link)
        names = ("invocation", "operator")
        show(f"{target} on {host}: milliseconds", names, samples, (least, 0.0))
        detectors(folder, target, host, column)
    known = compiled(folder, Target.load("usb3", "desktop"))
    print("\nusb3 on desktop: compiled models that nothing was fitted to")
    list_predictions(known)
    print(f"  mean absolute error: {error(known):.1%} over {len(known)} rows")
    # A Raspberry Pi is no faster than a desktop computer.
    floors = (1e3 * usb3.invoke, 1e3 / usb3.down)
    loaded = Target.load("usb3", "pi4")
    pi4 = latencies(reference("usb3", "pi4", False), loaded, "pi4", "invocation and byte")
    show("usb3 on pi4: milliseconds", ("invocation", "byte sent"), pi4, floors)
    detectors(folder, "usb3", "pi4", "")
    for target, host in (("usb2", "pi3"), ("pcie", "pi4")):
        rows = reference(target, host, False)
        samples = latencies(rows, Target.load(target, host), host, "invocation")
        show(f"{target} on {host}: milliseconds", ("invocation",), samples)

    print("\npcie on desktop: milliseconds")
    swept = sweep(Target.load("pcie"))
    list_predictions(swept)
    print(
        f"  mean absolute error: {error(swept):.1%} over {len(swept)} rows, "
        "of which some gave the rates"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
