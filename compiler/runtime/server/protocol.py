"""HTTP connections that cannot be held open by sending a request's head a byte at a time (slow
loris), nor by leaving an answer unread."""

from __future__ import annotations

import asyncio

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

CONNECTIONS = 512  # at once; further requests get 503
HEAD_BYTES = 16384
HEAD_SECONDS = 10.0
UNREAD_SECONDS = 30.0
# Seconds for which a connection stays open that has had its answer.
KEEP_ALIVE_SECONDS = 10


class HeadTimeoutProtocol(H11Protocol):
    """uvicorn's protocol, with limits on how long a client may take.

    uvicorn itself waits for the head of a request for as long as bytes come, and for a client that
    does not read for as long as it is connected. Everything here runs on the event loop.
    """

    _head_timer: asyncio.TimerHandle | None = None
    _unread_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        _stop(self._head_timer)
        _stop(self._unread_timer)

    def pause_writing(self) -> None:
        """Called where more of an answer waits to be read than the transport buffers."""
        super().pause_writing()
        _stop(self._unread_timer)
        self._unread_timer = self.loop.call_later(UNREAD_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        _stop(self._unread_timer)

    def _expect_head(self) -> None:
        _stop(self._head_timer)
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _give_up(self) -> None:
        """End a connection that has sent no head, or not all of a body that is answered already."""
        if self.conn.our_state is h11.SEND_RESPONSE or self.conn.our_state is h11.SEND_BODY:
            return
        if not self.transport.is_closing():
            self.transport.close()
        # A transport closes once all is sent; what nobody reads would keep it open.
        self._head_timer = self.loop.call_later(UNREAD_SECONDS, self.transport.abort)


def _stop(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def uvicorn_config(app: ASGIApp, address: str, port: int) -> uvicorn.Config:
    """How uvicorn serves an application, with all limits on connections."""
    return uvicorn.Config(
        app,
        http=HeadTimeoutProtocol,
        ws="none",
        limit_concurrency=CONNECTIONS + 1,  # the number that is refused
        host=address,
        port=port,
        log_level="warning",
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        h11_max_incomplete_event_size=HEAD_BYTES,
    )
