"""Language models in GGUF files, what llama.cpp and Ollama run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from compiler.errors import CompilerError, ModelError, first_line
from compiler.frontends import rope
from compiler.frontends.architecture import Architecture, Source, Tokenizer, check_sizes
from compiler.frontends.families import BY_GGUF, Family
from compiler.frontends.gguf_file import read_metadata, read_weight
from compiler.frontends.tokenizer import from_gguf


def read(path: Path) -> Source:
    """The model in a GGUF file. Raises ModelError for files that are broken or of a family that is
    not supported."""
    if not path.stat().st_size:
        raise ModelError(f"{path}: is empty")
    try:
        data = np.memmap(path, np.uint8, "r")
        fields, tensors = read_metadata(data)
        weights = {name: read_weight(data, name, entry) for name, entry in tensors.items()}
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    except Exception as error:
        why = first_line(error)
        raise ModelError(f"{path}: not a GGUF file, or a truncated one ({why})") from error
    try:
        architecture = _architecture(path, fields)
        # Llama 3 has what its frequencies are divided by among its weights.
        factors = weights.pop("rope_freqs.weight", None)
        if factors is not None:
            rope_factors = tuple(factors.array().tolist())
            architecture = replace(architecture, rope_factors=rope_factors)
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
        embedding_scale=math.sqrt(width) if family.scales_embedding else 1.0,
        rope_factors=scaling.factors,
        rope_magnitude=scaling.magnitude,
    )


def _layer_kinds(
    family: Family, layers: int, base: float, window: int
) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """(rotary base, window) of each layer."""
    period = family.gguf_layer_period
    if not period:
        return (base,) * layers, (window,) * layers
    bases = []
    windows = []
    for index in range(layers):
        is_global = (index + 1) % period == 0
        bases.append(base if is_global else family.gguf_local_base)
        windows.append(0 if is_global else window)
    return tuple(bases), tuple(windows)
