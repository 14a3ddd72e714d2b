"""What a decoder-only language model of the Llama family is made of, wherever it was read from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from compiler.errors import ModelError
from compiler.frontends.blocks import BlockForm

# Lists and tables are made of these numbers, which a stranger's file gives.
MOST_LAYERS = 4096
LARGEST_SIZE = 1 << 24
LARGEST_CONTEXT = 1 << 31
# What onnxruntime's GroupQueryAttention takes: heads of a multiple of so many channels.
HEAD_MULTIPLE = 16

_LIMITS = {"layers": MOST_LAYERS, "context": LARGEST_CONTEXT}


def check_sizes(where: object, **sizes: int) -> None:
    """Raises ModelError for a size that no model has; `where` is the file or the model."""
    for name, size in sizes.items():
        most = _LIMITS.get(name, LARGEST_SIZE)
        if not 1 <= size <= most:
            raise ModelError(f"{where}: {name} is {size}; it must be positive and at most {most}")


@dataclass(frozen=True)
class Weight:
    """A tensor that stays in its file: `rows` reads some of its rows (first axis) as float32.

    `blocks` reads them as they are stored, where that is in blocks of small integers.
    """

    shape: tuple[int, ...]
    rows: Callable[[slice], np.ndarray]
    blocks: BlockForm | None = None

    def array(self) -> np.ndarray:
        """The whole tensor as float32."""
        return self.rows(slice(0, self.shape[0]))


@dataclass(frozen=True)
class Architecture:
    """Sizes of a decoder, and which forms its operators take. Raises ModelError for such as cannot
    be."""

    name: str
    vocabulary: int
    width: int  # of the residual stream
    layers: int
    heads: int
    kv_heads: int
    head: int  # channels of a head
    hidden: int  # channels of the feed-forward part
    epsilon: float  # of all norms
    context: int  # the most tokens that the model was trained for
    bases: tuple[float, ...]  # rotary base, per layer; 0 for none
    windows: tuple[int, ...]  # how many tokens attention looks back, per layer; 0 for all
    interleaved: bool  # whether rotary embedding turns neighbours, as GGUF's Llama, or halves
    rotary: int  # channels of a head that rotary embedding turns
    activation: str = "silu"  # or "gelu"
    embedding_scale: float = 1.0
    attention_scale: float | None = None  # None for 1 / sqrt(head)
    rope_factors: tuple[float, ...] = ()  # what rotary frequencies are divided by: one, or for each
    rope_magnitude: float = 1.0  # of cosines and sines
    # The factors of programs for up to so many tokens, where they have others.
    rope_short_factors: tuple[float, ...] = ()
    rope_short_context: int = 0
    # By which factor `context` exceeds the trained one, where rotary bases are to grow for that.
    rope_dynamic: float = 1.0
    norms_inputs: bool = True  # whether there are norms in front of attention and of feed-forward

    def __post_init__(self) -> None:
        check_sizes(
            self.name,
            vocabulary=self.vocabulary,
            width=self.width,
            layers=self.layers,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head=self.head,
            hidden=self.hidden,
            context=self.context,
            rotary=self.rotary,
        )
        problem = self._layers_problem() or self._numbers_problem() or self._heads_problem()
        if problem is not None:
            raise ModelError(f"{self.name}: {problem}")

    def _layers_problem(self) -> str | None:
        for factors in (self.rope_factors, self.rope_short_factors):
            if len(factors) not in (0, 1, self.rotary // 2):
                return f"{len(factors)} rotary factors for {self.rotary} channels"
        if len(self.bases) != self.layers or len(self.windows) != self.layers:
            return f"{len(self.bases)} kinds of layers for {self.layers} layers"
        if self.rotary > self.head or self.rotary % 2:
            return f"rotary embedding of {self.rotary} in heads of {self.head}"
        return None

    def _numbers_problem(self) -> str | None:
        scales = (
            self.epsilon,
            self.embedding_scale,
            self.attention_scale or 1.0,
            self.rope_magnitude,
            self.rope_dynamic,
        )
        bases = [base for base in self.bases if base != 0]
        numbers = (*scales, *bases, *self.rope_factors, *self.rope_short_factors)
        are_positive = all(0 < number < math.inf for number in numbers)
        if are_positive and min(self.windows) >= 0:
            return None
        return (
            "its epsilon, scales, rotary bases and factors must be positive, "
            "its window not negative"
        )

    def _heads_problem(self) -> str | None:
        if self.head % HEAD_MULTIPLE:
            return (
                f"heads of {self.head}; onnxruntime's attention takes multiples of {HEAD_MULTIPLE}"
            )
        if self.rotary % HEAD_MULTIPLE:
            return (
                f"rotary embedding of {self.rotary} channels; onnxruntime's attention takes "
                f"multiples of {HEAD_MULTIPLE}"
            )
        if self.heads % self.kv_heads:
            return f"{self.heads} heads cannot share {self.kv_heads} keys and values"
        return None


@dataclass(frozen=True)
class Tokenizer:
    """How a model cuts text into tokens.

    `definition` is the JSON of Hugging Face's tokenizers library; `begin` and `ends` are tokens of
    the model, and `add_begin` whether texts start with `begin`.
    """

    definition: str
    begin: int | None
    ends: tuple[int, ...]
    add_begin: bool
    chat_template: str | None


@dataclass(frozen=True)
class Source:
    """A language model in its file. `weights` have GGUF's names.

    `rotation` [B, B], where there is one, was multiplied to `ffn_down`, block for block of its
    inputs: the decoder has to multiply what it feeds to that layer by the same matrix.
    """

    architecture: Architecture
    weights: Mapping[str, Weight]
    tokenizer: Tokenizer
    rotation: np.ndarray | None = None

    def __post_init__(self) -> None:
        size = self.architecture.vocabulary
        for token in (self.tokenizer.begin, *self.tokenizer.ends):
            if token is not None and not 0 <= token < size:
                raise ModelError(
                    f"{self.architecture.name}: token {token} begins or ends texts, "
                    f"but the model has {size} tokens"
                )

    def weight(self, name: str, *shape: int) -> Weight:
        """A weight of a known shape. Raises ModelError."""
        found = self.weights.get(name)
        if found is None:
            raise ModelError(
                f"{self.architecture.name}: weights '{name}' are missing: the file is incomplete"
            )
        if found.shape != shape:
            raise ModelError(
                f"{self.architecture.name}: weights '{name}' are {list(found.shape)}, "
                f"not {list(shape)}"
            )
        return found
