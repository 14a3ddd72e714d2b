"""GGUF files, what llama.cpp and Ollama run: metadata, tokenizer, and weights that stay
memory-mapped.

Field names: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from compiler.errors import CompilerError, ModelError, first_line
from compiler.frontends.architecture import Architecture, Source, Tokenizer, Weight, check_sizes
from compiler.frontends.tokenizer import from_gguf

# Architectures, and whether their rotary embedding turns neighbours.
SUPPORTED = {"llama": True, "mistral": True, "qwen2": False, "qwen3": False, "gemma3": False}
MOST_FIELDS = MOST_TENSORS = 1 << 16
MOST_STRINGS = 1 << 20
LARGEST_ARRAY = 1 << 24
_STRING, _ARRAY = 8, 9
_NUMBERS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}


def read(path: Path) -> Source:
    """The model in a GGUF file. Raises ModelError for files that are broken or of a family that is
    not supported."""
    if not path.stat().st_size:
        raise ModelError(f"{path}: is empty")
    try:
        data = np.memmap(path, np.uint8, "r")
        fields, tensors = _metadata(_Cursor(data))
        weights = {name: _weight(data, name, *entry) for name, entry in tensors.items()}
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    except Exception as error:
        raise ModelError(
            f"{path}: not a GGUF file, or a truncated one ({first_line(error)})"
        ) from error
    try:
        return Source(_architecture(path, fields), weights, _tokenizer(path, fields))
    except CompilerError:
        raise
    except KeyError as error:
        raise ModelError(f"{path}: its metadata lack {error}: convert the model again") from error
    except Exception as error:  # numbers and texts of strangers fail in too many ways to list
        raise ModelError(
            f"{path}: its metadata cannot be understood ({first_line(error)})"
        ) from error


class _Cursor:
    """Reads the metadata of a file from the front to the back. Raises ValueError where they claim
    more than it has."""

    def __init__(self, data: np.ndarray) -> None:
        self._data, self.at = data, 0

    def take(self, size: int) -> np.ndarray:
        if size > len(self._data) - self.at:
            raise ValueError(f"byte {self.at} begins {size} bytes, the file ends before")
        self.at += size
        return self._data[self.at - size : self.at]

    def numbers(self, kind: int, count: int) -> list[Any]:
        if kind not in _NUMBERS:
            raise ValueError(f"a value of type {kind}")
        dtype = np.dtype(_NUMBERS[kind])
        return self.take(count * dtype.itemsize).view(dtype).tolist()

    def u32(self) -> int:
        return int(self.numbers(4, 1)[0])

    def u64(self) -> int:
        return int(self.numbers(10, 1)[0])

    def text(self) -> str:
        return bytes(self.take(self.u64())).decode()

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self.numbers(kind, 1)[0]
        inner, count = self.u32(), self.u64()
        if inner != _STRING:
            if count > LARGEST_ARRAY:
                raise ValueError(f"an array of {count} numbers; at most {LARGEST_ARRAY} are read")
            return self.numbers(inner, count)
        if count > MOST_STRINGS:
            raise ValueError(f"an array of {count} strings; at most {MOST_STRINGS} are read")
        return [self.text() for _ in range(count)]


# Of a tensor: its dimensions, the fastest first, its type, and its place in the file.
_Entry = tuple[list[int], int, int]


def _metadata(cursor: _Cursor) -> tuple[dict[str, Any], dict[str, _Entry]]:
    """The fields of a file, and its tensors."""
    if bytes(cursor.take(4)) != b"GGUF":
        raise ValueError("it does not begin as one")
    version = cursor.u32()
    if version not in (2, 3):
        raise ValueError(f"version {version}; 2 and 3 of little-endian machines are read")
    tensors, count = cursor.u64(), cursor.u64()
    if count > MOST_FIELDS or tensors > MOST_TENSORS:
        raise ValueError(
            f"{count} fields and {tensors} tensors; at most {MOST_FIELDS} of each are read"
        )
    fields: dict[str, Any] = {}
    for _ in range(count):
        name = cursor.text()
        if name in fields:
            raise ValueError(f"field '{name}' is there twice")
        fields[name] = cursor.value(cursor.u32())
    entries: dict[str, _Entry] = {}
    for _ in range(tensors):
        name, rank = cursor.text(), cursor.u32()
        if name in entries or not 1 <= rank <= 4:
            raise ValueError(f"tensor '{name}' is there twice, or has {rank} dimensions")
        entries[name] = cursor.numbers(10, rank), cursor.u32(), cursor.u64()
    alignment = fields.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"alignment {alignment!r} is no power of two")
    start = -(-cursor.at // alignment) * alignment
    return fields, {
        name: (dims, kind, start + offset) for name, (dims, kind, offset) in entries.items()
    }


def _tokenizer(path: Path, fields: Mapping[str, Any]) -> Tokenizer:
    try:
        return from_gguf(fields)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


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
    check_sizes(path, layers=layers, heads=heads, width=width)
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


def _weight(data: np.ndarray, name: str, dims: list[int], kind: int, begin: int) -> Weight:
    """A tensor of a file. Raises ModelError for a type that gguf cannot take apart, and where the
    file ends before."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

    shape = tuple(reversed(dims))
    try:
        quantization = GGMLQuantizationType(kind)
        block, size = GGML_QUANT_SIZES[quantization]
        dequantize(np.zeros(size, np.uint8), quantization)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise ModelError(
            f"weights '{name}' are of type {kind}, which is not supported: quantize it otherwise"
        ) from error
    count, odd = divmod(shape[-1] * size, block)
    end = begin + math.prod(shape[:-1]) * count
    if odd or shape[-1] % block or min(shape) < 1 or end > len(data):
        raise ModelError(f"weights '{name}' {list(shape)} do not fit the file: download it again")
    stored = data[begin:end].reshape(*shape[:-1], count)

    def rows(wanted: slice) -> np.ndarray:
        if stored.ndim == 1:  # whose blocks are no rows
            return np.asarray(dequantize(stored, quantization)[wanted], np.float32)
        return np.asarray(dequantize(stored[wanted], quantization), np.float32)

    return Weight(shape, rows)
