"""Two minutes of what benchmarks/soak.py does for an hour."""

from __future__ import annotations

from pathlib import Path

import pytest

from compiler.driver import language
from compiler.driver.options import BuildOptions, LanguageOptions
from compiler.partition import PartitionOptions
from tests.soak import soak

FIXTURE = Path(__file__).parent.parent / "fixtures" / "language.gguf"


@pytest.mark.slow
def test_nothing_is_lost_and_memory_is_flat(small_bundle: Path, tmp_path: Path) -> None:
    options = BuildOptions(
        partitioning=PartitionOptions(place="host"),
        language=LanguageOptions(context=96, chunk=32, slots=3),
    )
    language.build(FIXTURE, tmp_path / "l", options)
    found = soak(small_bundle, tmp_path / "l", 120)
    assert found.wrong == 0
    assert found.streamed > 1000 and found.answered > 50
    assert found.growth < 10, found.memory
