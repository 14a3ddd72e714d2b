"""A pass that is not exact is caught, with its name and the first tensor that differs."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import passes
from compiler.checks.pass_checks import TOLERANCE, Checker
from compiler.driver import build as building
from compiler.driver import quantizing
from compiler.driver.options import BuildOptions
from compiler.errors import InternalError
from compiler.graph import OPSET, Builder, Names, array_of
from compiler.quantize.products import Product
from compiler.targets import Target
from passes import Pass, PassContext
from tests.conftest import Cli, save, small_network

Run = Callable[[ir.Model, PassContext], None]


def double(model: ir.Model, context: PassContext) -> None:
    """Scales the second convolution's weights."""
    node = next(n for n in model.graph if n.op_type == "Conv" and n.name == "second")
    b = Builder(model, Names(model.graph), node)
    node.replace_input_with(1, b.const(array_of(node.inputs[1]) * 2, "doubled"))  # type: ignore[arg-type]


def cut(model: ir.Model, context: PassContext) -> None:
    """Leaves a node with an input that nothing makes."""
    node = next(n for n in model.graph if n.name == "relu")
    node.replace_input_with(0, ir.Value(name="nowhere"))


@pytest.mark.parametrize(
    ("broken", "words"), [(double, "'c2' differs"), (cut, "not valid after this pass")]
)
def test_broken_pass(
    broken: Run, words: str, small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        passes, "PASSES", (*passes.PASSES[:2], Pass("broken", broken), *passes.PASSES[2:])
    )
    options = BuildOptions(check_passes=True)
    with pytest.raises(InternalError, match=words) as caught:
        building.plan_program(building.read(small_model, options), options)
    assert caught.value.stage == "broken"


def blank(model: ir.Model, context: PassContext) -> None:
    """Makes the second convolution's weights something else than numbers."""
    node = next(n for n in model.graph if n.op_type == "Conv" and n.name == "second")
    b = Builder(model, Names(model.graph), node)
    node.replace_input_with(1, b.const(array_of(node.inputs[1]) * np.float32(np.nan), "blank"))  # type: ignore[arg-type]


@pytest.mark.parametrize("opset", [17, OPSET])
@pytest.mark.parametrize("broken", [double, blank])
def test_inner_tensors_are_held_too(
    broken: Run, opset: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proto = small_network()
    proto.opset_import[0].version, proto.ir_version = opset, 10
    monkeypatch.setattr(passes, "PASSES", (Pass("broken", broken),))
    options = BuildOptions(check_passes=True)
    with pytest.raises(InternalError, match="'c2' differs"):
        building.plan_program(building.read(save(tmp_path / "m.onnx", proto), options), options)


def _scaled_output(model: ir.Model) -> None:
    """Multiplies the last layer's weights."""
    node = next(n for n in model.graph if n.op_type == "FullyConnected")
    weight = node.inputs[1]
    assert weight is not None
    b = Builder(model, Names(model.graph), node)
    node.replace_input_with(1, b.const(array_of(weight) * 2, "doubled"))


@pytest.mark.parametrize("name", ["separate", "balance", "equalise"])
def test_steps_behind_the_passes(
    name: str, small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What separates scales, balances and equalises is held to the same as passes are."""
    module = importlib.import_module(f"passes.{name}")
    run = getattr(module, name)

    def broken(*arguments: Any) -> Any:
        # This model has no normalised product to balance.
        found = {} if name == "balance" else run(*arguments)
        _scaled_output(arguments[0])
        return found

    monkeypatch.setattr(module, name, broken)
    if name == "balance":
        made = ir.node("Relu", [], num_outputs=1)
        (z,) = made.outputs
        product = Product(made, made, z, z, z, z)
        monkeypatch.setattr(quantizing, "balanced", lambda program: {"any": product})
    with pytest.raises(InternalError, match=r"tensor '\w+' differs") as caught:
        building.build(small_model, small_model.with_suffix(".b"), BuildOptions(check_passes=True))
    assert caught.value.stage == name


def test_equalised_activations_are_no_alarm(tmp_path: Path) -> None:
    """One channel is a thousand times smaller than the others; its factor shows inside, and not at
    the end."""
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 23]> g (float[1,8,6,6] x) => (float[1,8,6,6] y)'
        " { c = Conv (x, w) r = Relu (c) y = Conv (r, v) }"
    )
    small = rng.normal(size=(8, 8, 1, 1))
    small[3] /= 1000
    arrays = {"w": small, "v": rng.normal(size=(8, 8, 1, 1))}
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()
    )
    path = save(tmp_path / "m.onnx", proto)
    options = BuildOptions(check_passes=True, keep_float=50)
    seen: list[set[str]] = []
    check = Checker.check

    def watched(self: Checker, name: str, model: ir.Model, rescaled: Any = ()) -> None:
        check(self, name, model, rescaled)
        seen.append(set(rescaled))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checker, "check", watched)
        building.build(path, tmp_path / "b", options)
    assert any(seen)


def test_outputs_are_held_against_the_file(tmp_path: Path) -> None:
    """Not only against the import: a checker of another file's import says so at the first step."""
    path = save(tmp_path / "m.onnx", small_network())
    model = building.read(path, BuildOptions())
    double(model, PassContext(Target.load()))
    with pytest.raises(InternalError, match="'y' differs"):
        Checker(model, 0, path).check("import", model)


def test_internal_errors_exit_with_70(
    small_model: Path, monkeypatch: pytest.MonkeyPatch, run_cli: Cli
) -> None:
    monkeypatch.setattr(passes, "PASSES", (*passes.PASSES[:2], Pass("broken", double)))
    code, _, err = run_cli("build", small_model, "--check-passes")
    assert code == 70 and "stage 'broken'" in err and "report it" in err


def test_networks_that_blow_rounding_up_are_no_alarm(tmp_path: Path) -> None:
    """A sine of large numbers: what folding the factor rounds otherwise goes far beyond the
    tolerance."""
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 23]> g (float[1,8,6,6] x) => (float[1,8,6,6] y)'
        " { c = Conv (x, w) m = Mul (c, gain) y = Sin (m) }"
    )
    arrays = {"w": rng.normal(size=(8, 8, 1, 1)), "gain": rng.uniform(2e3, 4e3, (8, 1, 1))}
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()
    )
    options = BuildOptions(check_passes=True)
    model = building.read(save(tmp_path / "m.onnx", proto), options)
    assert Checker(model, 0).allowed["y"] > TOLERANCE
    building.plan_program(model, options)
