"""uvicorn with what it leaves out: a time for the headers of a request, and a word to the load balancer first."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADER_SECONDS = 10.0
"""From the first byte of a request, or from connecting, to the end of its headers."""
GRACE_SECONDS = 12
"""For accepted requests when the server ends; with the draining before it, under 15 s."""
MOST_CONNECTIONS = 1000


class ImpatientProtocol(HttpToolsProtocol):
    """Closes a connection whose request does not get on: without this, a client that sends a byte a minute costs
    nothing and holds a connection for ever."""

    _alarm: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._set_alarm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_alarm()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        self._set_alarm()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._stop_alarm()
        super().on_headers_complete()

    def _set_alarm(self) -> None:
        self._stop_alarm()
        self._alarm = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _stop_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None


class DrainingServer(uvicorn.Server):
    """On SIGTERM or Ctrl-C: `drain` first (not ready any more), `seconds` later the end; a second signal: at once."""

    def __init__(self, config: uvicorn.Config, drain: Callable[[], None], seconds: float) -> None:
        super().__init__(config)
        self.drain, self.seconds, self.asked = drain, seconds, False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.asked or not self.started:
            super().handle_exit(sig, frame)
            return
        self.asked = True
        self.drain()
        loop = asyncio.get_running_loop()
        loop.call_later(self.seconds, super().handle_exit, sig, frame)


def serve(app: Any, host: str, port: int, seconds: float) -> None:
    """Until a signal. `app.state.drain` and `app.state.reload` are what the app does on SIGTERM and SIGHUP."""
    config = uvicorn.Config(
        app, host=host, port=port, http=ImpatientProtocol, access_log=False, timeout_graceful_shutdown=GRACE_SECONDS,
        limit_concurrency=MOST_CONNECTIONS, backlog=MOST_CONNECTIONS,
    )  # fmt: skip
    server = DrainingServer(config, app.state.drain, seconds)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, lambda *_: app.state.reload())
    server.run()
