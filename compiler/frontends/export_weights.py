"""Finds the weights of an exported decoder by the names that exporters give to modules.

Gains, embeddings and biases keep the names of their modules as initializers. Weights of linear
layers often do not: they are found at the MatMul or Gemm that a module became.
"""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir

from compiler.errors import ModelError
from compiler.frontends.architecture import Architecture, Weight
from compiler.frontends.families import Family, gguf_name
from compiler.frontends.huggingface import with_whole_gain
from compiler.graph import attribute_of, input_at, only_consumer, produced_by

# Names of nodes: optimum writes `layers.0/self_attn/q_proj`, others have dots all along.
_LINEAR = re.compile(
    r"layers[./](\d+)[./].*?\b(q_proj|k_proj|v_proj|qkv_proj|o_proj|gate_proj|up_proj|down_proj)\b"
)
_HEAD = re.compile(r"\blm_head\b")
# Names of initializers.
_MODULE = re.compile(r"(?:^|\.)(model\.(?:layers\.\d+\..+|embed_tokens|norm)\.(?:weight|bias))$")
_LINEAR_WEIGHT = re.compile(r"_proj\.weight$")
_FINAL_NORM = re.compile(r"final_norm_layernorm\.weight$")  # of onnxruntime-genai
_LAYERS = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "qkv_proj": "qkv",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}


def find_weights(model: ir.Model, architecture: Architecture, family: Family) -> dict[str, Weight]:
    """The weights of an exported decoder by GGUF's names. Raises ModelError for 4-bit weights."""
    found: dict[str, Weight] = {}
    for name, value in model.graph.initializers.items():
        if value.const_value is None:
            continue
        key = _initializer_name(str(name), family)
        if key == "output_norm.weight" and _FINAL_NORM.search(str(name)):
            found[key] = _weight(value.const_value)
        elif key is not None:
            found[key] = with_whole_gain(_weight(value.const_value), family)
    for node in model.graph:
        layer = layer_name(node)
        if layer is None:
            continue
        if node.op_type == "MatMulNBits":
            raise ModelError(
                f"{node.name}: its weights are in 4 bits already: export the model in fp16 or fp32"
            )
        weight, bias = linear_weights(node)
        if weight is not None:
            found |= _by_name(layer, "weight", weight, architecture)
        if bias is not None:
            found |= _by_name(layer, "bias", bias, architecture)
    return found


def layer_name(node: ir.Node) -> str | None:
    """GGUF's name of the linear layer that a node belongs to; None where it belongs to none.

    It stands in the node's name, or in the scopes that torch writes down. Joined queries, keys and
    values are `blk.i.qkv`.
    """
    text = node.metadata_props.get("pkg.torch.onnx.name_scopes") or node.name or ""
    if _HEAD.search(text):
        return "output"
    match = _LINEAR.search(text)
    if match is None:
        return None
    index, module = match.groups()
    return f"blk.{index}.{_LAYERS[module]}"


def linear_weights(node: ir.Node) -> tuple[Weight | None, Weight | None]:
    """(weight [N, K], bias [N]) of a MatMul or Gemm of constant weights; None for what it lacks."""
    if node.op_type not in ("MatMul", "Gemm"):
        return None, None
    value = node.inputs[1]
    # MatMul multiplies by [K, N]; Gemm too, unless it transposes.
    is_transposed = node.op_type == "Gemm" and bool(attribute_of(node, "transB", 0))
    transpose = produced_by(value, "Transpose")
    if transpose is not None:
        value = transpose.inputs[0]
        is_transposed = not is_transposed
    if value is None or value.const_value is None or len(value.const_value.shape) != 2:
        return None, None
    weight = _weight(value.const_value, transpose=not is_transposed)
    bias = _bias(node)
    if bias is None or len(bias.shape) != 1:
        return weight, None
    return weight, _weight(bias)


def _bias(node: ir.Node) -> ir.TensorProtocol | None:
    """What a linear layer adds: the third input of Gemm, or a constant in an Add behind it."""
    value = input_at(node, 2)
    if value is not None:
        return value.const_value
    add = only_consumer(node.outputs[0])
    if add is None or add.op_type != "Add":
        return None
    for addend in add.inputs:
        if addend is not None and addend.const_value is not None:
            return addend.const_value
    return None


def _initializer_name(name: str, family: Family) -> str | None:
    """GGUF's name of a gain, an embedding or a bias; None for other initializers."""
    if _FINAL_NORM.search(name):
        return "output_norm.weight"
    match = _MODULE.search(name)
    # Whether a linear layer's weight is stored transposed is only seen at its node.
    if match is None or _LINEAR_WEIGHT.search(match.group(1)):
        return None
    return gguf_name(match.group(1), family)


def _by_name(
    layer: str, kind: str, weight: Weight, architecture: Architecture
) -> dict[str, Weight]:
    """A weight or a bias by its name; joined queries, keys and values by three."""
    if not layer.endswith(".qkv"):
        return {f"{layer}.{kind}": weight}
    prefix = layer.removesuffix("qkv")
    heads = {
        "attn_q": architecture.heads,
        "attn_k": architecture.kv_heads,
        "attn_v": architecture.kv_heads,
    }
    parts = {}
    begin = 0
    for name, head_count in heads.items():
        count = head_count * architecture.head
        parts[f"{prefix}{name}.{kind}"] = _rows_from(weight, begin, count)
        begin += count
    return parts


def _weight(tensor: ir.TensorProtocol, transpose: bool = False) -> Weight:
    shape = tuple(int(size) for size in tensor.shape)  # type: ignore[arg-type]

    def rows(wanted: slice) -> np.ndarray:
        array = tensor.numpy()
        part = array[:, wanted].T if transpose else array[wanted]
        return np.asarray(part, np.float32)

    return Weight(shape[::-1] if transpose else shape, rows)


def _rows_from(weight: Weight, begin: int, count: int) -> Weight:
    """`count` rows of a weight from row `begin` on."""

    def rows(wanted: slice) -> np.ndarray:
        return weight.rows(slice(begin + wanted.start, begin + min(wanted.stop, count)))

    return Weight((count, *weight.shape[1:]), rows)
