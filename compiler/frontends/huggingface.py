"""Hugging Face folders: config.json, safetensors and tokenizer.json, read without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compiler.errors import ModelError
from compiler.frontends import lora, rope, safetensors
from compiler.frontends.architecture import Architecture, Source, Tokenizer, Weight, check_sizes
from compiler.frontends.families import BY_MODEL_TYPE, Family, gguf_name
from compiler.frontends.folding import (
    joined_rows,
    split_joined,
    with_logit_scale,
    with_residual_scale,
)
from compiler.frontends.textfile import read_json, read_json_if_there, read_text
from compiler.runtime import confined
from compiler.runtime.confined import ConfinedError

_DEFAULT_BASE = 10000.0
_DEFAULT_CONTEXT = 2048
_WINDOWED = "sliding_attention"
_FULL = "full_attention"


def read(folder: Path, adapters: Sequence[Path] = ()) -> Source:
    """The model in a folder, with adapters merged. Raises ModelError for what is missing, broken or
    not supported."""
    config = configuration(folder)
    family = family_of(config)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{folder}: has no .safetensors and no .onnx files")
    weights: dict[str, Weight] = {}
    for file in files:
        for name, weight in safetensors.read(file).items():
            weights[gguf_name(name, family)] = with_whole_gain(weight, family)
    found = architecture(folder, config)
    weights = lora.merged(weights, adapters, family, found)
    return source(folder, config, found, weights)


def source(
    folder: Path,
    config: Mapping[str, Any],
    architecture: Architecture,
    weights: Mapping[str, Weight],
) -> Source:
    """The model of a configuration, with weights by GGUF's names as they are stored."""
    weights = split_joined(weights, joined_rows(architecture))
    weights = with_residual_scale(weights, float(config.get("residual_multiplier", 1.0)))
    weights = with_logit_scale(weights, 1 / float(config.get("logits_scaling", 1.0)))
    return Source(architecture, weights, tokenizer(folder, config))


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
    rotary = int(head * float(config.get("partial_rotary_factor") or 1))
    longest = int(config.get("max_position_embeddings", _DEFAULT_CONTEXT))
    scaling = rope.of_config(folder, _rope_scaling(config), base, rotary, longest)
    made = Architecture(
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
        bases=_rotary_of_layers(config, are_windowed, base, local_base),
        windows=tuple(window if is_windowed else 0 for is_windowed in are_windowed),
        # Hugging Face's models turn the halves of a head.
        interleaved=False,
        rotary=rotary,
        activation=family.activation,
        embedding_scale=_embedding_scale(config, family, width),
        attention_scale=_attention_scale(config),
        norms_inputs=family.norms_inputs,
    )
    return scaling.entered(made)


def _embedding_scale(config: Mapping[str, Any], family: Family, width: int) -> float:
    if family.scales_embedding:
        return math.sqrt(width)
    return float(config.get("embedding_multiplier", 1.0))


def _attention_scale(config: Mapping[str, Any]) -> float | None:
    """What scores are multiplied by; None for 1 / sqrt(head)."""
    if scalar := config.get("query_pre_attn_scalar"):
        return float(1 / math.sqrt(scalar))
    multiplier = config.get("attention_multiplier")
    return None if multiplier is None else float(multiplier)


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
    trained = config.get("original_max_position_embeddings")
    if trained is not None:
        scaling = {"original_max_position_embeddings": trained, **scaling}
    return dict(scaling)


def _rotary_of_layers(
    config: Mapping[str, Any], are_windowed: list[bool], base: float, local_base: float
) -> tuple[float, ...]:
    """The rotary base of each layer; 0 where it has none."""
    # 1 for a layer that has one.
    has_rotary = config.get("no_rope_layers") or [1] * len(are_windowed)
    bases = [local_base if is_windowed else base for is_windowed in are_windowed]
    return tuple(base if has else 0.0 for base, has in zip(bases, has_rotary, strict=True))
