"""A server in a process of its own, and a client of it, for the benchmarks of `serve`."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.soak import resident_mb

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"


@dataclass(frozen=True)
class Served:
    """A server that listens on a port of this machine."""

    port: int
    process: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def resident_mb(self) -> float:
        """Memory of the server's process."""
        return resident_mb(self.process)


@contextmanager
def serving(bundle: Path) -> Iterator[Served]:
    """Serves a bundle on the CPU and a free port."""
    options = ["--port", "0", "--devices", "cpu"]
    command = [sys.executable, "-m", "compiler", "serve", str(bundle), *options]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        try:
            # "Serving NAME on URL with ..."
            url = process.stdout.readline().split(" on ")[1].split()[0]
            yield Served(int(url.rpartition(":")[2]), process.pid)
        finally:
            process.terminate()


class Client:
    """A connection that asks in JSON."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)

    def ask(self, path: str, body: dict[str, Any] | bytes, **headers: str) -> tuple[int, bytes]:
        """Status and body of an answer. Raises OSError or HTTPException where there is none."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        content_type = {"Content-Type": "application/json"}
        try:
            self._connection.request("POST", path, data, content_type | headers)
            answer = self._connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            self._connection.close()
            raise
