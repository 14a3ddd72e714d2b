"""Parts of a chunk that overlap: their order, their failures, and that they compute the same."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from compiler.emit import bundle
from compiler.runtime.language import LanguageModel
from compiler.runtime.overlap import run_parts


class FakePipeline:
    """Notes which part is in which segment; a segment of an odd number waits for company."""

    def __init__(self, segments: int, parts: int, fails: tuple[int, int] | None = None) -> None:
        self.segments = [{}] * segments
        self.left: list[tuple[int, int]] = []
        self._fails = fails
        self._meeting = threading.Barrier(parts, timeout=20)

    def advance(self, index: int, values: dict[str, np.ndarray], request: int = 0) -> None:
        part = int(values["part"])
        if (part, index) == self._fails:
            raise ValueError(f"part {part} fails in segment {index}")
        if index == 2 - part:
            # The first part is in segment 2 while the second one is in segment 1.
            self._meeting.wait()
        self.left.append((part, index))


def parts(count: int) -> list[dict[str, np.ndarray]]:
    return [{"part": np.array(number)} for number in range(count)]


def test_parts_are_in_different_segments_at_once_and_never_overtake() -> None:
    pipeline = FakePipeline(5, 2)
    run_parts(pipeline, parts(2))  # type: ignore[arg-type]
    assert len(pipeline.left) == 10
    for index in range(5):
        assert pipeline.left.index((0, index)) < pipeline.left.index((1, index))


@pytest.mark.parametrize("fails", [(0, 1), (1, 0)])
def test_a_part_that_fails_stops_the_others(fails: tuple[int, int]) -> None:
    pipeline = FakePipeline(5, 1, fails)
    with pytest.raises(ValueError, match=f"part {fails[0]} fails in segment {fails[1]}"):
        run_parts(pipeline, parts(2))  # type: ignore[arg-type]
    if fails == (0, 1):
        # The second part never gets into a segment that the first one did not leave.
        assert all(index == 0 for _, index in pipeline.left)


def test_a_chunk_in_parts_gives_what_its_parts_give_in_turns(
    language_bundle: Path, tmp_path: Path
) -> None:
    path = tmp_path / "parts"
    shutil.copytree(language_bundle, path)
    manifest = json.loads((path / "manifest.json").read_text())
    whole = LanguageModel(bundle.load(language_bundle))
    # The programs stay: what was a chunk becomes half of one.
    manifest["language"]["chunk"] *= 2
    manifest["language"]["parts"] = 2
    (path / "manifest.json").write_text(json.dumps(manifest))
    halves = LanguageModel(bundle.load(path))
    rng = np.random.default_rng(0)
    for count in (1, whole.chunk, whole.chunk + 1, 2 * whole.chunk, 3 * whole.chunk + 5):
        tokens = rng.integers(0, whole.vocabulary, count).tolist()
        wanted = whole.prefill(whole.slots[0], tokens)
        np.testing.assert_array_equal(halves.prefill(halves.slots[0], tokens), wanted)
        follows = whole.decode({0: 7})[0]
        np.testing.assert_array_equal(halves.decode({0: 7})[0], follows)
        whole.slots[0].tokens.clear()
        halves.slots[0].tokens.clear()
