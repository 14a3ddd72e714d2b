"""HTTP connections that cannot be held open by sending a request's head a byte at a time (slow
loris), nor by leaving an answer unread."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

CONNECTIONS = 512  # at once; further requests get 503
HEAD_SECONDS = 10.0
UNREAD_SECONDS = 30.0


class HeadTimeoutProtocol(H11Protocol):
    """uvicorn's protocol, which itself waits for the head of a request for as long as bytes come,
    and for a client that does not read for as long as it is connected."""

    _until: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        _end(self._until)
        _end(self._unread)

    def pause_writing(self) -> None:
        """More of an answer waits than the transport takes."""
        super().pause_writing()
        _end(self._unread)
        self._unread = self.loop.call_later(UNREAD_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        _end(self._unread)

    def _wait(self) -> None:
        _end(self._until)
        self._until = self.loop.call_later(HEAD_SECONDS, self._expire)

    def _expire(self) -> None:
        # No head came, or an answer is given while the request's body is still coming.
        if self.conn.our_state is h11.SEND_RESPONSE or self.conn.our_state is h11.SEND_BODY:
            return
        if not self.transport.is_closing():
            self.transport.close()
        # What nobody reads would keep the transport open.
        self._until = self.loop.call_later(UNREAD_SECONDS, self.transport.abort)


def _end(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
