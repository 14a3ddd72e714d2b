"""The page in a browser, where there is one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from compiler.driver import build as building
from compiler.driver.options import BuildOptions
from compiler.emit import manifest
from compiler.partition import PartitionOptions
from compiler.view import page as html
from fixtures import demo

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_draws_its_plan(width: int, tmp_path: Path) -> None:
    model = demo.generate(tmp_path)[0]
    options = BuildOptions(partitioning=PartitionOptions(tpus=3, objective="throughput"))
    program = building.plan_program(building.read(model, options), options)
    page = tmp_path / "page.html"
    page.write_text(html.page(manifest.summary(program, model)), encoding="utf-8")
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
    segments = program.plan.segments
    assert done.stdout.count('class="segment') == len(segments)
    assert done.stdout.count("segment chosen") == 1 and "Segment " in done.stdout
    assert "The pipeline in steady state" in done.stdout and "TPU 2" in done.stdout


def test_names_cannot_break_out_of_the_data() -> None:
    plan = {"model": {"file": "</script><script>alert(1)</script>"}}
    text = html.page(plan)
    assert "<script>alert" not in text and "\\u003cscript>alert(1)" in text
