"""ONNX decoders as optimum, onnxruntime-genai's builder and torch.onnx export them, beside their
configuration.

Weights are found by the names that exporters give to modules, and the decoder is written anew from
them, with a cache of static shape (frontends/decoder.py). The export itself then runs on
onnxruntime: where its logits are not those of the new decoder, it computes something that its
configuration does not say, and is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from compiler import importer
from compiler.errors import ModelError, first_line
from compiler.frontends import decoder, huggingface
from compiler.frontends.architecture import Architecture, Source, Weight
from compiler.graph import attribute_of, constant_of, input_at, only_consumer, produced_by, shape_of
from compiler.graph.reference import Reference

GENAI = "genai_config.json"
TOKENS = 12
# Largest difference of logits, as a share of the largest: the new decoder keeps its embeddings as
# float16.
TOLERANCE = 5e-3

_LINEAR = re.compile(
    r"layers[./](\d+)[./].*?\b(q_proj|k_proj|v_proj|qkv_proj|o_proj|gate_proj|up_proj|down_proj)\b"
)
_NAMED = re.compile(r"(?:^|\.)(model\.(?:layers\.\d+\..+|embed_tokens|norm)\.(?:weight|bias))$")
_FINAL_NORM = re.compile(r"final_norm_layernorm\.weight$")
_GGUF = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}


def recognises(path: Path) -> bool:
    """Whether an .onnx file is an exported decoder: its folder has a configuration of a family that
    is supported."""
    folder = path.parent
    if path.suffix != ".onnx" or not path.is_file():
        return False
    if (folder / GENAI).is_file():
        return True
    try:
        return (
            huggingface.read_json(folder / "config.json").get("model_type") in huggingface.SUPPORTED
        )
    except ModelError:
        return False


def read(path: Path) -> Source:
    """The decoder in an .onnx file. Raises ModelError for what is missing, and for exports that
    compute otherwise."""
    model = importer.read_file(path)
    folder = path.parent
    if (folder / GENAI).is_file():
        architecture, config = _genai(folder, model)
    else:
        config = huggingface.configuration(folder)
        architecture = huggingface.architecture(folder, config)
    gemma = config.get("model_type") == huggingface.GEMMA
    weights = _weights(model, architecture, gemma)
    source = Source(architecture, weights, huggingface.tokenizer(folder, config))
    _compare(path, source)
    return source


def _weights(model: ir.Model, a: Architecture, gemma: bool) -> dict[str, Weight]:
    found: dict[str, Weight] = {}
    for name, value in model.graph.initializers.items():
        match = None if _FINAL_NORM.search(str(name)) else _NAMED.search(str(name))
        if (
            match
            and value.const_value is not None
            and not re.search(r"_proj\.weight$", match.group(1))
        ):
            weight = _weight(value.const_value)
            plus = gemma and len(weight.shape) == 1
            found[huggingface.name_of(match.group(1), gemma)] = (
                huggingface.plus_one(weight) if plus else weight
            )
        elif _FINAL_NORM.search(str(name)) and value.const_value is not None:
            found["output_norm.weight"] = _weight(value.const_value)
    for node in model.graph:
        place = _place(node)
        if place is None:
            continue
        if node.op_type == "MatMulNBits":
            raise ModelError(
                f"{node.name}: its weights are in 4 bits already: export the model in fp16 or fp32"
            )
        linear = _linear(node)
        if linear is not None:
            for part, weight in _split(place, linear[0], a):
                found[f"{part}.weight"] = weight
            for part, weight in _split(place, linear[1], a) if linear[1] is not None else ():
                found[f"{part}.bias"] = weight
    return found


def _place(node: ir.Node) -> str | None:
    """GGUF's name of the linear layer that a node belongs to, by its name or by the scopes that
    torch writes down."""
    text = node.metadata_props.get("pkg.torch.onnx.name_scopes") or node.name or ""
    if re.search(r"\blm_head\b", text):
        return "output"
    match = _LINEAR.search(text)
    if match is None:
        return None
    return f"blk.{match.group(1)}.{_GGUF.get(match.group(2), 'qkv')}"


def _linear(node: ir.Node) -> tuple[Weight, Weight | None] | None:
    """(weight [N, K], bias [N] or None) of a MatMul or Gemm of constant weights."""
    if node.op_type not in ("MatMul", "Gemm"):
        return None
    value, flip = node.inputs[1], node.op_type == "MatMul" or not attribute_of(node, "transB", 0)
    before = produced_by(value, "Transpose")
    if before is not None:
        value, flip = before.inputs[0], not flip
    if value is None or value.const_value is None or len(value.const_value.shape) != 2:
        return None
    weight = _weight(value.const_value, flip)
    bias = input_at(node, 2)
    add = only_consumer(node.outputs[0])
    if bias is None and add is not None and add.op_type == "Add":
        bias = next((v for v in add.inputs if v is not None and v.const_value is not None), None)
    held = bias is not None and bias.const_value is not None and len(bias.const_value.shape) == 1
    return weight, _weight(bias.const_value) if held else None  # type: ignore[union-attr, arg-type]


def _weight(tensor: ir.TensorProtocol, flip: bool = False) -> Weight:
    shape = tuple(int(d) for d in tensor.shape)  # type: ignore[arg-type]

    def rows(wanted: slice) -> np.ndarray:
        array = tensor.numpy()
        return np.asarray(array[:, wanted].T if flip else array[wanted], np.float32)

    return Weight(shape[::-1] if flip else shape, rows)


def _split(name: str, weight: Weight | None, a: Architecture) -> list[tuple[str, Weight]]:
    """A weight, or the parts of joined query, key and value weights."""
    if weight is None or not name.endswith(".qkv"):
        return [] if weight is None else [(name, weight)]
    parts, begin = [], 0
    for kind, heads in (("attn_q", a.heads), ("attn_k", a.kv_heads), ("attn_v", a.kv_heads)):
        count = heads * a.head
        parts.append((name.replace("qkv", kind), _rows_from(weight, begin, count)))
        begin += count
    return parts


def _rows_from(weight: Weight, begin: int, count: int) -> Weight:
    def rows(wanted: slice) -> np.ndarray:
        return weight.rows(slice(begin + wanted.start, begin + min(wanted.stop, count)))

    return Weight((count, *weight.shape[1:]), rows)


def _genai(folder: Path, model: ir.Model) -> tuple[Architecture, dict[str, Any]]:
    """The architecture of a model of onnxruntime-genai's builder: its configuration, and what its
    operators say."""
    try:
        config = huggingface.read_json(folder / GENAI)["model"]
        own = config["decoder"]
        heads, layers = int(own["num_attention_heads"]), int(own["num_hidden_layers"])
        kv_heads, head = int(own["num_key_value_heads"]), int(own["head_size"])
        width, vocabulary, context = (
            int(own["hidden_size"]),
            int(config["vocab_size"]),
            int(config["context_length"]),
        )
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise ModelError(f"{folder / GENAI}: cannot be understood ({error!r})") from error
    attention = [n for n in model.graph if n.op_type == "GroupQueryAttention"]
    norm = next(
        (n for n in model.graph if n.op_type.endswith("SimplifiedLayerNormalization")), None
    )
    hidden = next(
        (w.shape[0] for n in model.graph if _is_gate(n) and (w := _gate(n)) is not None), None
    )
    if len(attention) != layers or norm is None or hidden is None:
        raise ModelError(
            f"{folder}: has no GroupQueryAttention or gated layer for each of its {layers} layers"
        )
    base, factors = _rotary(folder, attention[0])
    made = Architecture(
        name=folder.name,
        vocabulary=vocabulary,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head=head,
        hidden=hidden,
        epsilon=float(attribute_of(norm, "epsilon", 1e-6)),
        context=context,
        bases=(base,) * layers,
        windows=tuple(max(0, int(attribute_of(n, "local_window_size", -1))) for n in attention),
        interleaved=bool(attribute_of(attention[0], "rotary_interleaved", 0)),
        rotary=head,
        attention_scale=float(attribute_of(attention[0], "scale", 0.0)) or None,
        rope_factors=factors,
    )
    ends = {"eos_token_id": config.get("eos_token_id"), "bos_token_id": config.get("bos_token_id")}
    return made, ends


def _is_gate(node: ir.Node) -> bool:
    return (_place(node) or "").endswith("ffn_gate")


def _gate(node: ir.Node) -> Weight | None:
    linear = _linear(node)
    return linear[0] if linear is not None else None


def _rotary(folder: Path, attention: ir.Node) -> tuple[float, tuple[float, ...]]:
    """(base, what its frequencies are divided by) from the tables of cosines and sines of places 0
    and 1."""
    tables = [constant_of(input_at(attention, i)) for i in (7, 8)]
    if not attribute_of(attention, "do_rotary", 0) or any(t is None or len(t) < 2 for t in tables):
        raise ModelError(
            f"{folder}: rotary embedding outside of GroupQueryAttention is not supported"
        )
    cos, sin = (np.asarray(t, np.float64)[1] for t in tables)
    frequencies = np.arctan2(sin, cos)
    size = len(frequencies)
    base = float(frequencies[1] ** -size) if size > 1 else 10000.0
    factors = base ** (-np.arange(size) / size) / frequencies
    return base, () if np.allclose(factors, 1, rtol=1e-3) else tuple(float(f) for f in factors)


def _compare(path: Path, source: Source) -> None:
    """Run the export and the decoder that was made of it on the same tokens. Raises ModelError
    where they differ."""
    a = source.architecture
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        length = next(i.shape[1] for i in session.get_inputs() if i.name == "input_ids")
        length = length if isinstance(length, int) else TOKENS
        tokens = np.random.default_rng(0).integers(0, a.vocabulary, length)
        feeds = {i.name: _feed(i, tokens, a) for i in session.get_inputs()}
        (wanted,) = session.run(["logits"], feeds)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{path}: cannot be run as a decoder ({first_line(error)})") from error
    del session
    program_shape = decoder.ProgramShape(1, length, length, all_logits=True)
    model = decoder.write(source, program_shape)
    with Reference(model) as reference:
        cache = {
            str(v.name): np.zeros(shape_of(v), np.float32)
            for v in model.graph.inputs
            if len(shape_of(v)) == 4
        }
        own: dict[str, np.ndarray] = {
            "tokens": tokens[None],
            "lengths": np.array([length - 1], np.int32),
            "total": np.array([length], np.int32),
        }
        got = reference.run({**own, **cache}, ["logits"])["logits"]
    wanted = np.asarray(wanted, np.float32)
    differs, largest = (
        float(np.abs(got[:, -wanted.shape[1] :] - wanted).max()),
        float(np.abs(wanted).max()),
    )
    if not differs <= TOLERANCE * largest:
        raise ModelError(
            f"{path}: computes something else than its configuration says: logits of up to {largest:.3g} differ by "
            f"{differs:.3g}; build the folder of the original model instead"
        )


def _feed(value: Any, tokens: np.ndarray, a: Architecture) -> np.ndarray:
    """An input of an export for these tokens and nothing cached."""
    count = len(tokens)
    dtype = {
        "tensor(int64)": np.int64,
        "tensor(int32)": np.int32,
        "tensor(float16)": np.float16,
    }.get(value.type, np.float32)
    arrays: Mapping[str, np.ndarray] = {
        "input_ids": tokens[None],
        "attention_mask": np.ones((1, count)),
        "position_ids": np.arange(count)[None],
        "cache_position": np.arange(count),
    }
    if value.name in arrays:
        return arrays[value.name].astype(dtype)
    if value.name.startswith("past_key_values."):
        return np.zeros((1, a.kv_heads, 0, a.head), dtype)
    raise ModelError(
        f"input '{value.name}' of the exported decoder is not known: export it with optimum"
    )
