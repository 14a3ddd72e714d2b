"""Every form of every operator: int8 against float for those the TPU takes, the reason for those it
refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compiler import ops
from compiler.device.legality import check
from fixtures.operators import CASES, Case
from tests.harness import TARGET, error_in_steps, lowered, refusals

LEGAL = [case for case in CASES if case.refused is None]
REFUSED = [case for case in CASES if case.refused is not None]


def name(case: Case) -> str:
    return f"{case.family}-{case.name}"


# Shapes, attributes and values are drawn: the first draw of each case is among the fast tests.
SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 6))]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("case", LEGAL, ids=name)
def test_int8_is_within_a_step_of_float(case: Case, seed: int, tmp_path: Path) -> None:
    proto, feeds = case.make(np.random.default_rng(seed))
    original, model = lowered(proto, tmp_path)
    assert refusals(model) == []
    assert error_in_steps(original, model, feeds, tmp_path, case.error) <= case.steps
    assert [row for row in check(tmp_path / "segment.tflite", TARGET) if row["reason"]] == []


@pytest.mark.parametrize("case", REFUSED, ids=name)
def test_refusal_gives_the_reason(case: Case, tmp_path: Path) -> None:
    proto, _ = case.make(np.random.default_rng(0))
    _, model = lowered(proto, tmp_path)
    assert any(str(case.refused) in reason for reason in refusals(model)), refusals(model)


@pytest.mark.parametrize("family", [f.__name__.rpartition(".")[2] for f in ops.FAMILIES])
def test_every_family_has_cases(family: str) -> None:
    assert any(case.family == family for case in CASES)
    if family not in ("reshape", "quantize", "space"):  # nothing of their own to refuse
        assert any(case.family == family for case in REFUSED)
