"""A decoder in parts, and with the first tokens apart, computes what the whole one does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compiler.driver.chain import FloatChain
from compiler.frontends import Source, decoder, open_source
from compiler.frontends.decoder import FUSED, ProgramShape
from compiler.graph import origin_of
from compiler.graph.reference import Reference

MODEL = Path(__file__).parents[2] / "fixtures" / "language.gguf"
TOKENS = 24


@pytest.fixture(scope="module")
def source() -> Source:
    return open_source(MODEL)


@pytest.fixture(scope="module")
def row(source: Source) -> np.ndarray:
    return np.random.default_rng(3).integers(0, source.architecture.vocabulary, TOKENS)


def logits(source: Source, row: np.ndarray, **form: object) -> np.ndarray:
    shape = ProgramShape(1, TOKENS, TOKENS, all_logits=True, **form)  # type: ignore[arg-type]
    model = decoder.write(source, shape)
    with Reference(model) as reference:
        found = reference.run(decoder.sample(model.graph, row, shape), ["logits"])
    return found["logits"][0]


def test_parts_in_a_row_are_the_whole(source: Source, row: np.ndarray) -> None:
    with FloatChain(source, TOKENS) as chain:
        borders = chain.run(row)
        again = chain.logits_with(borders, 1, borders.added[1])
        changed = chain.logits_with(borders, 1, 1.5 * borders.added[1])
    wanted = logits(source, row)
    np.testing.assert_allclose(borders.logits, wanted, atol=1e-4)
    np.testing.assert_allclose(again, wanted, atol=1e-4)
    assert np.abs(changed - wanted).max() > 1e-3


@pytest.mark.parametrize("first_rows", [0, 1, 5])
def test_the_first_tokens_apart(source: Source, row: np.ndarray, first_rows: int) -> None:
    apart = logits(source, row, fused=frozenset([0, 1]), first_rows=first_rows)
    np.testing.assert_allclose(apart, logits(source, row), atol=1e-4)


def test_names_tell_what_is_to_be_fused(source: Source) -> None:
    shape = ProgramShape(1, TOKENS, TOKENS, fused=frozenset([1]), first_rows=2)
    graph = decoder.write(source, shape).graph
    fused = {origin_of(node): node for node in graph if origin_of(node).endswith(FUSED)}
    assert "blk.1.ffn_down/fused" in fused and "blk.0.ffn_down/fused" not in fused
    rows = [node.outputs[0].shape[1] for name, node in fused.items() if "ffn_down" in name]
    assert rows == [TOKENS - 2]
    others = {origin_of(node): node for node in graph}
    assert others["blk.1.ffn_down"].outputs[0].shape[1] == 2
