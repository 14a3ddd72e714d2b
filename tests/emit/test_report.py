"""The page in a browser, where there is one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from compiler.driver import build as building
from compiler.driver.options import BuildOptions
from compiler.emit import manifest, report
from compiler.partition import PartitionOptions
from fixtures import demo
from tests.conftest import save

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


def drawn(page: Path, width: int) -> str:
    """What a browser makes of a page."""
    assert CHROMIUM is not None
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--window-size={width},900",
        "--dump-dom",
    ]
    done = subprocess.run(
        [*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_draws_its_plan(width: int, tmp_path: Path) -> None:
    model = demo.generate(tmp_path)[0]
    options = BuildOptions(partitioning=PartitionOptions(tpus=3, objective="throughput"))
    program = building.plan_program(building.read(model, options), options)
    page = tmp_path / "report.html"
    page.write_text(report.page(manifest.summary(program, model)), encoding="utf-8")
    shown = drawn(page, width)
    segments = program.plan.segments
    assert shown.count('class="segment') == len(segments)
    assert shown.count("segment chosen") == 1 and "Segment " in shown
    assert "The pipeline in steady state" in shown and "TPU 2" in shown


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_the_page_says_what_was_compared_with(tmp_path: Path) -> None:
    """Clip of opset 6 has no kernel for float64, so that the bundle is held against the import."""
    clip = helper.make_node("Clip", ["x"], ["y"], min=-0.5, max=0.5)
    values = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, (4, 3)) for name in "xy"]
    graph = helper.make_graph([clip], "g", values[:1], values[1:])
    opset = helper.make_opsetid("", 10)
    path = save(tmp_path / "m.onnx", helper.make_model(graph, opset_imports=[opset], ir_version=8))
    building.build(path, tmp_path / "b", BuildOptions())
    shown = drawn(tmp_path / "b" / "report.html", 1280)
    assert "Compared with the imported model, not with the file: onnxruntime does not run" in shown


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_the_page_says_how_many_values_are_equal(tmp_path: Path) -> None:
    """Of an output of floats and one of integers."""
    nodes = [
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("ArgMax", ["x"], ["best"], axis=1, keepdims=0),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, (4, 3)) for name in "xy")
    best = helper.make_tensor_value_info("best", TensorProto.INT64, (4,))
    graph = helper.make_graph(nodes, "g", [x], [y, best])
    opset = helper.make_opsetid("", 18)
    path = save(tmp_path / "m.onnx", helper.make_model(graph, opset_imports=[opset], ir_version=8))
    building.build(path, tmp_path / "b", BuildOptions())
    shown = drawn(tmp_path / "b" / "report.html", 1280)
    assert "of values equal at best" in shown and "100.00%" in shown
    assert "measured at y" in shown and "undefined" not in shown[: shown.index("<script")]


def test_names_cannot_break_out_of_the_data() -> None:
    plan = {"model": {"file": "</script><script>alert(1)</script>"}}
    text = report.page(plan)
    assert "<script>alert" not in text and "\\u003cscript>alert(1)" in text


def test_names_cannot_command_the_reader() -> None:
    """Escape sequences, and characters that turn the direction of text, in values and in keys."""
    name = "y\x1b[31m\u202etxt.exe\u2028"
    plan = {"model": {"file": name}, "quality": {"outputs": {name: {"worst": [name]}}}}
    text = report.page(plan)
    assert not any(character in text for character in ("\x1b", "\\u001b", "\u202e", "\u2028"))
    assert text.count("y\\\\x1b[31m\\\\u202etxt.exe\\\\u2028") == 3
