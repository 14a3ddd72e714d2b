"""What hostile clients of a server send; each attack is one function of `ATTACKS`."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

from benchmarks.serving import CHAT, COMPLETIONS, Client

WORDS = [
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
    "type",
    "name",
    "error",
    "file",
    "integer",
    "method",
    "statement",
    "exception",
]

Attack = Callable[[int, random.Random], None]

WRONG_BODIES: tuple[bytes, ...] = (
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
# More than any context holds, and just below the largest body.
LONG_PROMPT = " ".join(random.Random(0).choices(WORDS, k=160_000))[:1_000_000].encode()


def raw(port: int, data: bytes, wait: float, reset: bool = False) -> None:
    """Send bytes and go away after a while, without reading; with `reset` the connection breaks."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as connection,
        contextlib.suppress(OSError),
    ):
        connection.sendall(data)
        time.sleep(wait)
        if reset:
            # To linger for 0 seconds is to reset at once.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def head(length: int, more: bytes = b"") -> bytes:
    """The head of a request with a body of `length` bytes."""
    return (
        b"POST /v1/completions HTTP/1.1\r\n"
        b"Host: localhost\r\n"
        b"Content-Type: application/json\r\n"
        b"%bContent-Length: %d\r\n\r\n"
    ) % (more, length)


def request(body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    return head(len(data)) + data


def odd_numbers(port: int, dice: random.Random) -> None:
    """A request that holds to the API, with numbers at the end of their range."""
    body = {
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
    Client(port).ask(COMPLETIONS, body)


def wrong_body(port: int, dice: random.Random) -> None:
    path = dice.choice([COMPLETIONS, CHAT])
    Client(port).ask(path, dice.choice(WRONG_BODIES))


def leave(port: int, dice: random.Random) -> None:
    """Ask for a long answer and do not wait for it."""
    stream = dice.random() < 0.5
    sent = request({"prompt": "The class", "max_tokens": 200, "stream": stream})
    raw(port, sent, wait=dice.random() * 0.3, reset=dice.random() < 0.5)


def long_prompt(port: int, dice: random.Random) -> None:
    # The number keeps prompts different, so that no cache helps.
    Client(port).ask(COMPLETIONS, b'{"prompt": "%d %s"}' % (dice.randint(0, 9), LONG_PROMPT))


def foreign_page(port: int, dice: random.Random) -> None:
    """What a web page could send."""
    headers = [
        {"Host": "evil.example"},
        {"Origin": "http://evil.example"},
        {"Content-Type": "text/plain"},
    ]
    Client(port).ask(COMPLETIONS, {"prompt": "x"}, **dice.choice(headers))


def smuggled(port: int, dice: random.Random) -> None:
    """A request that hides another one from a proxy that reads its length otherwise."""
    hidden = b"0\r\n\r\nGET /health HTTP/1.1\r\n\r\n"
    raw(port, head(5, b"Transfer-Encoding: chunked\r\n") + hidden, wait=0.1)


def half_request(port: int, dice: random.Random) -> None:
    halves = [head(100) + b"{", head(100)[:40], b"\x16\x03\x01" * 100, b"GET / HT"]
    raw(port, dice.choice(halves), wait=dice.random() * 2)


def unread(port: int, dice: random.Random) -> None:
    """Ask for answers and read none of them."""
    sent = request({"prompt": "The", "max_tokens": 100, "stream": True})
    raw(port, sent * 5, wait=2)


# What is listed more than once comes more often.
ATTACKS: tuple[Attack, ...] = (
    *(odd_numbers, odd_numbers, odd_numbers),
    *(wrong_body, wrong_body),
    *(leave, leave),
    long_prompt,
    foreign_page,
    smuggled,
    half_request,
    unread,
)
