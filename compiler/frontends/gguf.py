"""Language models in GGUF files, what llama.cpp and Ollama run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from compiler.errors import CompilerError, ModelError, first_line
from compiler.frontends import lora, rope
from compiler.frontends.architecture import Architecture, Source, Tokenizer, Weight, check_sizes
from compiler.frontends.families import BY_GGUF, Family
from compiler.frontends.folding import (
    joined_rows,
    split_joined,
    with_logit_scale,
    with_residual_scale,
)
from compiler.frontends.gguf_file import read_file
from compiler.frontends.tokenizer import from_gguf

# What rotary frequencies are divided by, in files of Llama 3 and Phi-3.
_FREQS = "rope_freqs.weight"
_SHORT = "rope_factors_short.weight"
_LONG = "rope_factors_long.weight"
_FACTORS = (_FREQS, _SHORT, _LONG)


def read(path: Path, adapters: Sequence[Path] = ()) -> Source:
    """The model in a GGUF file, with adapters merged. Raises ModelError for files that are broken
    or of a family that is not supported."""
    fields, weights = read_file(path)
    try:
        factors = {name: weights.pop(name) for name in _FACTORS if name in weights}
        architecture = _with_stored_factors(_architecture(path, fields), fields, factors)
        scale = partial(_scale, fields)
        family = BY_GGUF[fields["general.architecture"]]
        weights = lora.merged(weights, adapters, family, architecture)
        weights = split_joined(weights, joined_rows(architecture))
        weights = with_residual_scale(weights, scale("residual_scale"))
        weights = with_logit_scale(weights, 1 / scale("logit_scale"))
        return Source(architecture, weights, _tokenizer(path, fields))
    except CompilerError:
        raise
    except KeyError as error:
        raise ModelError(f"{path}: its metadata lack {error}: convert the model again") from error
    except Exception as error:  # numbers and texts of strangers fail in too many ways to list
        why = first_line(error)
        raise ModelError(f"{path}: its metadata cannot be understood ({why})") from error


def _tokenizer(path: Path, fields: Mapping[str, Any]) -> Tokenizer:
    try:
        return from_gguf(fields)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def _scale(fields: Mapping[str, Any], name: str) -> float:
    """A factor that only some families have."""
    return float(fields.get(f"{fields['general.architecture']}.{name}", 1.0))


def _architecture(path: Path, fields: Mapping[str, Any]) -> Architecture:
    name = fields["general.architecture"]
    family = BY_GGUF.get(name)
    if family is None:
        raise ModelError(f"{path}: architecture '{name}'; supported are {', '.join(BY_GGUF)}")

    def get(field: str, default: Any = None) -> Any:
        """A field; raises KeyError where it is not there and has no default."""
        key = f"{name}.{field}"
        return fields[key] if default is None else fields.get(key, default)

    if get("expert_count", 0):
        raise ModelError(f"{path}: it uses experts, which is not supported")
    width = int(get("embedding_length"))
    layers = int(get("block_count"))
    heads = int(get("attention.head_count"))
    check_sizes(path, layers=layers, heads=heads, width=width)
    head = int(get("attention.key_length", width // heads))
    base = float(get("rope.freq_base", 10000.0))
    window = int(get("attention.sliding_window", 0))
    bases, windows = _layer_kinds(family, layers, base, window)
    rotary = int(get("rope.dimension_count", head))
    own = {key.removeprefix(f"{name}."): value for key, value in fields.items()}
    scaling = rope.of_gguf(path, own, base, rotary)
    attention_scale = get("attention.scale", 0.0)
    return Architecture(
        name=str(fields.get("general.name", path.stem)),
        vocabulary=len(fields["tokenizer.ggml.tokens"]),
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=int(get("attention.head_count_kv", heads)),
        head=head,
        hidden=int(get("feed_forward_length")),
        epsilon=float(get("attention.layer_norm_rms_epsilon")),
        context=int(get("context_length") * scaling.longer),
        bases=bases,
        windows=windows,
        interleaved=family.gguf_interleaved,
        rotary=rotary,
        activation=family.activation,
        embedding_scale=math.sqrt(width)
        if family.scales_embedding
        else get("embedding_scale", 1.0),
        attention_scale=attention_scale or None,
        rope_factors=scaling.factors,
        rope_magnitude=scaling.magnitude,
        norms_inputs=family.norms_inputs,
    )


def _with_stored_factors(
    architecture: Architecture, fields: Mapping[str, Any], stored: Mapping[str, Weight]
) -> Architecture:
    """An architecture with the rotary factors that are stored as weights, if there are any."""
    numbers = {name: tuple(weight.array().tolist()) for name, weight in stored.items()}
    if _FREQS in numbers:
        return replace(architecture, rope_factors=numbers[_FREQS])
    scaling = f"{fields['general.architecture']}.rope.scaling"
    if not numbers and fields.get(f"{scaling}.type") != "longrope":
        return architecture
    trained = int(fields.get(f"{scaling}.original_context_length", architecture.context))
    gain = fields.get(f"{scaling}.attn_factor")
    found = rope.longrope(numbers[_SHORT], numbers[_LONG], trained, architecture.context, gain)
    return found.entered(architecture)


def _layer_kinds(
    family: Family, layers: int, base: float, window: int
) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """(rotary base, window) of each layer."""
    period = family.gguf_layer_period
    if not period:
        skipped = family.gguf_no_rope_period or layers + 1
        bases = [0.0 if (index + 1) % skipped == 0 else base for index in range(layers)]
        return tuple(bases), (window,) * layers
    local_bases = []
    windows = []
    for index in range(layers):
        is_global = (index + 1) % period == 0
        local_bases.append(base if is_global else family.gguf_local_base)
        windows.append(0 if is_global else window)
    return tuple(local_bases), tuple(windows)
