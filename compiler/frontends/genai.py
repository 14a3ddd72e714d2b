"""Models of onnxruntime-genai's builder: what genai_config.json and the operators say of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from compiler.errors import ModelError
from compiler.frontends.architecture import Architecture
from compiler.frontends.export_weights import layer_name, linear_weights
from compiler.frontends.textfile import read_json
from compiler.graph import attribute_of, constant_of, input_at

FILE = "genai_config.json"

# Inputs of GroupQueryAttention.
_COS_TABLE = 7
_SIN_TABLE = 8
# Frequencies that are a power series but for this have no factors; tables are float16 at worst.
_SAME_FREQUENCY = 1e-3


def read(folder: Path, model: ir.Model) -> tuple[Architecture, dict[str, Any]]:
    """(architecture, configuration of the tokenizer) of a model. Raises ModelError.

    The configuration has sizes only; epsilon, windows, scales and rotary embedding are read off
    the operators.
    """
    config, sizes = _sizes(folder)
    layers = sizes["layers"]
    attention = [node for node in model.graph if node.op_type == "GroupQueryAttention"]
    norm = _first_norm(model.graph)
    hidden = _hidden_size(model.graph)
    if len(attention) != layers or norm is None or hidden is None:
        raise ModelError(
            f"{folder}: has no GroupQueryAttention or gated layer for each of its {layers} layers"
        )
    first = attention[0]
    base, factors = _rotary(folder, first)
    architecture = Architecture(
        name=folder.name,
        vocabulary=sizes["vocabulary"],
        width=sizes["width"],
        layers=layers,
        heads=sizes["heads"],
        kv_heads=sizes["kv_heads"],
        head=sizes["head"],
        hidden=hidden,
        epsilon=float(attribute_of(norm, "epsilon", 1e-6)),
        context=sizes["context"],
        bases=(base,) * layers,
        windows=_windows(attention),
        interleaved=bool(attribute_of(first, "rotary_interleaved", 0)),
        rotary=sizes["head"],
        attention_scale=float(attribute_of(first, "scale", 0.0)) or None,
        rope_factors=factors,
    )
    tokens = {key: config.get(key) for key in ("eos_token_id", "bos_token_id")}
    return architecture, tokens


def _sizes(folder: Path) -> tuple[Mapping[str, Any], dict[str, int]]:
    """(the model's entry of the configuration, its sizes by their names in Architecture)."""
    try:
        config = read_json(folder / FILE)["model"]
        decoder = config["decoder"]
        return config, {
            "heads": int(decoder["num_attention_heads"]),
            "layers": int(decoder["num_hidden_layers"]),
            "kv_heads": int(decoder["num_key_value_heads"]),
            "head": int(decoder["head_size"]),
            "width": int(decoder["hidden_size"]),
            "vocabulary": int(config["vocab_size"]),
            "context": int(config["context_length"]),
        }
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise ModelError(f"{folder / FILE}: cannot be understood ({error!r})") from error


def _first_norm(graph: ir.Graph) -> ir.Node | None:
    for node in graph:
        # SimplifiedLayerNormalization, or the same with the residual sum in front.
        if node.op_type.endswith("SimplifiedLayerNormalization"):
            return node
    return None


def _hidden_size(graph: ir.Graph) -> int | None:
    """Channels of the feed-forward part: the rows of the first gate."""
    for node in graph:
        layer = layer_name(node)
        if layer is None or not layer.endswith("ffn_gate"):
            continue
        weight, _ = linear_weights(node)
        if weight is not None:
            return weight.shape[0]
    return None


def _windows(attention: Sequence[ir.Node]) -> tuple[int, ...]:
    """How many tokens each layer looks back; the operator says -1 for all, we say 0."""
    sizes = [int(attribute_of(node, "local_window_size", -1)) for node in attention]
    return tuple(max(0, size) for size in sizes)


def _rotary(folder: Path, attention: ir.Node) -> tuple[float, tuple[float, ...]]:
    """(base, what its frequencies are divided by), read off the tables of cosines and sines.

    Row 1 of the tables has the angles of one step, the frequencies themselves. The slowest of N is
    base^(-(N-1)/N) over its factor; the second is base^(-1/N), which no scaling changes.
    """
    cos = constant_of(input_at(attention, _COS_TABLE))
    sin = constant_of(input_at(attention, _SIN_TABLE))
    has_tables = cos is not None and sin is not None and min(len(cos), len(sin)) >= 2
    if not has_tables or not attribute_of(attention, "do_rotary", 0):
        raise ModelError(
            f"{folder}: rotary embedding outside of GroupQueryAttention is not supported"
        )
    assert cos is not None and sin is not None
    frequencies = np.arctan2(np.asarray(sin[1], np.float64), np.asarray(cos[1], np.float64))
    count = len(frequencies)
    base = float(frequencies[1] ** -count) if count > 1 else 10000.0
    unscaled = base ** (-np.arange(count) / count)
    factors = unscaled / frequencies
    if np.allclose(factors, 1, rtol=_SAME_FREQUENCY):
        return base, ()
    return base, tuple(factors.tolist())
