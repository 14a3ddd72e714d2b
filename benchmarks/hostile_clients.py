"""A server under clients of which some are hostile: wrong answers to the others, and memory over
many requests.

python -m benchmarks.hostile_clients LANGUAGE_BUNDLE [--encoder BUNDLE] [--seconds 60] [--requests
5000]

The others ask for greedy continuations of prompts of their own, streamed or not. Each answer must
be the one that the same server gave before, when that prompt was asked alone. Hostile clients send
what `ATTACKS` lists, again and again. Then come `--requests` ordinary requests for text, and for
embeddings, while the memory of the server is looked at.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.attacks import ATTACKS, WORDS
from benchmarks.serving import COMPLETIONS, EMBEDDINGS, Client, Served, serving

TOKENS = 24  # of each answer
MARKS = 10  # looks at the memory while it endures
CLIENTS = 4  # at once, while it endures
SHOWN = 5  # wrong answers that are printed

Body = dict[str, Any]


def continuation(client: Client, prompt: str, stream: bool) -> str:
    """What the model writes behind a prompt; asks again while there is no room."""
    body = {"prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "stream": stream}
    status, data = client.ask(COMPLETIONS, body)
    while status == 429:
        time.sleep(random.uniform(0.05, 0.2))
        status, data = client.ask(COMPLETIONS, body)
    if status != 200:
        return f"HTTP {status}: {data[:200]!r}"
    if stream:
        return text_of_events(data)
    return str(json.loads(data)["choices"][0]["text"])


def text_of_events(data: bytes) -> str:
    prefix = b"data: "
    events = [line.removeprefix(prefix) for line in data.split(b"\n") if line.startswith(prefix)]
    if not events or events[-1] != b"[DONE]":
        return f"cut short: {data[-200:]!r}"
    choices = [json.loads(event)["choices"] for event in events[:-1]]
    return "".join(choice[0]["text"] for choice in choices if choice)


class Siege:
    """Clients with prompts of their own beside hostile ones, for some seconds."""

    def __init__(self, served: Served, clients: int, hostile: int, seconds: float) -> None:
        dice = random.Random(5)
        # The number keeps prompts different.
        self._prompts = [f"{words(dice, 60)} {index}" for index in range(clients - hostile)]
        self._hostile = hostile
        self._served = served
        self._seconds = seconds
        self._wanted: list[str] = []
        self._until = 0.0
        self._lock = threading.Lock()  # guards the counts
        self.answers: Counter[str] = Counter()
        self.attacks: Counter[str] = Counter()
        self.memory_mb: list[float] = []
        self.health_seconds: list[float] = []

    def run(self) -> None:
        alone = Client(self._served.port)
        self._wanted = [continuation(alone, prompt, stream=False) for prompt in self._prompts]
        self._until = time.monotonic() + self._seconds
        workers = [partial(self._ask, index) for index in range(len(self._prompts))]
        workers += [partial(self._attack, seed) for seed in range(self._hostile)]
        run_together(workers, self._watch, pause=0.5)

    def _ask(self, index: int) -> None:
        """Ask for the same continuation again and again."""
        client = Client(self._served.port)
        wanted = self._wanted[index]
        stream = bool(index % 2)
        while time.monotonic() < self._until:
            try:
                found = continuation(client, self._prompts[index], stream)
            except (OSError, http.client.HTTPException) as error:
                found = f"{type(error).__name__}: {error}"
            stream = not stream
            with self._lock:
                self.answers["right" if found == wanted else "wrong"] += 1
                if found != wanted and self.answers["wrong"] <= SHOWN:
                    print(f"  {self._prompts[index]!r}")
                    print(f"    wanted {wanted!r}")
                    print(f"    got    {found!r}")

    def _attack(self, seed: int) -> None:
        dice = random.Random(seed)
        while time.monotonic() < self._until:
            attack = dice.choice(ATTACKS)
            # An attack may end without an answer.
            with contextlib.suppress(OSError, http.client.HTTPException):
                attack(self._served.port, dice)
            with self._lock:
                self.attacks[attack.__name__] += 1

    def _watch(self) -> None:
        began = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", self._served.port, timeout=60)
        connection.request("GET", "/health")
        assert connection.getresponse().status == 200
        connection.close()
        self.health_seconds.append(time.monotonic() - began)
        self.memory_mb.append(self._served.resident_mb())

    def show(self) -> None:
        clients = len(self._prompts) + self._hostile
        right = self.answers["right"]
        wrong = self.answers["wrong"]
        attacks = [f"{name} {count}" for name, count in sorted(self.attacks.items())]
        waits = sorted(self.health_seconds)
        memory = self.memory_mb
        print(
            f"{clients} clients, {self._hostile} hostile, {self._seconds:g} s: "
            f"{right} right, {wrong} wrong answers"
        )
        print(f"  hostile requests: {', '.join(attacks)}")
        print(f"  /health: median {waits[len(waits) // 2]:.3f} s, worst {waits[-1]:.3f} s")
        print(
            f"  memory: {memory[0]:.0f} MB at first, {max(memory):.0f} at most, "
            f"{memory[-1]:.0f} at the end"
        )


def run_together(
    workers: Sequence[Callable[[], None]], watch: Callable[[], None], pause: float
) -> None:
    """Run workers in threads; `watch` is called while they run."""
    threads = [threading.Thread(target=worker) for worker in workers]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        watch()
        time.sleep(pause)


def endure(
    served: Served, what: str, path: str, requests: int, body: Callable[[random.Random], Body]
) -> None:
    """Prints the server's memory over many ordinary requests."""
    statuses: Counter[int] = Counter()
    memory_mb: list[float] = []
    lock = threading.Lock()

    def ask(seed: int) -> None:
        client = Client(served.port)
        dice = random.Random(seed)
        for _ in range(requests // CLIENTS):
            status, _ = client.ask(path, body(dice))
            with lock:
                statuses[status] += 1
                if statuses.total() % (requests // MARKS) == 0:
                    memory_mb.append(served.resident_mb())

    workers = [partial(ask, seed) for seed in range(CLIENTS)]
    run_together(workers, watch=lambda: None, pause=0.2)
    print(f"{statuses.total()} requests for {what}: status {dict(statuses)}")
    print(f"  memory in MB at each tenth: {', '.join(f'{used:.0f}' for used in memory_mb)}")


def words(dice: random.Random, most: int) -> str:
    return " ".join(dice.choices(WORDS, k=dice.randint(1, most)))


def text_body(dice: random.Random) -> Body:
    return {
        "prompt": words(dice, 40),
        "max_tokens": dice.randint(1, 4),
        "temperature": dice.choice([0, 1]),
        "stream": dice.random() < 0.3,
    }


def embedding_body(dice: random.Random) -> Body:
    count = dice.randint(1, 8)
    return {"input": [words(dice, 10) for _ in range(count)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--encoder", type=Path)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--hostile", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--requests", type=int, default=5000)
    options = parser.parse_args()
    with serving(options.bundle) as served:
        siege = Siege(served, options.clients, options.hostile, options.seconds)
        siege.run()
        siege.show()
        endure(served, "text", COMPLETIONS, options.requests, text_body)
    if options.encoder is not None:
        with serving(options.encoder) as served:
            endure(served, "embeddings", EMBEDDINGS, options.requests, embedding_body)


if __name__ == "__main__":
    main()
