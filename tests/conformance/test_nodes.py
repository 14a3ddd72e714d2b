"""ONNX's own backend tests through the whole compiler: each builds and runs as expected, or is
refused clearly.

Operands of the node tests are inputs, not constants, so most run on the host; what counts is that
any model builds.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance import cases

ALL = [(kind, name) for kind in cases.KINDS for name in sorted(cases.cases(kind))]

# Cases that fail, each with its reason. One that starts to pass fails here, so that the list only
# shrinks.
EXCLUDED: dict[str, str] = {}


@pytest.mark.parametrize(("kind", "name"), ALL, ids=[name for _, name in ALL])
def test_case(kind: str, name: str, tmp_path: Path) -> None:
    try:
        found = cases.outcome(cases.cases(kind)[name], tmp_path)
    except Exception:
        if name in EXCLUDED:
            pytest.xfail(EXCLUDED[name])
        raise
    if found.status == "wrong" and name in EXCLUDED:
        pytest.xfail(EXCLUDED[name])
    assert found.status != "wrong", found.detail
    assert name not in EXCLUDED, "it passes now: take it off the list"
