"""Every form of every operator: int8 against float for those the TPU takes, the reason for those it
refuses."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compiler import ops
from fixtures.operators import CASES, Case
from tests.harness import error_in_steps, lowered, refusals

LEGAL = [case for case in CASES if case.refused is None]
REFUSED = [case for case in CASES if case.refused is not None]


def name(case: Case) -> str:
    return f"{case.family}-{case.name}"


@pytest.mark.parametrize("case", LEGAL, ids=name)
@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32 - 1))
def test_int8_is_within_a_step_of_float(case: Case, seed: int) -> None:
    proto, feeds = case.make(np.random.default_rng(seed))
    with tempfile.TemporaryDirectory() as folder:
        original, model = lowered(proto, Path(folder))
        assert refusals(model) == []
        assert error_in_steps(original, model, feeds, Path(folder), case.error) <= case.steps


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
