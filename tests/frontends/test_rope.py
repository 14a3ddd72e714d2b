"""Rotary scaling beside what transformers computes (fixtures/rope_scaling.py), and how GGUF files
say the same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compiler.errors import ModelError
from compiler.frontends import gguf, open_source, rope
from compiler.frontends.architecture import Architecture

FIXTURES = Path(__file__).parents[2] / "fixtures"
ROWS = json.loads((FIXTURES / "rope_scaling.json").read_text())
BASE, HEAD, LONGEST = 50000.0, 64, 2048


def _architecture(scaling: rope.Scaling) -> Architecture:
    plain = open_source(FIXTURES / "language.gguf").architecture
    return replace(
        plain,
        bases=(BASE,) * plain.layers,
        head=HEAD,
        rotary=HEAD,
        context=int(LONGEST * scaling.longer),
        rope_factors=scaling.factors,
        rope_magnitude=scaling.magnitude,
        rope_dynamic=scaling.dynamic,
    )


def _frequencies(architecture: Architecture) -> tuple[np.ndarray, np.ndarray]:
    """(frequencies, magnitudes) that tables of two places show."""
    base = architecture.bases[0]
    cos, sin = (table[1].astype(np.float64) for table in rope.tables(architecture, base, 2))
    return np.arctan2(sin, cos), np.hypot(sin, cos)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["parameters"]["rope_type"])
def test_frequencies_are_those_of_transformers(row: dict[str, Any]) -> None:
    scaling = rope.of_config("a model", row["parameters"], BASE, HEAD, LONGEST)
    source = replace(open_source(FIXTURES / "language.gguf"), architecture=_architecture(scaling))
    settled = rope.for_context(source, row["length"] or LONGEST).architecture
    frequencies, magnitudes = _frequencies(settled)
    np.testing.assert_allclose(frequencies, row["frequencies"], rtol=2e-6)
    np.testing.assert_allclose(magnitudes, row["magnitude"], rtol=1e-6)


def test_contexts_grow_with_their_scaling() -> None:
    for row in ROWS:
        parameters = row["parameters"]
        found = rope.of_config("a model", parameters, BASE, HEAD, LONGEST)
        trained = parameters.get("original_max_position_embeddings", LONGEST)
        if parameters["rope_type"] in ("dynamic", "yarn"):
            assert LONGEST * found.longer == parameters["factor"] * trained
        else:
            assert found.longer == 1


def test_a_short_context_needs_no_other_base() -> None:
    scaling = rope.Scaling(dynamic=4.0, longer=4.0)
    source = replace(open_source(FIXTURES / "language.gguf"), architecture=_architecture(scaling))
    assert rope.for_context(source, 100).architecture.bases[0] == BASE
    assert rope.for_context(source, LONGEST + 1).architecture.bases[0] > BASE


def test_fields_of_gguf_mean_the_same() -> None:
    row = next(row for row in ROWS if row["parameters"]["rope_type"] == "yarn")
    parameters = row["parameters"]
    trained = parameters["original_max_position_embeddings"]
    fields = {
        "context_length": LONGEST,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": parameters["factor"],
        "rope.scaling.original_context_length": trained,
    }
    scaling = rope.of_gguf("a model", fields, BASE, HEAD)
    frequencies, magnitudes = _frequencies(_architecture(scaling))
    np.testing.assert_allclose(frequencies, row["frequencies"], rtol=2e-6)
    np.testing.assert_allclose(magnitudes, row["magnitude"], rtol=1e-6)
    with pytest.raises(ModelError, match="'spiral', which is not supported"):
        rope.of_gguf("a model", {**fields, "rope.scaling.type": "spiral"}, BASE, HEAD)


def test_llama_3_has_its_factors_among_the_weights(tmp_path: Path) -> None:
    from gguf import GGUFReader, GGUFWriter

    path = tmp_path / "m.gguf"
    reader = GGUFReader(FIXTURES / "language.gguf")
    writer = GGUFWriter(path, "llama")
    for field in reader.fields.values():
        if not field.name.startswith(("GGUF.", "general.architecture")):
            kind, *inner = field.types
            writer.add_key_value(field.name, field.contents(), kind, inner[-1] if inner else None)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    architecture = open_source(FIXTURES / "language.gguf").architecture
    factors = np.linspace(1, 8, architecture.rotary // 2).astype(np.float32)
    writer.add_tensor("rope_freqs.weight", factors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    source = gguf.read(path)
    assert source.architecture.rope_factors == tuple(factors.tolist())
    assert "rope_freqs.weight" not in source.weights
