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
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.soak import resident_mb

WORDS = (
    *(
        "class",
        "def",
        "import",
        "module",
        "function",
        "the",
        "a",
        "list",
        "object",
        "string",
        "return",
        "value",
    ),
    *("type", "name", "error", "file", "integer", "method", "statement", "exception"),
)
TOKENS, MARKS = 24, 10
TEXT, EMBEDDINGS = "/v1/completions", "/v1/embeddings"


class Client:
    """A connection that asks in JSON."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)

    def ask(self, path: str, body: dict[str, Any] | bytes, **headers: str) -> tuple[int, bytes]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        kind = {"Content-Type": "application/json"}
        try:
            self._connection.request("POST", path, data, kind | headers)
            answer = self._connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            self._connection.close()
            raise

    def continuation(self, prompt: str, stream: bool) -> str:
        """What the model writes behind a prompt; asks again while there is no room."""
        body = {"prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "stream": stream}
        while (found := self.ask(TEXT, body))[0] == 429:
            time.sleep(random.uniform(0.05, 0.2))
        status, data = found
        if status != 200:
            return f"HTTP {status}: {data[:200]!r}"
        return streamed(data) if stream else str(json.loads(data)["choices"][0]["text"])


def streamed(data: bytes) -> str:
    lines = [line[6:] for line in data.split(b"\n") if line.startswith(b"data: ")]
    if not lines or lines[-1] != b"[DONE]":
        return f"cut short: {data[-200:]!r}"
    parts = [json.loads(line)["choices"] for line in lines[:-1]]
    return "".join(choices[0]["text"] for choices in parts if choices)


def raw(port: int, data: bytes, wait: float, reset: bool = False) -> None:
    """Send bytes and go away after a while, without reading."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as place,
        contextlib.suppress(OSError),
    ):
        place.sendall(data)
        time.sleep(wait)
        if reset:
            place.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def head(length: int, more: bytes = b"") -> bytes:
    start = (
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    )
    return start + more + b"Content-Length: %d\r\n\r\n" % length


def leave(port: int, dice: random.Random) -> None:
    body = json.dumps(
        {"prompt": "The class", "max_tokens": 200, "stream": dice.random() < 0.5}
    ).encode()
    raw(port, head(len(body)) + body, dice.random() * 0.3, reset=dice.random() < 0.5)


def odd_fields(dice: random.Random) -> dict[str, Any]:
    """A request that holds to the API, with numbers at the end of their range."""
    return {
        "prompt": dice.choice(["x", [0], [1] * 100, "\u0000", "\ud83d\ude00" * 50]),
        "max_tokens": dice.choice([1, 2, 5]),
        "temperature": dice.choice([1e-308, 5e-324, 1e-30, 2, 0]),
        "top_k": dice.choice([0, 1, 1 << 20, None]),
        "top_p": dice.choice([0, 5e-324, 1, None]),
        "min_p": dice.choice([0, 5e-324, 1, None]),
        "repetition_penalty": dice.choice([0.1, 10, None]),
        "seed": dice.choice([0, (1 << 64) - 1, None]),
        "stop": dice.choice([None, "", ["\ufffd", "a" * 10_000], [" "]]),
    }


WRONG: tuple[bytes, ...] = (
    b'{"prompt": "x", "temperature": NaN}',
    b'{"prompt": "x", "temperature": -Infinity}',
    b'{"prompt": "x", "repetition_penalty": 1e999}',
    b'{"prompt": "x", "top_k": -' + b"9" * 4000 + b"}",
    b'{"prompt": "x", "max_tokens": ' + b"9" * 5000 + b"}",
    b'{"prompt": "\\ud800"}',
    b'{"prompt": "x", "stop": "\\udfff"}',
    b'{"prompt": "\xed\xa0\x80"}',
    b'{"prompt": [999999999]}',
    b'{"prompt": [-1, 1e5]}',
    b'{"prompt": ' + b"[" * 50_000,
    b'{"prompt": [' + b"[]," * 300_000 + b"[]]}",
    b'{"prompt": [' + b"1," * 500_000 + b"1]}",
    b'{"messages": [{"role": "user", "content": [{"text": 1}]}]}',
    b"\x00" * 1000,
    b"x" * (2 << 20),
)


LONG = " ".join(random.Random(0).choices(WORDS, k=160_000))[:1_000_000].encode()


def wrong(port: int, dice: random.Random) -> None:
    Client(port).ask(dice.choice([TEXT, "/v1/chat/completions"]), dice.choice(WRONG))


def long_prompt(port: int, dice: random.Random) -> None:
    Client(port).ask(TEXT, b'{"prompt": "%d %s"}' % (dice.randint(0, 9), LONG))


def odd(port: int, dice: random.Random) -> None:
    Client(port).ask(TEXT, odd_fields(dice))


def foreign(port: int, dice: random.Random) -> None:
    headers = dice.choice(
        [
            {"Host": "evil.example"},
            {"Origin": "http://evil.example"},
            {"Content-Type": "text/plain"},
        ]
    )
    Client(port).ask(TEXT, {"prompt": "x"}, **headers)


def smuggled(port: int, dice: random.Random) -> None:
    raw(
        port,
        head(5, b"Transfer-Encoding: chunked\r\n") + b"0\r\n\r\nGET /health HTTP/1.1\r\n\r\n",
        0.1,
    )


def halves(port: int, dice: random.Random) -> None:
    raw(
        port,
        dice.choice([head(100) + b"{", head(100)[:40], b"\x16\x03\x01" * 100, b"GET / HT"]),
        dice.random() * 2,
    )


def unread(port: int, dice: random.Random) -> None:
    body = json.dumps({"prompt": "The", "max_tokens": 100, "stream": True}).encode()
    raw(port, (head(len(body)) + body) * 5, 2)


ATTACKS: tuple[Callable[[int, random.Random], None], ...] = (
    *(odd, odd, odd, wrong, wrong, leave, leave, long_prompt, foreign, smuggled, halves, unread),
)


@contextmanager
def serving(bundle: Path) -> Iterator[tuple[int, int]]:
    """A server's port and process."""
    command = [
        sys.executable,
        "-m",
        "compiler",
        "serve",
        str(bundle),
        "--port",
        "0",
        "--devices",
        "cpu",
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield (
                int(process.stdout.readline().split(" on ")[1].split()[0].rpartition(":")[2]),
                process.pid,
            )
        finally:
            process.terminate()


def together(
    workers: Sequence[Callable[[], None]], watch: Callable[[], None], pause: float
) -> None:
    threads = [threading.Thread(target=worker) for worker in workers]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        watch()
        time.sleep(pause)


def siege(port: int, process: int, clients: int, hostile: int, seconds: float) -> None:
    dice = random.Random(5)
    prompts = [
        " ".join(dice.choices(WORDS, k=dice.randint(1, 60))) + f" {i}"
        for i in range(clients - hostile)
    ]
    alone = Client(port)
    wanted = [alone.continuation(prompt, stream=False) for prompt in prompts]
    until = time.monotonic() + seconds
    answers: Counter[str] = Counter()
    attacks: Counter[str] = Counter()
    lock, memory, health = threading.Lock(), [], []

    def good(index: int) -> None:
        client, number = Client(port), index
        while time.monotonic() < until:
            try:
                got = client.continuation(prompts[index], stream=bool(number % 2))
            except (OSError, http.client.HTTPException) as error:
                got = f"{type(error).__name__}: {error}"
            number += 1
            with lock:
                answers["right" if got == wanted[index] else "wrong"] += 1
                if got != wanted[index] and answers["wrong"] <= 5:
                    print(f"  {prompts[index]!r}\n    wanted {wanted[index]!r}\n    got    {got!r}")

    def bad(seed: int) -> None:
        own = random.Random(seed)
        while time.monotonic() < until:
            attack = own.choice(ATTACKS)
            with contextlib.suppress(OSError, http.client.HTTPException):
                attack(port, own)
            with lock:
                attacks[attack.__name__] += 1

    def watch() -> None:
        began = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", "/health")
        assert connection.getresponse().status == 200
        connection.close()
        health.append(time.monotonic() - began)
        memory.append(resident_mb(process))

    workers = [lambda i=i: good(i) for i in range(len(prompts))]  # type: ignore[misc]
    workers += [lambda i=i: bad(i) for i in range(hostile)]  # type: ignore[misc]
    together(workers, watch, 0.5)
    right, mixed = answers["right"], answers["wrong"]
    print(
        f"{clients} clients, {hostile} hostile, {seconds:g} s: {right} right, {mixed} wrong answers"
    )
    counts = [f"{name} {count}" for name, count in sorted(attacks.items())]
    print(f"  hostile requests: {', '.join(counts)}")
    print(f"  /health: median {sorted(health)[len(health) // 2]:.3f} s, worst {max(health):.3f} s")
    print(
        f"  memory: {memory[0]:.0f} MB at first, {max(memory):.0f} at most, "
        f"{memory[-1]:.0f} at the end"
    )


def endure(
    port: int,
    process: int,
    what: str,
    requests: int,
    body: Callable[[random.Random], dict[str, Any]],
) -> None:
    """Memory over some requests of four clients."""
    path = TEXT if what == "text" else EMBEDDINGS
    counts: Counter[int] = Counter()
    memory: list[float] = []
    lock = threading.Lock()

    def ask(seed: int) -> None:
        client, own = Client(port), random.Random(seed)
        for _ in range(requests // 4):
            status, _ = client.ask(path, body(own))
            with lock:
                counts[status] += 1
                if sum(counts.values()) % (requests // MARKS) == 0:
                    memory.append(resident_mb(process))

    together([lambda i=i: ask(i) for i in range(4)], lambda: None, 0.2)  # type: ignore[misc]
    print(f"{sum(counts.values())} requests for {what}: status {dict(counts)}")
    print(f"  memory in MB at each tenth: {', '.join(f'{used:.0f}' for used in memory)}")


def words(dice: random.Random, most: int) -> str:
    return " ".join(dice.choices(WORDS, k=dice.randint(1, most)))


def text_body(dice: random.Random) -> dict[str, Any]:
    return {
        "prompt": words(dice, 40),
        "max_tokens": dice.randint(1, 4),
        "temperature": dice.choice([0, 1]),
        "stream": dice.random() < 0.3,
    }


def embedding_body(dice: random.Random) -> dict[str, Any]:
    return {"input": [words(dice, 10) for _ in range(dice.randint(1, 8))]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--encoder", type=Path)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--hostile", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--requests", type=int, default=5000)
    options = parser.parse_args()
    with serving(options.bundle) as (port, process):
        siege(port, process, options.clients, options.hostile, options.seconds)
        endure(port, process, "text", options.requests, text_body)
    if options.encoder is not None:
        with serving(options.encoder) as (port, process):
            endure(port, process, "embeddings", options.requests, embedding_body)


if __name__ == "__main__":
    main()
