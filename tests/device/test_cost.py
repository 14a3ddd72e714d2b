"""Predictions against public measurements, and what they must grow with."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from benchmarks import fit_cost
from compiler.device import cost
from compiler.driver import build as building
from compiler.driver.options import BuildOptions
from compiler.errors import OptionError
from compiler.ops.rules import OpInfo, TensorInfo
from compiler.targets import Host, Target
from fixtures import networks

GROUNDTRUTH = Path(__file__).parents[3] / "shared" / "groundtruth"
needs_groundtruth = pytest.mark.skipif(
    not GROUNDTRUTH.is_dir(), reason="needs ../shared/groundtruth"
)


def convolution(size: int, inputs: int, outputs: int, kernel: int) -> OpInfo:
    return OpInfo(
        "CONV_2D",
        3,
        (
            TensorInfo("x", (1, size, size, inputs), "int8"),
            TensorInfo("w", (outputs, kernel, kernel, inputs), "int8", True, False, outputs),
        ),
        (TensorInfo("y", (1, size, size, outputs), "int8"),),
        {},
    )


def test_work_counts_what_the_device_pads() -> None:
    usb3 = Target.load()
    few = cost.of_operators([convolution(8, 1, 16, 3)], usb3).tpu
    four = cost.of_operators([convolution(8, 4, 16, 3)], usb3).tpu
    more = cost.of_operators([convolution(8, 8, 65, 3)], usb3)
    (parameters,) = more.parameters
    assert few == four
    assert more.tpu == pytest.approx((four - usb3.operator) * 2 * 128 / 16 + usb3.operator)
    assert more.macs == 64 * 9 * 8 * 65 and more.activations == 64 * (8 + 65)
    assert parameters.bytes == 128 * (9 * 8 + 8)
    assert parameters.stream == pytest.approx(parameters.bytes / usb3.stream)


def test_large_images_fetch_streamed_weights_again() -> None:
    """Published: five times 64 x 64 images of 452 channels, a streamed convolution takes 3.6 times
    a dense layer."""
    pcie = Target.load("pcie")
    (parameters,) = cost.of_operators([convolution(64, 452, 452, 3)], pcie).parameters
    assert 3 <= parameters.stream / (parameters.bytes / pcie.stream) <= 5


@pytest.mark.parametrize("name", ["usb3", "usb2", "pcie", "devboard"])
def test_targets_load_and_links_differ(name: str) -> None:
    target = Target.load(name)
    assert target.name == name and target.up < target.down and 0 < target.error_percent < 50


def test_hosts() -> None:
    assert Host.load("pi5").macs > Host.load("pi4").macs
    with pytest.raises(OptionError, match="host pi6"):
        Host.load("pi6")


def test_own_files_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    for text, what in (
        ("name = 'x'\ndescription = ''\nmacs = 'fast'\nbytes = 1\noperator = 0\n", "macs = 'fast'"),
        ("name = 'x'\ndescription = ''\nmacs = 1\nbytes = 1\n", "operator"),
        ("name = 'x", "x.toml"),
    ):
        path.write_text(text)
        with pytest.raises(OptionError, match=what):
            Host.load(str(path))


def test_pcie_sweeps_are_predicted() -> None:
    """Fully-connected networks that stream, within 3%: the row that streams 11 MiB takes 31 ms."""
    rows = {s.name: (s.real, predicted) for s, predicted in fit_cost.sweep(Target.load("pcie"))}
    for name in ("dense 1700", "dense 1940", "dense 2180", "dense 2420"):
        real, predicted = rows[name]
        assert predicted == pytest.approx(real, rel=0.03)
    assert fit_cost.error(fit_cost.sweep(Target.load("pcie"))) <= 0.2


@needs_groundtruth
def test_cycles_of_unseen_models() -> None:
    samples = fit_cost.cycles(GROUNDTRUTH, Target.load())
    assert len(samples) >= 10
    assert fit_cost.error(fit_cost.held_out(samples, 0.0, fit_cost.squares)) <= 0.2


@pytest.mark.parametrize(
    ("name", "target", "real"),
    [
        ("mobilenet_v2", "usb3", 2.6),
        ("inception_v1", "usb3", 3.4),
        ("resnet50_299", "usb3", 49.0),
        ("inception_v3", "usb3", 42.8),
        ("resnet50_299", "devboard", 56.0),
    ],
)
def test_published_latencies(name: str, target: str, real: float, tmp_path: Path) -> None:
    """coral.ai's benchmark table, within twice the stated error; benchmarks/fit_cost.py does all
    rows, unseen."""
    options = BuildOptions(target=target)
    program = building.plan_program(
        building.read(networks.generate(name, tmp_path), options), options
    )
    tpu = [s for s in program.plan.segments if s.device == "tpu"]
    predicted = 1e3 * sum(s.seconds for s in tpu)
    assert predicted == pytest.approx(real, rel=2 * program.target.error_percent / 100)


@pytest.mark.parametrize(("target", "real"), [("usb3", 20.0), ("devboard", 25.0)])
def test_normalisations_that_stay_are_slow(target: str, real: float, tmp_path: Path) -> None:
    """coral.ai's row of DenseNet, as others convert it: 62 pairs of MUL and ADD. The rate of these
    is from the first."""
    options = BuildOptions(target=target, without=frozenset({"cache_constants"}))
    path = networks.generate("densenet121", tmp_path)
    plan = building.plan_program(building.read(path, options), options).plan
    (segment,) = [s for s in plan.segments if s.device == "tpu"]
    assert 1e3 * segment.seconds == pytest.approx(real, rel=0.2)
    assert 1.0 < segment.streamed / 2**20 < 2.0


def test_a_fit_finds_what_made_the_data() -> None:
    rows = [(1.0, 2.0), (1.0, 5.0), (1.0, 9.0), (1.0, 1.0)]
    samples = [
        fit_cost.Sample(str(i), str(i), 3 * a + 0.5 * b + 1, 1.0, (a, b))
        for i, (a, b) in enumerate(rows)
    ]
    assert fit_cost.fit(samples) == pytest.approx([3, 0.5])
    assert fit_cost.squares(samples) == pytest.approx([3, 0.5])
    assert fit_cost.fit(samples, 4.0)[0] >= 4.0
    assert fit_cost.error(fit_cost.held_out(samples, 0.0, fit_cost.fit)) == pytest.approx(
        0, abs=1e-6
    )


@pytest.mark.slow
def test_float_multiplications_on_the_host(tmp_path: Path) -> None:
    """A transformer's products of two activations, which the Edge TPU does not take."""
    options = BuildOptions()
    path = networks.generate("bert_base", tmp_path)
    program = building.plan_program(building.read(path, options), options)
    attention = [n for n in program.model.graph if n.op_type == "Attention"]
    assert attention and all(cost.float_macs(n) == 2 * 12 * 128 * 128 * 64 for n in attention)
    faster = dataclasses.replace(Host.load(), macs=1e15, bytes=1e15)
    assert cost.on_host(attention[0], faster) == pytest.approx(faster.operator, rel=0.01)
