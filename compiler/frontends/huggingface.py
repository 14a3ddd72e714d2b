"""Hugging Face folders: config.json, safetensors and tokenizer.json, read without torch."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from compiler.errors import ModelError
from compiler.frontends import rope, safetensors
from compiler.frontends.architecture import Architecture, Source, Tokenizer, Weight, check_sizes
from compiler.frontends.families import BY_MODEL_TYPE, Family
from compiler.frontends.textfile import read_json, read_json_if_there, read_text
from compiler.runtime import confined
from compiler.runtime.confined import ConfinedError

_LAYER_MODULE = re.compile(r"model\.layers\.(\d+)\.(.+)")
_DEFAULT_BASE = 10000.0
_DEFAULT_CONTEXT = 2048
_WINDOWED = "sliding_attention"
_FULL = "full_attention"


def read(folder: Path) -> Source:
    """The model in a folder. Raises ModelError for what is missing, broken or not supported."""
    config = configuration(folder)
    family = family_of(config)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{folder}: has no .safetensors and no .onnx files")
    weights: dict[str, Weight] = {}
    for file in files:
        for name, weight in safetensors.read(file).items():
            weights[gguf_name(name, family)] = with_whole_gain(weight, family)
    return Source(architecture(folder, config), weights, tokenizer(folder, config))


def configuration(folder: Path) -> dict[str, Any]:
    """config.json of a family that is supported. Raises ModelError."""
    config = read_json(folder / "config.json")
    if not is_supported(config):
        supported = ", ".join(BY_MODEL_TYPE)
        raise ModelError(
            f"{folder}: model type '{config.get('model_type')}'; supported are {supported}"
        )
    return config


def is_supported(config: Mapping[str, Any]) -> bool:
    """Whether config.json is that of a family in families.py."""
    model_type = config.get("model_type")
    return isinstance(model_type, str) and model_type in BY_MODEL_TYPE


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a configuration that is supported."""
    return BY_MODEL_TYPE[config["model_type"]]


def architecture(folder: Path, config: Mapping[str, Any]) -> Architecture:
    """What config.json says of the model. Raises ModelError."""
    try:
        return _architecture(folder, config)
    except ModelError:
        raise
    except Exception as error:  # numbers and texts of strangers fail in too many ways to list
        raise ModelError(f"{folder / 'config.json'}: cannot be understood ({error!r})") from error


def gguf_name(name: str, family: Family) -> str:
    """GGUF's name of a tensor that is called `name` in safetensors."""
    module, _, kind = name.rpartition(".")
    layer = _LAYER_MODULE.fullmatch(module)
    if layer is None:
        return f"{family.modules.get(module, module)}.{kind}"
    index, inner = layer.groups()
    return f"blk.{index}.{family.modules.get(inner, inner)}.{kind}"


def with_whole_gain(weight: Weight, family: Family) -> Weight:
    """The gain of a norm with what its family leaves out of it; other weights as they are."""
    is_gain = len(weight.shape) == 1
    if not is_gain or not family.gain_offset:
        return weight
    offset = np.float32(family.gain_offset)
    return Weight(weight.shape, lambda rows: weight.rows(rows) + offset)


def tokenizer(folder: Path, config: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer in a folder. Raises ModelError."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelError(f"{folder}: has no tokenizer.json; save the tokenizer in the fast format")
    settings = read_json_if_there(folder / "tokenizer_config.json")
    generation = read_json_if_there(folder / "generation_config.json")
    begin = config.get("bos_token_id")
    end = generation.get("eos_token_id", config.get("eos_token_id"))
    ends = end if isinstance(end, list) else [end]
    for token in [*ends, begin]:
        if token is not None and type(token) is not int:
            raise ModelError(
                f"{folder}: eos_token_id {end!r} or bos_token_id {begin!r} is no number of a token"
            )
    template = settings.get("chat_template")
    if (folder / "chat_template.jinja").is_file():
        template = read_text(folder / "chat_template.jinja")
    try:
        definition = confined.read_definition(path)
    except ConfinedError as error:
        raise ModelError(f"{path}: cannot be read: {error}") from error
    return Tokenizer(
        definition=definition,
        begin=begin,
        ends=tuple(token for token in ends if token is not None),
        add_begin=bool(settings.get("add_bos_token", False)),
        chat_template=template if isinstance(template, str) else None,
    )


def _architecture(folder: Path, config: Mapping[str, Any]) -> Architecture:
    family = family_of(config)
    layers = int(config["num_hidden_layers"])
    heads = int(config["num_attention_heads"])
    width = int(config["hidden_size"])
    check_sizes(folder, layers=layers, heads=heads, width=width)
    head = int(config.get("head_dim") or width // heads)
    check_sizes(folder, head=head)
    base, local_base = _rotary_bases(config)
    are_windowed = _windowed_layers(config, family, layers)
    window = _window(config)
    scale = config.get("query_pre_attn_scalar")
    longest = int(config.get("max_position_embeddings", _DEFAULT_CONTEXT))
    scaling = rope.of_config(folder, _rope_scaling(config), base, head, longest)
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
        context=int(longest * scaling.longer),
        bases=tuple(local_base if is_windowed else base for is_windowed in are_windowed),
        windows=tuple(window if is_windowed else 0 for is_windowed in are_windowed),
        # Hugging Face's models turn the halves of a head.
        interleaved=False,
        rotary=head,
        activation=family.activation,
        embedding_scale=math.sqrt(width) if family.scales_embedding else 1.0,
        attention_scale=1 / math.sqrt(scale) if scale else None,
        rope_factors=scaling.factors,
        rope_magnitude=scaling.magnitude,
        rope_dynamic=scaling.dynamic,
    )


def _windowed_layers(config: Mapping[str, Any], family: Family, layers: int) -> list[bool]:
    if family.always_windowed:
        return [True] * layers
    kinds = config.get("layer_types") or [_FULL] * layers
    return [kind == _WINDOWED for kind in kinds]


def _window(config: Mapping[str, Any]) -> int:
    """How many tokens windowed layers look back; 0 for all."""
    if not config.get("use_sliding_window", True):
        return 0
    return int(config.get("sliding_window") or 0)


def _rotary_bases(config: Mapping[str, Any]) -> tuple[float, float]:
    """(rotary base, that of windowed layers).

    Versions of transformers write them at the top, in `rope_parameters`, or there per kind of
    layer.
    """
    rope = config.get("rope_parameters") or {}
    base = (
        config.get("rope_theta")
        or rope.get("rope_theta")
        or _base_of_kind(rope, _FULL)
        or _DEFAULT_BASE
    )
    local_base = config.get("rope_local_base_freq") or _base_of_kind(rope, _WINDOWED) or base
    return float(base), float(local_base)


def _base_of_kind(rope: Mapping[str, Any], kind: str) -> float | None:
    parameters = rope.get(kind)
    if not isinstance(parameters, dict):
        return None
    return parameters.get("rope_theta")


def _rope_scaling(config: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of rotary scaling, wherever they are written."""
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    # Of parameters per kind of layer, those of full attention count: layers with a window are not
    # scaled.
    if _FULL in scaling:
        scaling = scaling[_FULL]
    return dict(scaling)
