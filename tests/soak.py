"""A stream over devices that fail again and again, and a language model under requests, side by
side for long."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from compiler.runtime import Bundle, DeviceError, Pipeline, Runner, Simulated
from compiler.runtime.batching import Batcher, Request
from compiler.runtime.language import LanguageModel
from compiler.runtime.sampling import Sampling

LENGTH = 12


@dataclass
class Soak:
    """What came of it; `memory` are MB of this process, once a second."""

    streamed: int = 0
    answered: int = 0
    wrong: int = 0
    memory: list[float] = field(default_factory=list)

    @property
    def growth(self) -> float:
        """MB from the middle third to the last."""
        third = len(self.memory) // 3
        return float(np.mean(self.memory[-third:]) - np.mean(self.memory[third : 2 * third]))


def resident_mb(process: int | str) -> float:
    """Memory of a process, or of this one ("self"), in MB."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmRSS"))


def soak(path: Path, language: Path, seconds: float) -> Soak:
    """Both side by side for some seconds, in threads of this process."""
    found = Soak()
    until = time.monotonic() + seconds
    parts = [
        threading.Thread(target=_stream, args=(path, until, found)),
        threading.Thread(target=_ask, args=(language, until, found)),
    ]
    for part in parts:
        part.start()
    while any(part.is_alive() for part in parts):
        found.memory.append(resident_mb("self"))
        time.sleep(1)
    return found


def _stream(path: Path, until: float, found: Soak) -> None:
    """Runs of a thousand samples over two simulated Edge TPUs; every hundredth run on one fails."""
    bundle = Bundle.open(path)
    samples = _samples(bundle)
    pipeline = Pipeline(bundle)
    wanted = [pipeline.run(sample)["y"] for sample in samples]
    dice = random.Random(0)

    def fail_sometimes() -> None:
        if dice.random() < 0.01:
            raise DeviceError("unplugged")

    def source() -> Iterator[dict[str, np.ndarray]]:
        for number in range(1000):
            if time.monotonic() > until:
                return
            yield samples[number % len(samples)]

    while time.monotonic() < until:
        # New devices each time: those that failed too often are given up.
        devices = [Simulated(f"sim:{index}", 0, fail_sometimes) for index in range(2)]
        with Runner(bundle, devices) as runner:
            for number, result in enumerate(runner.stream(source())):
                found.streamed += 1
                found.wrong += not np.array_equal(result["y"], wanted[number % len(wanted)])


def _samples(bundle: Bundle) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    shape = bundle.manifest["inputs"][0]["shape"]
    return [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(10)]


class _Asked:
    """A request for greedy tokens and what came of it."""

    def __init__(self, prompt: list[int]) -> None:
        self.tokens: list[int] = []
        self.ended = threading.Event()
        self.request = Request(prompt, LENGTH, Sampling(), self._emit)

    def _emit(self, item: int | Exception | None) -> None:
        if isinstance(item, int):
            self.tokens.append(item)
        else:
            self.ended.set()


def _ask(path: Path, until: float, found: Soak) -> None:
    """Requests for greedy tokens, more of them at once than there are slots; some are cancelled."""
    bundle = Bundle.open(path)
    slots = bundle.manifest["language"]["slots"]
    prompts = [list(range(5 + index, 25 + 2 * index)) for index in range(2 * slots)]
    model = LanguageModel(bundle, slots=slots)
    wanted = [list(model.generate(prompt, LENGTH, Sampling())) for prompt in prompts]
    batcher = Batcher(LanguageModel(bundle, slots=slots), waiting=4 * slots)
    dice = random.Random(1)
    while time.monotonic() < until:
        cancelled = [dice.random() < 0.1 for _ in prompts]
        asked = [_Asked(prompt) for prompt in prompts]
        for index, one in enumerate(asked):
            batcher.submit(one.request)
            if cancelled[index]:
                one.request.cancelled.set()
        for index, one in enumerate(asked):
            # Those that are cancelled while they wait end without a word.
            if cancelled[index]:
                continue
            found.answered += 1
            found.wrong += not one.ended.wait(60) or one.tokens != wanted[index]
    batcher.close()
