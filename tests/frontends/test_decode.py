"""The host's decode program, in few operators on weights in blocks, beside decoder.py's graph on
onnxruntime."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, dequantize, quantize

from compiler.device.cost import on_host
from compiler.frontends import Source, decode, decoder, open_source
from compiler.frontends.architecture import Weight
from compiler.frontends.blocks import BlockForm, Blocks, stored_form
from compiler.frontends.decoder import ProgramShape
from compiler.frontends.nbits import columns, packed, unpacked
from compiler.graph.reference import Reference
from compiler.quantize.samples import Sample
from compiler.targets import Host
from tests.frontends.test_language import random_source

MODEL = Path(__file__).parents[2] / "fixtures" / "language.gguf"
_STEPS = 5


def _quantized(source: Source, kind: str) -> Source:
    """The source with its layers as a type of GGUF, and gains that are not all 1."""
    rng = np.random.default_rng(0)
    changed = {}
    for name, weight in source.weights.items():
        array = weight.array()
        if array.ndim == 1:
            array = rng.uniform(0.5, 1.5, array.shape).astype(np.float32)
            changed[name] = Weight(array.shape, array.__getitem__)
            continue
        quantization = GGMLQuantizationType[kind]
        stored = quantize(array, quantization)
        form = stored_form(kind, stored)
        changed[name] = Weight(array.shape, dequantize(stored, quantization).__getitem__, form)
    return replace(source, weights=changed)


def _logits(model: decode.ir.Model, batch: int) -> np.ndarray:
    """Of a few steps of `batch` sequences, which begin with an empty cache."""
    rng = np.random.default_rng(3)
    feeds: Sample = {}
    for value in model.graph.inputs:
        if str(value.name).startswith("cache"):
            feeds[str(value.name)] = np.zeros(value.shape.numpy(), np.float32)  # type: ignore[union-attr]
    found = []
    with Reference(model) as reference:
        for step in range(_STEPS):
            feeds["tokens"] = rng.integers(5, 500, (batch, 1))
            feeds["lengths"] = np.full(batch, step, np.int32)
            feeds["total"] = np.array([step + 1], np.int32)
            results = reference.run(feeds)
            found.append(results.pop("logits"))
            feeds |= {name.replace("present", "cache"): array for name, array in results.items()}
    return np.array(found)


def _difference(source: Source, batch: int = 1, precision: decode.Precision = "file") -> float:
    """The largest difference of logits, relative to the largest."""
    shape = ProgramShape(batch, 1, 32)
    wanted = _logits(decoder.write(source, shape), batch)
    got = _logits(decode.write(source, shape, precision), batch)
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_blocks_of_a_file_compute_what_its_floats_do(kind: str) -> None:
    source = _quantized(open_source(MODEL), kind)
    assert _difference(source) < (1e-5 if kind in ("Q4_0", "Q5_0", "Q8_0") else 2e-3)


def test_several_sequences() -> None:
    assert _difference(_quantized(open_source(MODEL), "Q4_1"), batch=3) < 2e-3


def test_floats_are_rounded_to_eight_bits() -> None:
    source = open_source(MODEL)
    rng = np.random.default_rng(0)
    drawn = {}
    for name, weight in source.weights.items():
        # The fixture's own weights are of 8 bits already.
        array = weight.array() * rng.uniform(0.9, 1.1, weight.shape).astype(np.float32)
        drawn[name] = Weight(weight.shape, array.__getitem__)
    assert 1e-5 < _difference(replace(source, weights=drawn)) < 0.02


def test_four_bits_lose_more() -> None:
    source = _quantized(open_source(MODEL), "Q8_0")
    assert 0.005 < _difference(source, precision="4bit") < 0.5


def _with(source: Source, **shapes: tuple[int, ...]) -> Source:
    """More weights in each layer, or other ones, drawn at random."""
    rng = np.random.default_rng(1)
    weights = dict(source.weights)
    for name, shape in shapes.items():
        kind = "bias" if name.endswith("_bias") else "weight"
        for index in range(source.architecture.layers):
            array = rng.uniform(0.5, 1.5, shape).astype(np.float32)
            key = f"blk.{index}.{name.removesuffix('_bias')}.{kind}"
            weights[key] = Weight(shape, array.__getitem__)
    return replace(source, weights=weights)


def test_forms_of_other_families() -> None:
    """Norms of heads and behind blocks, biases, GELU, a scaled embedding, windows."""
    source = _quantized(open_source(MODEL), "Q8_0")
    a = source.architecture
    queries, keys = a.heads * a.head, a.kv_heads * a.head
    qwen2 = _with(source, attn_q_bias=(queries,), attn_k_bias=(keys,), attn_v_bias=(keys,))
    assert _difference(qwen2) < 1e-5
    partly = _with(source, attn_q_bias=(queries,), ffn_down_bias=(a.width,))
    assert _difference(partly) < 1e-5
    qwen3 = _with(source, attn_q_norm=(a.head,), attn_k_norm=(a.head,))
    assert _difference(qwen3) < 1e-5
    gemma = _with(qwen3, post_attention_norm=(a.width,), post_ffw_norm=(a.width,))
    gelu = replace(a, activation="gelu", embedding_scale=2.5, windows=(2,) + (0,) * (a.layers - 1))
    assert _difference(replace(gemma, architecture=gelu)) < 1e-5


def test_layers_of_several_forms_are_not_joined() -> None:
    source = _quantized(open_source(MODEL), "Q4_1")
    eight = _quantized(open_source(MODEL), "Q8_0")
    mixed = {name: w for name, w in eight.weights.items() if "attn_v" in name or "ffn_up" in name}
    source = replace(source, weights={**source.weights, **mixed})
    assert _difference(source) < 2e-3


def test_operators_of_a_layer() -> None:
    source = _quantized(open_source(MODEL), "Q4_0")
    model = decode.write(source, ProgramShape(1, 1, 32))
    counts = Counter(node.op_type for node in model.graph)
    layers = source.architecture.layers
    assert counts["MatMulNBits"] == 4 * layers + 1
    assert counts["GroupQueryAttention"] == layers
    assert counts["SkipSimplifiedLayerNormalization"] == 2 * layers
    # Beside them Split, QuickGelu and Mul; and the embedding, its cast and the first norm.
    assert len(model.graph) == 10 * layers + 4


def test_predicted_time_follows_the_bytes() -> None:
    """Decode is bound by memory."""
    source = random_source(width=1024, layers=1, hidden=4096)
    shape = ProgramShape(1, 1, 32)
    host = Host.load("pi5")
    seconds = {}
    for name, model in (
        ("float", decoder.write(source, shape)),
        ("file", decode.write(source, shape)),
        ("4bit", decode.write(source, shape, "4bit")),
    ):
        seconds[name] = sum(
            on_host(node, host) - host.operator
            for node in model.graph
            if node.op_type in ("MatMul", "MatMulNBits")
        )
    # 32 bits of a weight, two digits with their scales, one digit; of the head 8 bits.
    assert seconds["file"] == pytest.approx(seconds["float"] * 10.25 / 32, rel=0.05)
    assert 5.1 / 32 < seconds["4bit"] / seconds["float"] < 7 / 32


def test_what_constants_hold() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (6, 5, 32)).astype(np.uint8)
    scales = rng.uniform(0.01, 0.1, (6, 5)).astype(np.float32)
    scales[2, 3] = 0
    offsets = rng.uniform(-9, 1, (6, 5)).astype(np.float32)
    for bits in (4, 8):
        blocks = Blocks(codes & ((1 << bits) - 1), scales, offsets)
        layout = columns([BlockForm(bits, False, blocks_of(blocks))], 160)
        assert layout.copies == bits // 4
        made = packed(blocks, layout)
        held = made.codes.nbytes + made.scales.nbytes + made.zero_points.nbytes
        assert 0 <= held - 6 * layout.bytes <= 6
        # The zero of a block leaves a rest of half a step, or what is beyond its codes.
        zeros = np.clip(np.round(-offsets / np.where(scales, scales, 1)), 0, (1 << bits) - 1)
        rests = np.abs(offsets + scales * zeros).max()
        np.testing.assert_allclose(
            unpacked(made, layout), blocks.array(), rtol=0, atol=rests / 196 + 1e-5
        )


def blocks_of(blocks: Blocks) -> Callable[[slice], Blocks]:
    return lambda rows: blocks
