"""What a decoder-only language model of the Llama family is made of, wherever it was read from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from compiler.errors import ModelError


@dataclass(frozen=True)
class Weight:
    """A tensor that stays in its file: `rows` reads some of its rows (first axis) as float32."""

    shape: tuple[int, ...]
    rows: Callable[[slice], np.ndarray]

    def array(self) -> np.ndarray:
        return self.rows(slice(0, self.shape[0]))


@dataclass(frozen=True)
class Architecture:
    """Sizes and habits of a decoder.

    `interleaved` tells that rotary embedding turns neighbours (GGUF's Llama) and not halves.
    `windows` gives, per layer, how many tokens attention looks back, 0 for all; `bases` the rotary
    base of each layer.
    """

    name: str
    vocabulary: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    hidden: int
    epsilon: float
    context: int
    bases: tuple[float, ...]
    windows: tuple[int, ...]
    interleaved: bool
    rotary: int
    activation: str = "silu"
    embedding_scale: float = 1.0
    attention_scale: float | None = None
    rope_factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        sizes = ("vocabulary", "width", "layers", "heads", "kv_heads", "head", "hidden", "context")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ModelError(
                    f"{self.name}: {name} is {getattr(self, name)}; it must be positive"
                )
        if self.head % 16:
            raise ModelError(
                f"{self.name}: heads of {self.head}; onnxruntime's attention takes multiples of 16"
            )
        if self.heads % self.kv_heads:
            raise ModelError(
                f"{self.name}: {self.heads} heads cannot share {self.kv_heads} keys and values"
            )


@dataclass(frozen=True)
class Tokenizer:
    """`definition` is the JSON of Hugging Face's tokenizers library."""

    definition: str
    begin: int | None
    ends: tuple[int, ...]
    add_begin: bool
    chat_template: str | None


@dataclass(frozen=True)
class Source:
    """A language model in its file. `weights` have GGUF's names. `rotation` is what the rows of
    `ffn_down` are multiplied by, block for block, as its weights undo it."""

    architecture: Architecture
    weights: Mapping[str, Weight]
    tokenizer: Tokenizer
    rotation: np.ndarray | None = None

    def weight(self, name: str, *shape: int) -> Weight:
        """A weight of a known shape. Raises ModelError."""
        found = self.weights.get(name)
        if found is None:
            raise ModelError(
                f"{self.architecture.name}: weights '{name}' are missing: the file is incomplete"
            )
        if found.shape != shape:
            raise ModelError(
                f"{self.architecture.name}: weights '{name}' are {list(found.shape)}, not {list(shape)}"
            )
        return found
