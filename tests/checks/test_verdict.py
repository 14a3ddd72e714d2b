"""What is said of outputs whose figures are low."""

from __future__ import annotations

from typing import Any

import pytest

from compiler.checks.verdict import findings


@pytest.mark.parametrize(("cosine", "kind"), [(0.998, "unsure"), (0.95, "bad")])
def test_tokens_that_are_averaged_are_judged_by_their_average(cosine: float, kind: str) -> None:
    """Encoders pad: what single tokens lose need not reach the embedding of a sentence."""
    entry = {"sqnr_db": 14.4, "plain_sqnr_db": 16.0, "cosine": 0.985, "variation": 0.6}
    quality: dict[str, Any] = {"outputs": {"hidden": entry | {"part": None}}}
    (alone,) = findings(quality)
    assert alone["kind"] == "bad"
    quality["embeddings"] = {"hidden": {"cosine": cosine, "least_cosine": cosine}}
    (found,) = findings(quality)
    assert found["kind"] == kind and "14.4 dB" in found["finding"]
