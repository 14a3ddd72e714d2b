"""The nine networks of the onnx package, with seeded weights, through the whole compiler."""

from __future__ import annotations

from pathlib import Path

import pytest

from compiler.driver import build as building
from compiler.driver.options import BuildOptions
from compiler.partition import PartitionOptions
from compiler.targets import Target, fits
from fixtures import light

TARGET = Target.load()


@pytest.mark.slow
@pytest.mark.parametrize("name", light.NAMES)
def test_network(name: str, tmp_path: Path) -> None:
    model = light.generate(name, tmp_path / "model.onnx")
    options = BuildOptions(partitioning=PartitionOptions(place="tpu"))
    manifest = building.build(model, tmp_path / "bundle", options)
    model.unlink()
    quality = manifest["quality"]
    last = list(quality["segments"].values())[-1]
    # The scores that the Edge TPU gives, in the plain sense: for two samples of noise they hardly
    # vary. Softmax behind them turns absolute errors into relative ones: its SQNR depends on how
    # peaked the few held-out samples are.
    assert last["cumulative_plain_sqnr_db"] >= 20
    assert quality["outputs"].keys() == {o["name"] for o in manifest["outputs"]}
    for segment in manifest["segments"]:
        if segment["device"] == "tpu":
            assert segment["cached_bytes"] <= TARGET.tiles * TARGET.tile_bytes
    operators = {
        o["operator"] for s in manifest["segments"] if s["device"] == "host" for o in s["operators"]
    }
    assert operators <= {"Transpose", "Reshape", "Softmax", "LRN"}


@pytest.mark.slow
def test_largest_layer_of_vgg_comes_out_as_tiles(tmp_path: Path) -> None:
    """25088 x 4096 is 103 MB: tiles of 1024 x 6272, 6.1 MiB each."""
    options = BuildOptions()
    model = building.read(light.generate("vgg19", tmp_path / "model.onnx"), options)
    program = building.plan_program(model, options)
    segments = [s for s in program.plan.segments if s.device == "tpu"]
    assert all(fits([layer], TARGET) for s in segments for layer in s.layers)
    tiles = [layer for s in segments for layer in s.layers if layer.inputs == 6272]
    assert len(tiles) == 16 and all(layer.outputs == 1024 for layer in tiles)
