"""Prompts in files: found again by another server, and never trusted."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from compiler.runtime import Bundle
from compiler.runtime.batching import Batcher, Request
from compiler.runtime.language import LanguageModel
from compiler.runtime.prefixes import PrefixStore
from compiler.runtime.sampling import Sampling

PROMPT = [(5 * index) % 300 + 5 for index in range(90)]


def asked(batcher: Batcher, tokens: list[int]) -> tuple[list[int], int]:
    """(the answer's tokens, how many of the prompt's were not read again)."""
    got: list[int] = []
    ended = threading.Event()

    def emit(item: object) -> None:
        if isinstance(item, int):
            got.append(item)
        else:
            assert item is None
            ended.set()

    request = Request(tokens, 5, Sampling(), emit)
    batcher.submit(request)
    assert ended.wait(30)
    return got, request.reused


@pytest.fixture
def bundle(language_bundle: Path) -> Bundle:
    return Bundle.open(language_bundle)


def batcher_of(bundle: Bundle, folder: Path, digest: str = "a") -> Batcher:
    return Batcher(LanguageModel(bundle, slots=3), store=PrefixStore(folder, digest))


def test_the_next_server_finds_prompts(bundle: Bundle, tmp_path: Path) -> None:
    first = batcher_of(bundle, tmp_path)
    wanted, reused = asked(first, PROMPT)
    first.close()
    assert reused == 0
    (file,) = tmp_path.iterdir()
    assert file.stat().st_mode & 0o77 == 0
    second = batcher_of(bundle, tmp_path)
    assert asked(second, PROMPT) == (wanted, len(PROMPT) - 1)
    # Another text that begins alike, and one that does not.
    assert asked(second, [*PROMPT[:70], 9, 8, 7])[1] == 70
    assert asked(second, PROMPT[1:80])[1] == 0
    second.close()
    other = batcher_of(bundle, tmp_path, digest="b")
    assert asked(other, PROMPT) == (wanted, 0)
    other.close()


def test_broken_files_count_as_not_there(bundle: Bundle, tmp_path: Path) -> None:
    first = batcher_of(bundle, tmp_path)
    wanted, _ = asked(first, PROMPT)
    first.close()
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for damaged in (whole[:100], whole[: len(whole) // 2], b"", b"no file", whole[:-4000]):
        file.write_bytes(damaged)
        batcher = batcher_of(bundle, tmp_path)
        assert asked(batcher, PROMPT) == (wanted, 0)
        batcher.close()
    # One whose tokens are right, and that has no cache.
    with file.open("wb") as damaged_file:
        np.savez(damaged_file, tokens=np.array(PROMPT), digest=np.array("a"))
    batcher = batcher_of(bundle, tmp_path)
    assert asked(batcher, PROMPT) == (wanted, 0)
    batcher.close()


def test_the_oldest_go_first(tmp_path: Path) -> None:
    size = 8 * 64 * 4 * 4
    store = PrefixStore(tmp_path, "a", most_bytes=3 * size)
    for number in range(5):
        tokens = list(range(number, number + 64))
        cache = {"k": np.zeros((8, 64, 4), np.float32)}
        assert store.wants(tokens)
        store.keep(tokens, cache)
        while store._unwritten.full():
            pass
    store.close()
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 3 * size
    kept = PrefixStore(tmp_path, "a")
    assert kept.find(list(range(4, 68)))[0] == 64 and kept.find(list(range(64)))[0] == 0
    assert not kept.wants(list(range(4, 70))) and not kept.wants([1, 2, 3])
    kept.close()
