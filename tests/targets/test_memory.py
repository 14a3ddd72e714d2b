"""What fits the SRAM, against what the device left in public (sources:
compiler/targets/chips/edgetpu.toml)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import cached as published
from compiler.errors import OptionError
from compiler.targets import Layer, Target, cached, fits, stored_bytes
from compiler.targets.memory import packed_bytes

TARGET = Target.load()
MIB = 1024**2


def dense(inputs: int, outputs: int, per_channel: bool = True, bias: bool = True) -> Layer:
    return Layer("dense", inputs, outputs, 1, per_channel, bias)


@pytest.mark.parametrize(
    ("inputs", "outputs", "cached"),
    [
        (2688, 2688, True),  # RingCanary: 0.45 ms
        (2752, 2752, False),  # RingCanary: 17.3 ms, streamed although 7.22 MiB
        (3072, 3072, False),  # RingCanary: 21.4 ms
        (8064, 1024, True),
        (8068, 1024, False),
        (4032, 2048, True),
        (2016, 4096, True),
        (4096, 1024, True),
        (4096, 1025, False),  # a seventeenth block shares a tile
        (8068, 64, False),  # not even one block fits a tile
    ],
)
def test_dense_layers(inputs: int, outputs: int, cached: bool) -> None:
    assert fits([dense(inputs, outputs)], TARGET) == cached


def test_stored_bytes_of_dense_layers() -> None:
    """LibrEdgeTPU's dense_256, dense_512 and dense_1024, whose bias is zero, store N*N + 8N
    bytes."""
    for size in (256, 512, 1024):
        zero_bias = dense(size, size, bias=False)
        assert stored_bytes(zero_bias, TARGET) == size * size + 8 * size
    assert stored_bytes(dense(1024, 1024, per_channel=False), TARGET) == 1024 * 1024 + 4 * 1024
    assert stored_bytes(dense(128, 35, per_channel=False), TARGET) == 48 * (
        128 + 4
    )  # s123600g/asr_edgetpu_demo


@pytest.mark.parametrize(
    ("layer", "stored"),
    [
        # Places of the biases in the parameters of mobilenet_v1_0.25_128 and posenet
        # (google-coral/test_data).
        (Layer("conv", 3, 8, 9, False), 640),
        (Layer("depthwise", 8, 8, 9, False), 320),
        (Layer("dense", 8, 16, 1, False), 192),
        (Layer("depthwise", 256, 256, 9, False), 10_240),
        (Layer("dense", 256, 1001, 1, False), 266_240),
        (Layer("dense", 288, 72, 1, False), 37_376),
        (Layer("depthwise", 480, 480, 25, False), 49_920),
        # Per channel: 12 bytes an output with a bias, 8 without, 4 where all scales are equal.
        (Layer("dense", 384, 34), 19_008),
        (Layer("dense", 384, 34, bias=False), 18_816),
        # LibrEdgeTPU's gabor, 16 outputs of 7x7, and bright, one output of 256 inputs.
        (Layer("conv", 1, 16, 49, bias=False, equal_scales=True), 3200),
        (Layer("dense", 256, 1, per_channel=False, bias=False), 4096),
        # A convolution of one output has 4 (LibrEdgeTPU's looming models).
        (Layer("conv", 1, 1, 9, False, False), 192),
        # Constants of MUL and ADD: 16 bytes a channel, or their size (movenet, asr_edgetpu_demo).
        (Layer("channelwise", 1, 64), 1024),
        (Layer("channelwise", 1, 3), 64),
        (Layer("elementwise", 1, 48 * 48), 2304),
    ],
)
def test_stored_bytes_as_compiled(layer: Layer, stored: int) -> None:
    assert stored_bytes(layer, TARGET) == stored


def test_stored_bytes_of_convolutions() -> None:
    assert stored_bytes(Layer("conv", 3, 64, 49), TARGET) == 49 * 4 * 64 + 12 * 64


def test_what_is_always_streamed_takes_no_room() -> None:
    constant = Layer("channelwise", 1, 10**6)
    assert constant.is_streamed and packed_bytes(constant, TARGET) == 0
    assert fits([dense(2688, 2688), constant], TARGET)


def test_several_layers_share_the_tiles() -> None:
    half = dense(4000, 1024)
    assert fits([half, half], TARGET)
    assert not fits([half, half, dense(4000, 64)], TARGET)


def test_convolutions_lie_in_blocks_on_small_images_only() -> None:
    """Of 512 inputs and outputs, each has 8 blocks of 288 KiB, of which a tile holds one."""
    layer = Layer("conv", 512, 512, 9, positions=14 * 14)
    assert stored_bytes(layer, TARGET) == 9 * 512 * 512 + 12 * 512
    assert fits([layer] * 2, TARGET) and not fits([layer] * 3, TARGET)
    on_large = replace(layer, positions=64 * 64)
    assert fits([on_large] * 3, TARGET) and not fits([on_large] * 4, TARGET)


def test_activations_take_room() -> None:
    layer = dense(2688, 2688)
    assert fits([layer], TARGET) and not fits([layer], TARGET, activations=10_000)


def test_weights_that_serve_few_positions_stay_the_largest_first() -> None:
    early = Layer("dense", 512, 2048, positions=28 * 28)
    late = [replace(early, inputs=inputs, positions=49) for inputs in (1024, 2048)]
    assert cached([early, *late], TARGET) == {0, 1, 2}
    assert cached([early, early, early, *late], TARGET) == {0, 3, 4}


def test_what_the_real_compiler_cached() -> None:
    """Networks of one kind of layers, and tails of real ones."""
    rows = list(published.rows(TARGET))
    for name, real, ours in rows:
        assert ours == pytest.approx(real, rel=0.15, abs=0.01), name
    exact = [abs(ours - real) <= 0.01 for _, real, ours in rows]
    assert len(rows) >= 90 and sum(exact) >= 78


def test_own_targets(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "compiler" / "targets" / "usb3.toml").read_text()
    small = tmp_path / "small.toml"
    small.write_text(text + "[sram]\ntile_bytes = 65_536\n")
    assert not fits([dense(2688, 2688)], Target.load(str(small)))
    small.write_text("name = 'x'")
    with pytest.raises(OptionError, match=r"small\.toml"):
        Target.load(str(small))
