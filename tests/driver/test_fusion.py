"""A language model within a quality goal, from its file to text, where fused blocks pay."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from compiler.driver import language
from compiler.driver.options import BuildOptions, LanguageOptions
from compiler.emit import bundle
from compiler.errors import OptionError
from compiler.partition import PartitionOptions
from compiler.runtime.language import LanguageModel

MODEL = Path(__file__).parents[2] / "fixtures" / "language.gguf"
SIZES = LanguageOptions(context=128, chunk=64, slots=1)
HOST = """name = "slow"
description = "a slow computer"
macs = 10e9
int8_macs = 20e9
cores = 1
scalars = 20e6
bytes = 8e9
operator = 5e-6
"""
TARGET = """name = "near"
description = "a link without delay"
chip = "edgetpu"

[link]
invoke = 1e-6
operator = 1e-6
stream = 4e9
down = 4e9
up = 150e6
"""


@pytest.fixture
def options(tmp_path: Path) -> BuildOptions:
    """For a computer and a link with which layers as small as those of the fixture pay."""
    host, target = tmp_path / "slow.toml", tmp_path / "near.toml"
    host.write_text(HOST)
    target.write_text(TARGET)
    partitioning = PartitionOptions(host=str(host))
    return BuildOptions(target=str(target), partitioning=partitioning, language=SIZES)


@pytest.mark.slow
def test_the_fastest_plan_within_a_goal(options: BuildOptions, tmp_path: Path) -> None:
    wanted = replace(options, quality={"kl": 0.02}, frontier=True)
    path = tmp_path / "fused"
    manifest = language.build(MODEL, path, wanted)
    quality, entry = manifest["quality"], manifest["language"]
    (goal,) = quality["goals"]
    assert goal["met"] and goal["measured"] == quality["prefill_divergence"] <= 0.02
    plans = quality["frontier"]
    assert len(plans) >= 2 and plans[-1]["fused"] == 0 and plans[0]["fused"] > 0
    assert entry["chunk_ms"] < plans[-1]["ms"] * 0.98
    on_tpu = [segment for segment in manifest["segments"] if segment["device"] == "tpu"]
    assert on_tpu
    # It is the bundle that predicts so.
    latency = manifest["prediction"]["latency_ms"]
    if entry["parts"] == 1:
        assert entry["chunk_ms"] == pytest.approx(latency, rel=0.05)
    else:
        assert latency < entry["chunk_ms"] < entry["parts"] * latency
    model = LanguageModel(bundle.load(path))
    assert model.prefill(model.slots[0], list(range(70))).shape == (model.vocabulary,)


def test_other_figures_and_numbers_are_refused(options: BuildOptions, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="language models have kl"):
        language.build(MODEL, tmp_path / "a", replace(options, quality={"sqnr": 20.0}))
