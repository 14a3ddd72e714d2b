"""Servers on ports of their own, in threads of the tests' process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from compiler.runtime.server import application, protocol
from compiler.runtime.server.endpoints import Server


@contextmanager
def listening(server: Server) -> Iterator[str]:
    """The URL of a server, with the protocol that `serve` has."""
    config = protocol.uvicorn_config(application(server), "127.0.0.1", 0)
    place = config.bind_socket()
    place.listen()
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, args=([place],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{place.getsockname()[1]}"
    finally:
        running.should_exit = True
        thread.join(20)
