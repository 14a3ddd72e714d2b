"""A program of a language model is on an Edge TPU only where that makes it clearly faster."""

from __future__ import annotations

from pathlib import Path

import pytest

from compiler.driver import build as building
from compiler.driver.options import BuildOptions, LanguageOptions
from compiler.driver.programs import parts_of
from compiler.frontends import decoder, open_source
from compiler.partition import PartitionOptions

MODEL = Path(__file__).parents[2] / "fixtures" / "language.gguf"
LINK = """name = "near"
description = "a link without delay"
chip = "edgetpu"

[link]
invoke = {invoke}
operator = 1e-6
stream = 4e9
down = 4e9
up = 4e9
"""


@pytest.mark.parametrize(("invoke", "pays"), [(1e-6, True), (8e-5, False)])
def test_a_small_gain_leaves_the_host_alone(invoke: float, pays: bool, tmp_path: Path) -> None:
    target = tmp_path / "link.toml"
    target.write_text(LINK.format(invoke=invoke))
    partitioning = PartitionOptions(place="auto", host_int8=True, needs_tpu=False)
    options = BuildOptions(target=str(target), partitioning=partitioning)
    model = decoder.write(open_source(MODEL), decoder.ProgramShape(1, 64, 128))
    planned = building.plan_program(model, options)
    host = PartitionOptions(place="host", host_int8=True)
    alone = building.partition_model(model, options.target, host).plan.latency
    assert bool(planned.made_on_tpu) == pays
    assert planned.plan.latency <= alone * (1 + 1e-9)


def test_in_how_many_parts_a_chunk_may_run() -> None:
    assert parts_of(LanguageOptions(chunk=64)) == (1, 2)
    assert parts_of(LanguageOptions(chunk=63)) == (1,)
    assert parts_of(LanguageOptions(chunk=2)) == (1,)
    assert parts_of(LanguageOptions(chunk=64, max_ram=100)) == (1,)
