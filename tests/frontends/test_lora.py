"""LoRA adapters, merged while weights are read, against weights that numpy merged before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import save_file

from compiler.errors import ModelError
from compiler.frontends import Source, open_source
from compiler.frontends.families import BY_MODEL_TYPE, gguf_name
from fixtures.families import TOKENS, drawn
from tests.frontends.test_computed import (
    FOUND,
    interleaved,
    last_logits,
    tensors_of,
    written_gguf,
)
from tests.frontends.test_families import folder_of

RANK = 4
ALPHA = 6.0
FACTORS = dict[str, tuple[np.ndarray, np.ndarray]]


def factors_of(name: str) -> FACTORS:
    """(A, B) of each linear layer of the first two layers."""
    found = {}
    for key, (rows, *rest) in FOUND[name]["shapes"].items():
        if rest and (".0." in key or ".1." in key):
            down = drawn(f"{key}/A", (RANK, rest[0]))
            found[key] = down, drawn(f"{key}/B", (rows, RANK))
    return found


def merged_folder(name: str, folder: Path) -> Source:
    """The model with weights that were merged by the definition."""
    tensors = tensors_of(name)
    for key, (down, up) in factors_of(name).items():
        tensors[key] = tensors[key] + ALPHA / RANK * up @ down
    folder.mkdir()
    return open_source(folder_of(folder, tensors, **FOUND[name]["config"]))


def peft_folder(name: str, folder: Path, **config: Any) -> Path:
    folder.mkdir()
    tensors = {}
    for key, (down, up) in factors_of(name).items():
        module = f"base_model.model.{key.removesuffix('.weight')}"
        tensors[f"{module}.lora_A.weight"] = down
        tensors[f"{module}.lora_B.weight"] = up
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"r": RANK, "lora_alpha": ALPHA, "bias": "none"} | config
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def gguf_adapter(name: str, path: Path) -> Path:
    config = FOUND[name]["config"]
    family = BY_MODEL_TYPE[config["model_type"]]
    writer = gguf.GGUFWriter(path, family.gguf)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", ALPHA)
    for key, (down, up) in factors_of(name).items():
        is_rotated = family.gguf_interleaved and ("q_proj" in key or "k_proj" in key)
        heads = config["num_attention_heads" if "q_proj" in key else "num_key_value_heads"]
        stored = gguf_name(key, family)
        writer.add_tensor(f"{stored}.lora_a", down)
        writer.add_tensor(f"{stored}.lora_b", interleaved(up, heads) if is_rotated else up)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", ["peft", "gguf"])
@pytest.mark.parametrize("base", ["folder", "gguf"])
@pytest.mark.parametrize("name", ["llama", "phi3", "granite"])
def test_an_adapter_is_merged(name: str, base: str, kind: str, tmp_path: Path) -> None:
    """Also where the file and the adapter order channels differently, or layers are joined."""
    wanted = last_logits(merged_folder(name, tmp_path / "merged"), TOKENS, 64)
    is_peft = kind == "peft"
    make = peft_folder if is_peft else gguf_adapter
    adapter = make(name, tmp_path / "adapter")
    if base == "folder":
        folder = tmp_path / "base"
        folder.mkdir()
        model = folder_of(folder, tensors_of(name), **FOUND[name]["config"])
    else:
        model = written_gguf(name, tmp_path / "m.gguf")
    plain = last_logits(open_source(model), TOKENS, 64)
    found = last_logits(open_source(model, [adapter]), TOKENS, 64)
    largest = np.abs(wanted).max()
    assert np.abs(found - wanted).max() < 1e-3 * largest
    assert np.abs(plain - wanted).max() > 0.1 * largest


def test_adapters_that_cannot_be_merged(tmp_path: Path) -> None:
    model = written_gguf("llama", tmp_path / "m.gguf")
    other = gguf_adapter("phi3", tmp_path / "other.gguf")
    dora = peft_folder("llama", tmp_path / "dora", use_dora=True)
    empty = tmp_path / "empty"
    empty.mkdir()
    for adapter, message in (
        (model, "is no LoRA adapter"),
        (other, "the adapter is for another model"),
        (dora, "use_dora is not supported"),
        (peft_folder("llama", tmp_path / "zero", r=0), "must be positive"),
        (empty, "adapter_config.json"),
        (tmp_path / "none", "give a PEFT folder or a .gguf adapter"),
    ):
        with pytest.raises(ModelError, match=message):
            open_source(model, [adapter])
