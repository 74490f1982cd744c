"""uvicorn with a graceful end: the load balancer hears of it first, and no connection is lost."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn

from spectacles.server.protocol import LoadSheddingProtocol
from spectacles.server.sockets import drop_new_connections, pending_connections, url

log = logging.getLogger("uvicorn.error")
"""Where uvicorn itself says what the server does, on stderr."""

POLL_SECONDS = 0.05
FIRST_REQUEST_SECONDS = 2.0
"""How long at most open connections get to send a first request before the server ends."""
LATE_SECONDS = 0.3
"""At least, for connections that the system had accepted and that were only taken at the end."""
GRACE_SECONDS = 11
"""For accepted requests when the server ends; with the draining and the last requests before it, under 15 s."""


class DrainingServer(uvicorn.Server):
    """On SIGTERM or Ctrl-C: `drain` (no longer ready), and `seconds` later the end; on a second signal: at once."""

    def __init__(self, config: uvicorn.Config, drain: Callable[[], None], seconds: float) -> None:
        super().__init__(config)
        self.drain = drain
        self.seconds = seconds
        self.stop_requested = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.stop_requested or not self.started:
            super().handle_exit(sig, frame)
            return
        self.stop_requested = True
        self.drain()
        loop = asyncio.get_running_loop()
        loop.call_later(self.seconds, super().handle_exit, sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn drops connections that the system has accepted and nobody has taken, and closes those without a
        request so far. Here they are taken, and get a moment to send one."""
        loop = asyncio.get_running_loop()
        until = loop.time() + FIRST_REQUEST_SECONDS
        for listener in sockets or ():
            drop_new_connections(listener)
        await self._wait_for_first_requests(until)
        late = [connection for listener in sockets or () for connection in pending_connections(listener)]
        for server in self.servers:
            server.close()
        for connection in late:
            await loop.connect_accepted_socket(self._protocol, connection)
        if late:
            until = max(until, loop.time() + LATE_SECONDS)
        await self._wait_for_first_requests(until)
        await super().shutdown(sockets)

    async def _wait_for_first_requests(self, until: float) -> None:
        """Until each connection has had a request, or the time is up."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(POLL_SECONDS)
        while loop.time() < until and any(one.cycle is None for one in self.server_state.connections):  # type: ignore[union-attr]
            await asyncio.sleep(POLL_SECONDS)

    def _protocol(self) -> LoadSheddingProtocol:
        return LoadSheddingProtocol(self.config, self.server_state, self.lifespan.state)


def serve(app: Any, listener: socket.socket, seconds: float) -> None:
    """Runs until a signal. The app provides `app.state.drain` for SIGTERM and `app.state.reload` for SIGHUP."""
    config = uvicorn.Config(
        app, http=LoadSheddingProtocol, access_log=False, timeout_graceful_shutdown=GRACE_SECONDS,
    )  # fmt: skip
    server = DrainingServer(config, app.state.drain, seconds)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, lambda *_: app.state.reload())
    log.info("Uvicorn running on %s (Press CTRL+C to quit)", url(*listener.getsockname()[:2]))
    server.run([listener])
