"""A stream over devices that fail again and again, and a language model under requests, side by
side for long."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
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
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmRSS"))


def soak(path: Path, language: Path, seconds: float) -> Soak:
    found, until = Soak(), time.monotonic() + seconds
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
    bundle, rng = Bundle.open(path), np.random.default_rng(0)
    shape = bundle.manifest["inputs"][0]["shape"]
    samples = [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(10)]
    pipeline = Pipeline(bundle)
    wanted = [pipeline.run(sample)["y"] for sample in samples]
    dice = random.Random(0)

    def broken() -> None:
        if dice.random() < 0.01:
            raise DeviceError("unplugged")

    def source() -> Iterator[dict[str, np.ndarray]]:
        for number in range(1000):
            if time.monotonic() > until:
                return
            yield samples[number % 10]

    while time.monotonic() < until:
        with Runner(
            bundle, [Simulated("sim:0", 0, broken), Simulated("sim:1", 0, broken)]
        ) as runner:
            for number, result in enumerate(runner.stream(source())):
                found.streamed += 1
                found.wrong += not np.array_equal(result["y"], wanted[number % 10])


def _ask(path: Path, until: float, found: Soak) -> None:
    """Requests for greedy tokens, more of them at once than there are slots; some are cancelled."""
    bundle = Bundle.open(path)
    slots = bundle.manifest["language"]["slots"]
    prompts = [list(range(5 + i, 25 + 2 * i)) for i in range(2 * slots)]
    model = LanguageModel(bundle, slots=slots)
    wanted = [list(model.generate(p, LENGTH, Sampling())) for p in prompts]
    batcher = Batcher(LanguageModel(bundle, slots=slots), waiting=4 * slots)
    dice = random.Random(1)
    while time.monotonic() < until:
        tokens: list[list[int]] = [[] for _ in prompts]
        ended = [threading.Event() for _ in prompts]
        cancelled = [dice.random() < 0.1 for _ in prompts]
        for index, prompt in enumerate(prompts):
            request = Request(
                prompt, LENGTH, Sampling(), partial(_emit, tokens[index], ended[index])
            )
            batcher.submit(request)
            if cancelled[index]:
                request.cancelled.set()
        for index, event in enumerate(ended):
            if not cancelled[index]:  # others end without a word
                found.answered += 1
                found.wrong += not event.wait(60) or tokens[index] != wanted[index]
    batcher.close()


def _emit(tokens: list[int], ended: threading.Event, token: int | Exception | None) -> None:
    if isinstance(token, int):
        tokens.append(token)
    else:
        ended.set()
