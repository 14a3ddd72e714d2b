"""Each family computes what transformers computes (fixtures/families.py), from a Hugging Face
folder and from a GGUF file as llama.cpp's converter writes it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from compiler.errors import ModelError
from compiler.frontends import decode, decoder, open_source
from compiler.frontends.architecture import Source
from compiler.frontends.families import BY_MODEL_TYPE, gguf_name
from compiler.graph.reference import Reference
from fixtures.families import FILE, LONG_TOKENS, TOKENS, drawn
from tests.frontends.test_families import folder_of

FOUND: dict[str, Any] = json.loads(FILE.read_text())
# Of the largest logit: embeddings are rounded to float16.
ERROR = 3e-3


def tensors_of(name: str) -> dict[str, np.ndarray]:
    shapes = FOUND[name]["shapes"]
    return {key: drawn(key, tuple(shape), name == "gemma3") for key, shape in shapes.items()}


def last_logits(source: Source, tokens: np.ndarray, context: int) -> np.ndarray:
    form = decoder.ProgramShape(1, len(tokens), context)
    model = decoder.write(source, form)
    with Reference(model) as reference:
        feeds = decoder.sample(model.graph, tokens, form)
        return np.asarray(reference.run(feeds, ["logits"])["logits"])[0, -1]


def decoded_logits(source: Source, tokens: np.ndarray, context: int) -> np.ndarray:
    """As `last_logits`, by the program for the host that takes one token."""
    form = decoder.ProgramShape(1, 1, context)
    model = decode.write(source, form)
    with Reference(model) as reference:
        feeds = decoder.sample(model.graph, tokens[:1], form)
        names = [str(value.name) for value in model.graph.outputs]
        for place, token in enumerate(tokens):
            feeds |= {
                "tokens": np.array([[token]]),
                "lengths": np.array([place], np.int32),
                "total": np.array([place + 1], np.int32),
            }
            found = reference.run(feeds, names)
            updates = decoder.in_place(source.architecture.layers)
            feeds |= {held: found[made] for made, held in updates.items()}
        return np.asarray(found["logits"])[0, -1]


def check(source: Source, name: str) -> None:
    """Against transformers, for a text within the first training's context, and beyond it."""
    logits = FOUND[name]["logits"]
    for kind, tokens, context in (("short", TOKENS, 64), ("long", LONG_TOKENS, 96)):
        wanted = np.array(logits[kind])
        found = last_logits(source, tokens, context)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=ERROR * np.abs(wanted).max())


@pytest.mark.parametrize("name", FOUND)
def test_a_folder_computes_what_transformers_does(name: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, tensors_of(name), **FOUND[name]["config"])
    check(open_source(folder), name)


# What the converter writes besides sizes, from config.json's numbers.
OTHER_FIELDS = {
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "attention_multiplier": "attention.scale",
    "logits_scaling": "logit_scale",
    "sliding_window": "attention.sliding_window",
}


@pytest.mark.parametrize("name", FOUND)
def test_decode_on_the_host_computes_nearly_the_same(name: str, tmp_path: Path) -> None:
    """Its weights are rounded to blocks of 8 bits."""
    folder = folder_of(tmp_path, tensors_of(name), **FOUND[name]["config"])
    wanted = np.array(FOUND[name]["logits"]["short"])
    found = decoded_logits(open_source(folder), TOKENS, 64)
    assert np.abs(found - wanted).max() < 0.08 * np.abs(wanted).max()


@pytest.mark.parametrize("name", [name for name in FOUND if name != "llama-dynamic"])
def test_a_gguf_file_computes_what_transformers_does(name: str, tmp_path: Path) -> None:
    check(open_source(written_gguf(name, tmp_path / "m.gguf")), name)


def written_gguf(name: str, path: Path) -> Path:
    """The model as llama.cpp's converter writes it: names, order of channels, fields."""
    config = FOUND[name]["config"]
    family = BY_MODEL_TYPE[config["model_type"]]
    writer = gguf.GGUFWriter(path, family.gguf)
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head = config.get("head_dim") or config["hidden_size"] // heads
    rotary = int(head * config.get("partial_rotary_factor", 1))
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(rotary)
    for key, field in OTHER_FIELDS.items():
        if config.get(key) is not None:
            kind = writer.add_uint32 if isinstance(config[key], int) else writer.add_float32
            kind(f"{family.gguf}.{field}", config[key])
    add_scaling(writer, config, rotary)
    add_tokenizer(writer, config["vocab_size"])
    for key, found in tensors_of(name).items():
        array = found
        if family.gguf_interleaved and ("q_proj" in key or "k_proj" in key):
            array = interleaved(array, heads if "q_proj" in key else kv_heads)
        stored = gguf_name(key, family)
        writer.add_tensor(stored, array + (family.gain_offset if array.ndim == 1 else 0))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def interleaved(array: np.ndarray, heads: int) -> np.ndarray:
    """Channels of each head, so that rotary embedding turns neighbours instead of halves."""
    halves = array.reshape(heads, 2, -1, *array.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(array.shape)


def add_scaling(writer: gguf.GGUFWriter, config: Mapping[str, Any], rotary: int) -> None:
    scaling = config.get("rope_scaling")
    if scaling is None:
        return
    kind = scaling.get("rope_type") or scaling["type"]
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(scaling["factor"])
        writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
    if kind == "longrope":
        trained = config["original_max_position_embeddings"]
        factor = config["max_position_embeddings"] / trained
        writer.add_rope_scaling_orig_ctx_len(trained)
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(factor) / math.log(trained)))
        for name in ("short", "long"):
            factors = np.array(scaling[f"{name}_factor"], np.float32)
            writer.add_tensor(f"rope_factors_{name}.weight", factors)
    if kind == "llama3":
        base = config["rope_theta"]
        writer.add_tensor("rope_freqs.weight", llama3_factors(scaling, base, rotary))


def llama3_factors(scaling: Mapping[str, Any], base: float, rotary: int) -> np.ndarray:
    """One by one, as the converter does."""
    trained = scaling["original_max_position_embeddings"]
    longest = trained / scaling["low_freq_factor"]
    shortest = trained / scaling["high_freq_factor"]
    factors = []
    for pair in range(rotary // 2):
        wave = 2 * math.pi * base ** (2 * pair / rotary)
        if wave < shortest:
            factors.append(1.0)
        elif wave > longest:
            factors.append(scaling["factor"])
        else:
            span = scaling["high_freq_factor"] - scaling["low_freq_factor"]
            smooth = (trained / wave - scaling["low_freq_factor"]) / span
            factors.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
    return np.array(factors, np.float32)


def add_tokenizer(writer: gguf.GGUFWriter, size: int) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    tokens = [chr(ord("!") + index) for index in range(size - 1)]
    writer.add_token_list([*tokens, "!#"])
    writer.add_token_merges(["! #"])


def test_factors_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    config = FOUND["phi3"]["config"]
    scaling = config["rope_scaling"] | {"short_factor": [1.0, 2.0]}
    config = config | {"rope_scaling": scaling}
    with pytest.raises(ModelError, match="2 rotary factors for 48 channels"):
        open_source(folder_of(tmp_path, tensors_of("phi3"), **config))
