"""A pass that is not exact is caught, with its name and the first tensor that differs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import passes
from compiler.checks.pass_checks import TOLERANCE, Checker
from compiler.driver import build as building
from compiler.errors import InternalError
from compiler.graph import Builder, Names, array_of
from compiler.targets import Target
from tests.conftest import Cli, save


def double(model: ir.Model, target: Target) -> None:
    """Scales the second convolution's weights."""
    node = next(n for n in model.graph if n.op_type == "Conv" and n.name == "second")
    b = Builder(model, Names(model.graph), node)
    node.replace_input_with(1, b.const(array_of(node.inputs[1]) * 2, "doubled"))  # type: ignore[arg-type]


def cut(model: ir.Model, target: Target) -> None:
    """Leaves a node with an input that nothing makes."""
    node = next(n for n in model.graph if n.name == "relu")
    node.replace_input_with(0, ir.Value(name="nowhere"))


@pytest.mark.parametrize(
    ("broken", "words"), [(double, "'c2' differs"), (cut, "not valid after this pass")]
)
def test_broken_pass(
    broken: passes.Pass, words: str, small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        passes, "PASSES", (*passes.PASSES[:2], ("broken", broken), *passes.PASSES[2:])
    )
    options = building.Options(check_passes=True)
    with pytest.raises(InternalError, match=words) as caught:
        building.lower(building.read(small_model, options), options)
    assert caught.value.stage == "broken"


def test_internal_errors_exit_with_70(
    small_model: Path, monkeypatch: pytest.MonkeyPatch, run_cli: Cli
) -> None:
    monkeypatch.setattr(passes, "PASSES", (*passes.PASSES[:2], ("broken", double)))
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
    options = building.Options(check_passes=True)
    model = building.read(save(tmp_path / "m.onnx", proto), options)
    assert Checker(model, 0).allowed["y"] > TOLERANCE
    building.lower(model, options)
