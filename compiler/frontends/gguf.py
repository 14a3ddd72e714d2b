"""GGUF files, what llama.cpp and Ollama run: metadata, tokenizer, and weights that stay
memory-mapped.

Field names: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from compiler.errors import CompilerError, ModelError, first_line
from compiler.frontends.architecture import Architecture, Source, Weight
from compiler.frontends.tokenizer import from_gguf

# Architectures, and whether their rotary embedding turns neighbours.
SUPPORTED = {"llama": True, "mistral": True, "qwen2": False, "qwen3": False, "gemma3": False}
_MOST_LAYERS = 4096  # lists are made of that number, which a stranger's file gives


def read(path: Path) -> Source:
    """The model in a GGUF file. Raises ModelError for files that are broken or of a family that is
    not supported."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items() if field.data}
    except Exception as error:
        raise ModelError(
            f"{path}: not a GGUF file, or a truncated one ({first_line(error)})"
        ) from error
    try:
        architecture = _architecture(path, fields)
        weights = {tensor.name: _weight(tensor) for tensor in reader.tensors}
        return Source(architecture, weights, from_gguf(fields))
    except CompilerError:
        raise
    except KeyError as error:
        raise ModelError(f"{path}: its metadata lack {error}: convert the model again") from error
    except Exception as error:  # numbers and texts of strangers fail in too many ways to list
        raise ModelError(
            f"{path}: its metadata cannot be understood ({first_line(error)})"
        ) from error


def _architecture(path: Path, fields: Mapping[str, Any]) -> Architecture:
    family = fields["general.architecture"]
    if family not in SUPPORTED:
        raise ModelError(f"{path}: architecture '{family}'; supported are {', '.join(SUPPORTED)}")

    def get(name: str, default: Any = None) -> Any:
        key = f"{family}.{name}"
        return fields[key] if default is None else fields.get(key, default)

    width, layers, heads = (
        int(get("embedding_length")),
        int(get("block_count")),
        int(get("attention.head_count")),
    )
    if not (0 < layers <= _MOST_LAYERS and 0 < heads <= width):
        raise ModelError(
            f"{path}: {layers} layers of {heads} heads and width {width} make no model"
        )
    head = int(get("attention.key_length", width // heads))
    base, window = float(get("rope.freq_base", 10000.0)), int(get("attention.sliding_window", 0))
    scaling = get("rope.scaling.type", "none")
    if scaling not in ("none", "linear") or get("expert_count", 0):
        what = "experts" if get("expert_count", 0) else f"rotary scaling '{scaling}'"
        raise ModelError(f"{path}: it uses {what}, which is not supported")
    gemma = family == "gemma3"
    # Gemma 3 has five layers with a window and base 10,000 for each one that sees all.
    local = [gemma and (i + 1) % 6 != 0 for i in range(layers)]
    factor = float(get("rope.scaling.factor", 1.0)) if scaling == "linear" else 1.0
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
        context=int(get("context_length")),
        bases=tuple(10000.0 if here else base for here in local),
        windows=tuple(window if here or not gemma else 0 for here in local),
        interleaved=SUPPORTED[family],
        rotary=int(get("rope.dimension_count", head)),
        activation="gelu" if gemma else "silu",
        embedding_scale=float(np.sqrt(width)) if gemma else 1.0,
        rope_factors=(factor,) if factor != 1.0 else (),
    )


def _weight(tensor: Any) -> Weight:
    from gguf import dequantize

    shape = tuple(int(d) for d in reversed(tensor.shape))
    data, kind = tensor.data, tensor.tensor_type

    def rows(wanted: slice) -> np.ndarray:
        return np.asarray(dequantize(data[wanted], kind), np.float32)

    return Weight(shape, rows)
