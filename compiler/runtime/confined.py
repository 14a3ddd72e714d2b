"""A process with limits of memory and time for what strangers' tokenizers and chat templates do
(child.py)."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from compiler.errors import first_line
from compiler.runtime.child import load_tokenizer

CHILD = Path(__file__).with_name("child.py")
# A tokenizer.json of 262,144 tokens and 37 MiB is read within 512 MiB; Python with jinja2 takes 100
# MiB.
TOKENIZER_BYTES, TEMPLATE_BYTES = 1 << 30, 512 << 20
TOKENIZER_SECONDS, TEMPLATE_SECONDS = 60.0, 10.0
# Bytes of an answer: more than any text that fits a context.
MOST_ANSWER = 64 << 20
# Bytes of a tokenizer.json; that of Gemma 3 has 33 MiB.
MOST_DEFINITION = 128 << 20


class ConfinedError(Exception):
    """What ran in the process failed, or went beyond its limits."""


class RefusedError(ConfinedError):
    """A template said that it does not take the conversation."""


def tokenizer(definition: str) -> Any:
    """The tokenizer that a tokenizer.json defines, after a trial in a process with limits: the
    library ends or hangs the process that reads some. It neither pads nor truncates. Raises
    ConfinedError."""
    _check_size(len(definition))
    trial = Confined(TOKENIZER_BYTES, TOKENIZER_SECONDS)
    try:
        trial.ask("try_tokenizer", definition)
    finally:
        trial.close()
    return load_tokenizer(definition)


def tokenizer_file(path: Path) -> Any:
    """The tokenizer in a file. Raises ConfinedError."""
    return tokenizer(read_definition(path))


def read_definition(path: Path) -> str:
    """The text of a tokenizer.json. Raises ConfinedError."""
    try:
        if not path.is_file():
            raise ConfinedError("no such file")
        _check_size(path.stat().st_size)
        return path.read_text("utf-8")
    except OSError as error:
        raise ConfinedError(error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise ConfinedError("it is not UTF-8 text") from error


def _check_size(size: int) -> None:
    if size > MOST_DEFINITION:
        raise ConfinedError(
            f"it has {size >> 20} MiB; at most {MOST_DEFINITION >> 20} MiB are read"
        )


def encode(tokenizer: Any, text: str, add_special_tokens: bool = True) -> list[int]:
    """The tokens of a text. Raises ConfinedError where the library has none for it."""
    with _panics():
        # Unlike `encode`, this lets other threads run meanwhile.
        (encoding,) = tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return list(encoding.ids)


def decode(tokenizer: Any, tokens: Sequence[int]) -> str:
    """The text of tokens, without control tokens. Raises ConfinedError where the library has none
    for them."""
    with _panics():
        return str(tokenizer.decode(list(tokens), skip_special_tokens=True))


@contextlib.contextmanager
def _panics() -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        # A panic of the Rust library is no Exception; here it means a text that it cannot take.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ConfinedError(first_line(error)) from error


class Confined:
    """A child process that answers one request at a time. It starts with the first request, and
    again after one that went beyond the limits; it ends with this object."""

    def __init__(self, memory: int, seconds: float) -> None:
        self._memory, self._seconds = memory, seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._finalizer: weakref.finalize[Any, Any] | None = None

    def ask(self, task: str, *arguments: Any) -> Any:
        """What a function of child.py returns. Raises ConfinedError."""
        request = json.dumps([task, arguments]).encode() + b"\n"
        with self._lock:
            try:
                process = self._process or self._start()
            except OSError as error:
                raise ConfinedError(f"no process can be started: {error.strerror}") from error
            line = _exchange(process, request, time.monotonic() + self._seconds)
            if not line.endswith(b"\n"):
                code = self._end()
                raise ConfinedError(self._overrun(code, line))
        answer = json.loads(line)
        if "refusal" in answer:
            raise RefusedError(answer["refusal"])
        if "overrun" in answer:
            raise ConfinedError(f"it takes more than {self._memory >> 20} MiB")
        if "error" in answer:
            raise ConfinedError(answer["error"])
        return answer["result"]

    def close(self) -> None:
        with self._lock:
            self._end()

    def _start(self) -> subprocess.Popen[bytes]:
        # One thread: each would take address space for a heap of its own.
        single = {
            "RAYON_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "MALLOC_ARENA_MAX": "1",
        }
        self._process = process = subprocess.Popen(
            # -P: a file of the working folder is no module.
            [sys.executable, "-P", str(CHILD), str(self._memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **single},
        )
        self._finalizer = weakref.finalize(self, _kill, process)
        return process

    def _end(self) -> int | None:
        """Ends the process; returns its code where it had ended by itself."""
        if self._process is None or self._finalizer is None:
            return None
        try:
            code = self._process.wait(timeout=1)  # which has closed its pipe, or hangs
        except subprocess.TimeoutExpired:
            code = None
        self._finalizer()
        self._process = None
        return code

    def _overrun(self, code: int | None, line: bytes) -> str:
        if len(line) >= MOST_ANSWER:
            return f"it makes a text of more than {MOST_ANSWER >> 20} MiB"
        if code is None:
            return f"it takes longer than {self._seconds:g} seconds or more than {self._memory >> 20} MiB"
        how = signal.Signals(-code).name if code < 0 else f"code {code}"
        return f"it ended its process ({how}), which had {self._memory >> 20} MiB"


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()


def _exchange(process: subprocess.Popen[bytes], request: bytes, deadline: float) -> bytes:
    """Writes a line and reads one; a line without its end where the process ended, or its time was
    over."""
    assert process.stdin is not None and process.stdout is not None
    sending, receiving = process.stdin.fileno(), process.stdout.fileno()
    os.set_blocking(sending, False)
    rest, found = memoryview(request), bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(sending, selectors.EVENT_WRITE)
        selector.register(receiving, selectors.EVENT_READ)
        while not found.endswith(b"\n") and len(found) < MOST_ANSWER:
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                break
            for key, _ in ready:
                if key.fd == receiving:
                    part = os.read(receiving, 1 << 20)
                    if not part:
                        return bytes(found)
                    found += part
                    continue
                try:
                    rest = rest[os.write(sending, rest) :]
                except BrokenPipeError:
                    rest = rest[:0]
                if not rest:
                    selector.unregister(sending)
    return bytes(found)
