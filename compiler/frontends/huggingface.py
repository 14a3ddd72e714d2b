"""Hugging Face folders: config.json, safetensors and tokenizer.json, read without torch; weights
stay memory-mapped."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from compiler.errors import ModelError
from compiler.frontends.architecture import Architecture, Source, Tokenizer, Weight

SUPPORTED = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text")
GEMMA = "gemma3_text"
LARGEST_HEADER = 100 << 20  # the limit of the safetensors library
_TYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_GEMMA = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def read(folder: Path) -> Source:
    """The model in a folder. Raises ModelError for what is missing, broken or not supported."""
    config = configuration(folder)
    gemma = config["model_type"] == GEMMA
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{folder}: has no .safetensors and no .onnx files")
    weights: dict[str, Weight] = {}
    for file in files:
        for name, weight in _safetensors(file).items():
            weights[name_of(name, gemma)] = (
                plus_one(weight) if gemma and len(weight.shape) == 1 else weight
            )
    return Source(architecture(folder, config), weights, tokenizer(folder, config))


def configuration(folder: Path) -> dict[str, Any]:
    """config.json of a family that is supported. Raises ModelError."""
    config = _json(folder / "config.json")
    family = config.get("model_type")
    if family not in SUPPORTED:
        raise ModelError(f"{folder}: model type '{family}'; supported are {', '.join(SUPPORTED)}")
    return config


def architecture(folder: Path, config: Mapping[str, Any]) -> Architecture:
    """What config.json says of the model. Raises ModelError."""
    try:
        return _architecture(folder, config, config["model_type"] == GEMMA)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{folder / 'config.json'}: cannot be understood ({error!r})") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path}: is not a JSON object")
    return found


def _architecture(folder: Path, config: Mapping[str, Any], gemma: bool) -> Architecture:
    layers, heads, width = (
        int(config[k]) for k in ("num_hidden_layers", "num_attention_heads", "hidden_size")
    )
    head = int(config.get("head_dim") or width // heads)
    rope = config.get("rope_parameters") or {}
    kinds = config.get("layer_types") or ["full_attention"] * layers
    sliding = config.get("use_sliding_window", True)
    window = int(config.get("sliding_window") or 0) if sliding else 0
    if config.get("model_type") == "mistral":
        kinds = ["sliding_attention"] * layers
    scaling = config.get("rope_scaling") or rope
    kind = (
        scaling.get("rope_type", scaling.get("type", "default"))
        if "full_attention" not in scaling
        else "default"
    )
    if kind not in ("default", "llama3"):
        raise ModelError(f"{folder}: its rotary scaling '{kind}' is not supported; 'llama3' is")
    base = float(
        config.get("rope_theta") or rope.get("rope_theta") or _of(rope, "full_attention") or 10000.0
    )
    local_base = float(config.get("rope_local_base_freq") or _of(rope, "sliding_attention") or base)
    local = [k == "sliding_attention" for k in kinds]
    scale = config.get("query_pre_attn_scalar")
    return Architecture(
        name=folder.name,
        vocabulary=int(config["vocab_size"]),
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head=head,
        hidden=int(config["intermediate_size"]),
        epsilon=float(config.get("rms_norm_eps", 1e-6)),
        context=int(config.get("max_position_embeddings", 2048)),
        bases=tuple(local_base if here else base for here in local),
        windows=tuple(window if here else 0 for here in local),
        interleaved=False,
        rotary=head,
        activation="gelu" if gemma else "silu",
        embedding_scale=math.sqrt(width) if gemma else 1.0,
        attention_scale=1 / math.sqrt(scale) if scale else None,
        rope_factors=_llama3(scaling, base, head) if kind == "llama3" else (),
    )


def _of(rope: Mapping[str, Any], kind: str) -> float | None:
    return rope[kind].get("rope_theta") if isinstance(rope.get(kind), dict) else None


def _llama3(scaling: Mapping[str, Any], base: float, head: int) -> tuple[float, ...]:
    """What each rotary frequency is divided by. Source: transformers, modeling_rope_utils,
    'llama3'."""
    factor, low, high = (
        float(scaling[k]) for k in ("factor", "low_freq_factor", "high_freq_factor")
    )
    waves = 2 * math.pi * base ** (np.arange(0, head, 2) / head)
    smooth = np.clip(
        (float(scaling["original_max_position_embeddings"]) / waves - low) / (high - low), 0, 1
    )
    return tuple(float(f) for f in 1 / ((1 - smooth) / factor + smooth))


def name_of(name: str, gemma: bool) -> str:
    """GGUF's name of a tensor."""
    stem, _, kind = name.rpartition(".")
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", stem)
    inner = match.group(2) if match else stem
    names = {**_NAMES, **(_GEMMA if gemma else {})}
    found = names.get(inner, inner)
    return f"blk.{match.group(1)}.{found}.{kind}" if match else f"{found}.{kind}"


def plus_one(weight: Weight) -> Weight:
    """Gemma stores the gains of its norms less one."""
    return Weight(weight.shape, lambda rows: weight.rows(rows) + np.float32(1))


def _safetensors(path: Path) -> dict[str, Weight]:
    """Format: https://github.com/huggingface/safetensors#format"""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= min(LARGEST_HEADER, size - 8):
            raise ModelError(f"{path}: not a safetensors file, or a truncated one")
        try:
            header = json.loads(file.read(length))
            entries = {
                n: (e["dtype"], tuple(e["shape"]), e["data_offsets"])
                for n, e in header.items()
                if n != "__metadata__"
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{path}: its header cannot be read ({error})") from error
    return {name: _mapped(path, name, entry, 8 + length, size) for name, entry in entries.items()}


def _mapped(
    path: Path, name: str, entry: tuple[str, tuple[int, ...], list[int]], start: int, size: int
) -> Weight:
    kind, shape, (begin, end) = entry
    if kind not in _TYPES:
        raise ModelError(f"{path}: weights '{name}' are {kind}; supported are {', '.join(_TYPES)}")
    dtype = np.dtype(_TYPES[kind])
    if (
        not shape
        or begin < 0
        or start + end > size
        or end - begin != math.prod(shape) * dtype.itemsize
    ):
        raise ModelError(
            f"{path}: weights '{name}' {list(shape)} do not fit the file: download it again"
        )
    array = np.memmap(path, dtype, "r", start + begin, shape)
    return Weight(shape, lambda rows: np.asarray(array[rows], np.float32))


def tokenizer(folder: Path, config: Mapping[str, Any]) -> Tokenizer:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelError(f"{folder}: has no tokenizer.json; save the tokenizer in the fast format")
    extra = (
        _json(folder / "tokenizer_config.json")
        if (folder / "tokenizer_config.json").is_file()
        else {}
    )
    generation = (
        _json(folder / "generation_config.json")
        if (folder / "generation_config.json").is_file()
        else {}
    )
    ends = generation.get("eos_token_id", config.get("eos_token_id"))
    begin = config.get("bos_token_id")
    template = extra.get("chat_template")
    if (folder / "chat_template.jinja").is_file():
        template = (folder / "chat_template.jinja").read_text("utf-8")
    return Tokenizer(
        definition=path.read_text("utf-8"),
        begin=begin,
        ends=tuple(ends) if isinstance(ends, list) else () if ends is None else (int(ends),),
        add_begin=bool(extra.get("add_bos_token", False)),
        chat_template=template if isinstance(template, str) else None,
    )
