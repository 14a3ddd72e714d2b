"""Random models of all opsets, types and structures: bundles give what onnxruntime gives for the
file itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.agree import agrees

# Those that once failed: constants evaluated by another implementation, padding that counts,
# untaken branches, sequences taken for tensors, other floats, empty tensors, unknown shapes, names
# used twice.
ONCE_WRONG = (
    3,
    27,
    40,
    69,
    77,
    155,
    179,
    199,
    219,
    311,
    386,
    496,
    617,
    689,
    855,
    895,
    1120,
    1206,
    30448,
)


@pytest.mark.parametrize("seed", [*range(2000, 2020), *ONCE_WRONG])
def test_structure(seed: int, tmp_path: Path) -> None:
    outcome = agrees(seed, tmp_path)
    assert not outcome.failed, outcome
