"""How models stretch rotary embedding beyond the context that they were first trained for.

    linear    every frequency is divided by one factor
    llama3    slow frequencies are, fast ones are not, and those between by something between
    yarn      the same by other bounds; cosines and sines are multiplied by a magnitude besides
    dynamic   the base grows with the context of the bundle, beyond the trained one
    longrope  every frequency has a factor, and another one for contexts as long as the trained one

Sources: transformers, modeling_rope_utils; llama.cpp, ggml_rope_ext.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from compiler.errors import ModelError
from compiler.frontends.architecture import Architecture, Source

_BETA_FAST, _BETA_SLOW = 32.0, 1.0


@dataclass(frozen=True)
class Scaling:
    """What `Architecture` holds of rotary scaling; `longer` is by how much it stretches a context
    that is stated without it."""

    factors: tuple[float, ...] = ()
    magnitude: float = 1.0
    dynamic: float = 1.0
    longer: float = 1.0
    short_factors: tuple[float, ...] = ()
    short_context: int = 0

    def entered(self, architecture: Architecture) -> Architecture:
        """The architecture with this scaling."""
        return replace(
            architecture,
            rope_factors=self.factors,
            rope_magnitude=self.magnitude,
            rope_dynamic=self.dynamic,
            rope_short_factors=self.short_factors,
            rope_short_context=self.short_context,
        )


def of_config(
    where: object, config: Mapping[str, Any], base: float, rotary: int, longest: int
) -> Scaling:
    """What Hugging Face's parameters `config` of rotary scaling say.

    `where` is the model, `longest` the context that it states. Raises ModelError for kinds that are
    not known.
    """
    config = {"original_max_position_embeddings": longest, **config}
    kind = config.get("rope_type", config.get("type", "default"))
    if kind == "default":
        return Scaling()
    if kind == "llama3":
        return Scaling(_llama3(config, base, rotary))
    trained = float(config["original_max_position_embeddings"])
    # "su" is an older name.
    if kind in ("longrope", "su"):
        factors = config["short_factor"], config["long_factor"]
        return longrope(*factors, int(trained), longest, config.get("attention_factor"))
    if kind not in ("linear", "dynamic", "yarn"):
        raise ModelError(
            f"{where}: its rotary scaling '{kind}' is not supported; "
            "linear, dynamic, yarn, longrope and llama3 are"
        )
    factor = float(config["factor"])
    if not 1 <= factor < math.inf:
        raise ValueError(f"its rotary scaling has factor {factor}")
    if kind == "linear":
        return Scaling((factor,))
    if kind == "dynamic":
        return Scaling(dynamic=factor, longer=factor)
    return Scaling(
        yarn(factor, trained, base, rotary, config),
        _magnitude(config, factor),
        longer=max(1.0, factor * trained / longest),
    )


def of_gguf(where: object, fields: Mapping[str, Any], base: float, rotary: int) -> Scaling:
    """What the fields of a GGUF file say, by their names behind the architecture's. Raises
    ModelError for kinds that are not known."""
    kind = fields.get("rope.scaling.type", "none")
    factor = float(fields.get("rope.scaling.factor", 1.0))
    # The factors of longrope are stored as weights.
    if kind in ("none", "longrope") or factor == 1:
        return Scaling()
    if kind == "linear":
        return Scaling((factor,))
    if kind != "yarn":
        raise ModelError(f"{where}: it uses rotary scaling '{kind}', which is not supported")
    longest = float(fields["context_length"])
    trained = float(fields.get("rope.scaling.original_context_length", longest))
    magnitude = yarn_magnitude(factor) * float(fields.get("rope.scaling.attn_factor", 1.0))
    longer = max(1.0, factor * trained / longest)
    return Scaling(yarn(factor, trained, base, rotary), magnitude, longer=longer)


def longrope(
    short: Sequence[float], long: Sequence[float], trained: int, context: int, gain: float | None
) -> Scaling:
    """Factors for contexts up to the `trained` one, and for longer ones up to `context`.

    Without a `gain`, what cosines and sines are multiplied by follows from both contexts.
    """
    factor = context / trained
    if gain is None:
        gain = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(trained))
    factors = tuple(map(float, long)), tuple(map(float, short))
    return Scaling(factors[0], float(gain), short_factors=factors[1], short_context=trained)


def yarn(
    factor: float, trained: float, base: float, rotary: int, bounds: Mapping[str, Any] | None = None
) -> tuple[float, ...]:
    """What each rotary frequency is divided by: those that turn less than `beta_slow` times within
    the `trained` context by `factor`, more than `beta_fast` times by 1."""
    bounds = bounds or {}

    def channel(turns: float) -> float:
        """The pair of channels that turns so often."""
        return rotary * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(base))

    first = channel(float(bounds.get("beta_fast") or _BETA_FAST))
    last = channel(float(bounds.get("beta_slow") or _BETA_SLOW))
    if bounds.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rotary - 1)
    # Not a single point, which could not be divided by.
    width = last - first or 0.001
    share_slow = np.clip((np.arange(rotary // 2) - first) / width, 0, 1)
    return tuple((1 / (share_slow / factor + 1 - share_slow)).tolist())


def yarn_magnitude(factor: float, scale: float = 1.0) -> float:
    """What cosines and sines are multiplied by, so that attention stays as sharp."""
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def for_context(source: Source, context: int) -> Source:
    """The model for bundles of so many tokens: `dynamic` scaling depends on it."""
    architecture = source.architecture
    factor = architecture.rope_dynamic
    if factor == 1:
        return source
    trained = architecture.context / factor
    length = max(context, trained)
    growth = factor * length / trained - (factor - 1)
    rotary = architecture.rotary
    bases = tuple(base * growth ** (rotary / (rotary - 2)) for base in architecture.bases)
    settled = replace(architecture, bases=bases, rope_dynamic=1.0)
    return replace(source, architecture=settled)


def tables(architecture: Architecture, base: float, places: int) -> tuple[np.ndarray, np.ndarray]:
    """(cos, sin) [places, rotary / 2] of the angles of every place, float32.

    Channel pair i of place p is turned by p * base^(-2i / rotary), divided by its factor.
    A base of 0 turns nothing.
    """
    rotary = architecture.rotary
    exponents = -np.arange(0, rotary, 2) / rotary
    frequencies = base**exponents if base else np.zeros(rotary // 2)
    magnitude = 1.0
    # Layers with a window have a smaller base of their own and are not stretched.
    if base and base == max(architecture.bases):
        magnitude = architecture.rope_magnitude
        is_short = places <= architecture.rope_short_context
        factors = architecture.rope_short_factors if is_short else architecture.rope_factors
        if factors:
            frequencies = frequencies / np.array(factors)
    angles = np.arange(places)[:, None] * frequencies
    cos, sin = np.cos(angles) * magnitude, np.sin(angles) * magnitude
    return cos.astype(np.float32), sin.astype(np.float32)


def _llama3(config: Mapping[str, Any], base: float, rotary: int) -> tuple[float, ...]:
    factor = float(config["factor"])
    low = float(config["low_freq_factor"])
    high = float(config["high_freq_factor"])
    trained = float(config["original_max_position_embeddings"])
    if not (factor > 0 and high > low):
        raise ValueError(
            f"its rotary scaling has factor {factor}, and frequency factors {low} to {high}"
        )
    # Tokens that a channel pair takes for a full turn.
    wavelengths = 2 * math.pi * base ** (np.arange(0, rotary, 2) / rotary)
    share_short = np.clip((trained / wavelengths - low) / (high - low), 0, 1)
    kept_frequency = (1 - share_short) / factor + share_short
    return tuple((1 / kept_frequency).tolist())


def _magnitude(config: Mapping[str, Any], factor: float) -> float:
    """What cosines and sines are multiplied by."""
    given = config.get("attention_factor")
    if given is not None:
        return float(given)
    scale, scale_below = config.get("mscale"), config.get("mscale_all_dim")
    if not scale or not scale_below:
        return yarn_magnitude(factor)
    return yarn_magnitude(factor, float(scale)) / yarn_magnitude(factor, float(scale_below))
