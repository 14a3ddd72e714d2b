"""The families of language models that can be read, and how each differs from Llama.

To add a family, add its row here. What it computes otherwise than the decoder of decoder.py needs a
field here (or in architecture.py, where models of one family differ) and a step there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

# Modules of Hugging Face's Llama, by the names of their weights in GGUF, which are used here.
_LLAMA_MODULES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate_up_proj": "ffn_up",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


@dataclass(frozen=True)
class Family:
    """What one family of decoders computes, and how its files are written.

    `gguf` is what GGUF files call it (general.architecture), `model_type` what config.json does.
    """

    gguf: str
    model_type: str
    # "silu" or "gelu", of the gate in the feed-forward part.
    activation: str = "silu"
    # Whether embeddings are multiplied by the square root of their width.
    scales_embedding: bool = False

    # Whether GGUF's converter reorders queries and keys, so that rotary embedding turns neighbours
    # and not halves of a head.
    gguf_interleaved: bool = False
    # Of so many layers, all but the last look back a window only and have the local rotary base.
    # GGUF files do not say so. 0: all layers are alike.
    gguf_layer_period: int = 0
    gguf_local_base: float = 10000.0
    # Of so many layers, the last has no rotary embedding. GGUF files do not say so either.
    gguf_no_rope_period: int = 0

    # Whether there are norms in front of attention and of the feed-forward part.
    norms_inputs: bool = True
    # Whether all layers look back a window only, though config.json does not list their types.
    always_windowed: bool = False
    # What safetensors leave out of the gains of norms: Gemma stores them less one.
    gain_offset: float = 0.0
    # Modules that are called otherwise than Llama's.
    other_modules: Mapping[str, str] = field(default_factory=dict)

    @property
    def modules(self) -> dict[str, str]:
        """GGUF's name of each module, within its layer, of Hugging Face's model."""
        return _LLAMA_MODULES | dict(self.other_modules)


LLAMA = Family("llama", "llama", gguf_interleaved=True)

FAMILIES = (
    LLAMA,
    Family("mistral", "mistral", gguf_interleaved=True, always_windowed=True),
    Family("qwen2", "qwen2"),
    Family("qwen3", "qwen3"),
    Family("smollm3", "smollm3", gguf_interleaved=True, gguf_no_rope_period=4),
    Family("phi3", "phi3"),
    Family("granite", "granite", gguf_interleaved=True),
    Family(
        "olmo2",
        "olmo2",
        norms_inputs=False,
        other_modules={
            "post_attention_layernorm": "post_attention_norm",
            "post_feedforward_layernorm": "post_ffw_norm",
        },
    ),
    Family(
        "gemma3",
        "gemma3_text",
        activation="gelu",
        scales_embedding=True,
        gguf_layer_period=6,
        gain_offset=1.0,
        # Gemma has norms behind its blocks too; the one in front of the feed-forward part has
        # another name, and Llama's name for that means the one behind attention.
        other_modules={
            "post_attention_layernorm": "post_attention_norm",
            "pre_feedforward_layernorm": "ffn_norm",
            "post_feedforward_layernorm": "post_ffw_norm",
        },
    ),
)

BY_GGUF = {family.gguf: family for family in FAMILIES}
BY_MODEL_TYPE = {family.model_type: family for family in FAMILIES}

_LAYER_MODULE = re.compile(r"model\.layers\.(\d+)\.(.+)")


def gguf_name(name: str, family: Family) -> str:
    """GGUF's name of a tensor that is called `name` in safetensors."""
    module, _, kind = name.rpartition(".")
    layer = _LAYER_MODULE.fullmatch(module)
    if layer is None:
        return f"{family.modules.get(module, module)}.{kind}"
    index, inner = layer.groups()
    return f"blk.{index}.{family.modules.get(inner, inner)}.{kind}"
