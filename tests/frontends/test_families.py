"""A family of models is one row; the readers of files take what is special about it from there."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from compiler.errors import ModelError
from compiler.frontends import families, huggingface, open_source
from compiler.frontends.families import Family

WIDTH = 64
CONFIG: dict[str, Any] = {
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "hidden_size": WIDTH,
    "intermediate_size": 96,
    "vocab_size": 4,
    "sliding_window": 32,
}


def folder_of(place: Path, tensors: dict[str, np.ndarray], **config: Any) -> Path:
    """A Hugging Face folder with some float32 tensors."""
    header = {}
    data = b""
    for name, array in tensors.items():
        begin = len(data)
        data += array.astype(np.float32).tobytes()
        offsets = [begin, len(data)]
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": offsets}
    text = json.dumps(header).encode()
    (place / "m.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    (place / "config.json").write_text(json.dumps(CONFIG | config))
    vocabulary = {"a": 0, "b": 1, "c": 2, "d": 3}
    (place / "tokenizer.json").write_text(Tokenizer(models.BPE(vocabulary, [])).to_str())
    return place


def test_a_new_family_is_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = Family(
        "other",
        "other_text",
        activation="gelu",
        scales_embedding=True,
        always_windowed=True,
        gain_offset=1.0,
        other_modules={"first_norm": "attn_norm"},
    )
    monkeypatch.setitem(families.BY_MODEL_TYPE, "other_text", family)
    gain = np.arange(WIDTH, dtype=np.float32)
    tensors = {
        "model.layers.1.first_norm.weight": gain,
        "model.layers.1.mlp.up_proj.weight": np.ones((96, WIDTH)),
    }
    source = open_source(folder_of(tmp_path, tensors, model_type="other_text"))
    assert set(source.weights) == {"blk.1.attn_norm.weight", "blk.1.ffn_up.weight"}
    np.testing.assert_array_equal(source.weights["blk.1.attn_norm.weight"].array(), gain + 1)
    np.testing.assert_array_equal(source.weights["blk.1.ffn_up.weight"].array(), 1)
    found = source.architecture
    assert (found.activation, found.windows) == ("gelu", (32, 32))
    assert found.embedding_scale == math.sqrt(WIDTH)


def test_names_of_gemmas_norms_differ_from_llamas() -> None:
    """The same module name means another norm."""
    name = "model.layers.0.post_attention_layernorm.weight"
    llama = huggingface.gguf_name(name, families.LLAMA)
    gemma = huggingface.gguf_name(name, families.BY_GGUF["gemma3"])
    assert (llama, gemma) == ("blk.0.ffn_norm.weight", "blk.0.post_attention_norm.weight")


@pytest.mark.parametrize("place", ["rope_scaling", "rope_parameters", "full_attention"])
def test_rotary_scaling_that_is_not_known_is_refused(place: str, tmp_path: Path) -> None:
    """Wherever it is written; read without it, the model would compute something else."""
    scaling: dict[str, Any] = {"rope_type": "longrope", "factor": 8.0}
    config: dict[str, Any] = {place: scaling}
    if place == "full_attention":
        kinds = {"full_attention": scaling, "sliding_attention": {"rope_type": "default"}}
        config = {"rope_parameters": kinds}
    with pytest.raises(ModelError, match="its rotary scaling 'longrope' is not supported"):
        open_source(
            folder_of(
                tmp_path, {"model.norm.weight": np.ones(WIDTH)}, model_type="gemma3_text", **config
            )
        )
