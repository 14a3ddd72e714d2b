"""Tokenizers and chat templates of strangers: tried, or run, in a process with limits of memory and
time (child.py)."""

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

from compiler.errors import first_line, no_file
from compiler.runtime.child import load_tokenizer

CHILD = Path(__file__).with_name("child.py")
# A tokenizer.json of 262,144 tokens and 37 MiB is read within 512 MiB.
TOKENIZER_BYTES = 1 << 30
TOKENIZER_SECONDS = 60.0
# Python with jinja2 takes 100 MiB.
TEMPLATE_BYTES = 512 << 20
TEMPLATE_SECONDS = 10.0
# Bytes of an answer: more than any text that fits a context.
MOST_ANSWER = 64 << 20
# Bytes of a tokenizer.json; that of Gemma 3 has 33 MiB.
MOST_DEFINITION = 128 << 20
# Bytes that are read from the process at once.
_PIPE_PART = 1 << 20


class ConfinedError(Exception):
    """What ran in the process failed, or went beyond its limits."""


class RefusedError(ConfinedError):
    """A template said that it does not take the conversation."""


def tokenizer(definition: str) -> Any:
    """The tokenizer that a tokenizer.json defines; it neither pads nor truncates.

    It is tried in a process with limits first, as the library ends or hangs the process that reads
    some. Raises ConfinedError.
    """
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
        # Pipes and devices are no files: to read one may never end.
        if not path.is_file():
            raise ConfinedError(no_file(path))
        _check_size(path.stat().st_size)
        return path.read_text("utf-8")
    except OSError as error:
        raise ConfinedError(error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise ConfinedError("it is not UTF-8 text") from error


def _check_size(size: int) -> None:
    if size > MOST_DEFINITION:
        most = MOST_DEFINITION >> 20
        raise ConfinedError(f"it has {size >> 20} MiB; at most {most} MiB are read")


def check_unicode(text: str) -> None:
    """Raises ValueError for half of a surrogate pair, which a str can hold and no text has."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"character {error.start} of the text is half of a surrogate pair"
        ) from error


def encode(tokenizer: Any, text: str, add_special_tokens: bool = True) -> list[int]:
    """The tokens of a text. Raises ConfinedError where the library has none for it."""
    try:
        check_unicode(text)
    except ValueError as error:
        raise ConfinedError(str(error)) from error
    with panics():
        # Unlike `encode`, this lets other threads run meanwhile.
        (encoding,) = tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return list(encoding.ids)


def decode(tokenizer: Any, tokens: Sequence[int]) -> str:
    """The text of tokens, without control tokens. Raises ConfinedError where the library has none
    for them."""
    with panics():
        return str(tokenizer.decode(list(tokens), skip_special_tokens=True))


@contextlib.contextmanager
def panics() -> Iterator[None]:
    """Turns every failure of the tokenizers library into ConfinedError."""
    try:
        yield
    except BaseException as error:
        # A panic of the Rust library is no Exception; here it means a text that it cannot take.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ConfinedError(first_line(error)) from error


class Confined:
    """A child process that answers one request at a time.

    It starts with the first request, and again after one that went beyond the limits, which are
    `memory` in bytes and `seconds` for each request. It ends with this object. Any thread may ask.
    """

    def __init__(self, memory: int, seconds: float) -> None:
        self._memory = memory
        self._seconds = seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._finalizer: weakref.finalize[Any, Any] | None = None

    def ask(self, task: str, *arguments: Any) -> Any:
        """What a function of child.py returns for arguments of JSON.

        Raises RefusedError for a template that refuses, ConfinedError for all else.
        """
        request = json.dumps([task, arguments]).encode() + b"\n"
        answer = json.loads(self._answer(request))
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

    def _answer(self, request: bytes) -> bytes:
        """The line that the process answers."""
        with self._lock:
            try:
                process = self._process or self._start()
            except OSError as error:
                raise ConfinedError(f"no process can be started: {error.strerror}") from error
            line = _exchange(process, request, time.monotonic() + self._seconds)
            if not line.endswith(b"\n"):
                code = self._end()
                raise ConfinedError(self._overrun(code, line))
        return line

    def _start(self) -> subprocess.Popen[bytes]:
        # One thread: each would take address space for a heap of its own.
        single_thread = {
            "RAYON_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "MALLOC_ARENA_MAX": "1",
        }
        process = subprocess.Popen(
            # -P: a file of the working folder is no module.
            [sys.executable, "-P", str(CHILD), str(self._memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | single_thread,
        )
        self._process = process
        self._finalizer = weakref.finalize(self, _kill, process)
        return process

    def _end(self) -> int | None:
        """End the process; returns its code where it had ended by itself."""
        if self._process is None or self._finalizer is None:
            return None
        try:
            # It has closed its pipe and is about to end, or it hangs.
            code = self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            code = None
        self._finalizer()
        self._process = None
        return code

    def _overrun(self, code: int | None, line: bytes) -> str:
        """What to say of a process that gave no whole answer."""
        memory = f"{self._memory >> 20} MiB"
        if len(line) >= MOST_ANSWER:
            return f"it makes a text of more than {MOST_ANSWER >> 20} MiB"
        if code is None:
            return f"it takes longer than {self._seconds:g} seconds or more than {memory}"
        how = signal.Signals(-code).name if code < 0 else f"code {code}"
        return f"it ended its process ({how}), which had {memory}"


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()


def _exchange(process: subprocess.Popen[bytes], request: bytes, deadline: float) -> bytes:
    """Write a line and read one, until `deadline` on the monotonic clock.

    The line lacks its end where the process ended, its time was over, or it is too long.
    """
    assert process.stdin is not None and process.stdout is not None
    sending = process.stdin.fileno()
    receiving = process.stdout.fileno()
    # Both at once: a process that answers before it has read all would wait for us, as we for it.
    os.set_blocking(sending, False)
    unsent = memoryview(request)
    received = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(sending, selectors.EVENT_WRITE)
        selector.register(receiving, selectors.EVENT_READ)
        while not received.endswith(b"\n") and len(received) < MOST_ANSWER:
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                break
            for key, _ in ready:
                if key.fd == sending:
                    unsent = _send(sending, unsent)
                    if not unsent:
                        selector.unregister(sending)
                    continue
                part = os.read(receiving, _PIPE_PART)
                if not part:
                    return bytes(received)
                received += part
    return bytes(received)


def _send(pipe: int, data: memoryview) -> memoryview:
    """Write what the pipe takes; returns the rest."""
    try:
        return data[os.write(pipe, data) :]
    except BrokenPipeError:
        # The process has ended, and its own pipe will say so.
        return data[:0]
