"""Host segments in onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from compiler.runtime.onnx_segment import HostSegment
from tests.conftest import save

GATHER = """
    <ir_version: 8, opset_import: ["" : 18]>
    g (float[4] x, int64[1] place) => (float[1] y) { y = Gather (x, place) }
"""


def test_a_host_segment_that_fails_writes_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The model is valid, the index is not: the error is raised, and only raised."""
    path = save(tmp_path / "m.onnx", onnx.parser.parse_model(GATHER))
    segment = HostSegment(path, threads=1)
    x = np.arange(4, dtype=np.float32)
    assert segment.run([x, np.array([2])])[0] == 2
    with pytest.raises(Exception, match="out of data bounds"):
        segment.run([x, np.array([9])])
    assert capfd.readouterr() == ("", "")
