"""uvicorn with what it leaves out: a time for the headers of a request, and a word to the load balancer first."""

from __future__ import annotations

import asyncio
import ctypes
import json
import math
import signal
import socket
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import lru_cache, partial
from types import FrameType, SimpleNamespace
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from spectacles.server import middleware
from spectacles.server.service import TOO_BUSY, Service

LARGE, LINGER_SECONDS = 1 << 18, 1.0
"""Bytes of a body, and how long after a rejection a connection with a larger one is kept for the answer to arrive."""
COSTLY = tuple(path.encode() for path in middleware.COSTLY)
AT_ONCE = 0.002
"""Seconds that a rejection is early rather than waited for."""
HEADER_SECONDS = 10.0
"""From the first byte of a request, or from connecting, to the end of its headers."""
EXPECTED_SECONDS = 1.0
"""For a large body: a slower one keeps no room meanwhile, or clients that send a byte now and then could take all."""
LOOK_SECONDS, LAST_WORD_SECONDS = 0.05, 2.0
"""How often it is looked, and how long at most, whether those that have a connection have said what they want."""
AT_LEAST_SECONDS = 0.3
"""For those who stood in line to the end, where the system could not keep newcomers out."""
GRACE_SECONDS = 11
"""For accepted requests when the server ends; with the draining and the last words before it, under 15 s."""
MOST_CONNECTIONS = 4096
"""Beyond, new ones are closed: each may hold a file descriptor and a little memory."""


ANSWERED = SimpleNamespace(response_complete=True)
"""In the place of a request that has its answer: uvicorn lets what is left of its body go by."""
BUSY = """HTTP/1.1 503 Service Unavailable\r
Content-Type: application/json\r
Retry-After: {seconds}\r
Connection: {connection}\r
Content-Length: {length}\r
\r
{body}"""


@lru_cache
def rejection(seconds: int, connection: str) -> bytes:
    """The whole answer."""
    body = json.dumps({"detail": TOO_BUSY})
    return BUSY.format(seconds=seconds, connection=connection, length=len(body), body=body).encode()


class ImpatientProtocol(HttpToolsProtocol):
    """uvicorn's, for bad times.

    It closes a connection whose request does not get on: without this, a client that sends a byte a minute costs
    nothing and holds a connection for ever. And it rejects photos that there is no room for as soon as it has read the
    headers: a rejection that goes through all layers of the app takes far longer, and many of them would take the
    time that the photos need which were accepted.
    """

    _alarm: asyncio.TimerHandle | None = None
    _owed: Callable[[], None] | None = None
    """A rejection that is not said yet."""
    _service: Service | None = None
    """Where the request is one for photos."""
    _uploading = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            transport.abort()
        self._set_alarm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_alarm()
        self._end_upload()
        self._owed = None
        if self.cycle is ANSWERED:  # type: ignore[comparison-overlap]
            self.cycle = None  # type: ignore[assignment]
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        self._set_alarm()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._stop_alarm()
        self._settle()
        costly = self.parser.get_method() == b"POST" and self.url.partition(b"?")[0] in COSTLY
        service = self._service = self.app_state.get("service") if costly else None
        if not service:
            super().on_headers_complete()
            return
        large = _announced(self.headers) > LARGE
        idle = self.cycle is None or self.cycle.response_complete
        seconds = service.busy_for(large) if idle else 0
        if seconds:
            self._owe(seconds, large, service.reject_after())
            return
        if large:
            self._uploading = True
            service.uploading += 1
            self._alarm = self.loop.call_later(EXPECTED_SECONDS, self._end_upload)
        super().on_headers_complete()

    def _end_upload(self) -> None:
        if self._service and self._uploading:
            self._uploading = False
            self._service.uploading -= 1

    def _owe(self, seconds: int, large: bool, after: float) -> None:
        self.cycle = ANSWERED  # type: ignore[assignment]
        self._owed = partial(self._reject, seconds, large)
        if after < AT_ONCE:
            self._settle()
        else:
            self.flow.pause_reading()
            self.loop.call_later(after, self._settle)

    def _settle(self) -> None:
        if self._owed:
            self._owed()
            self._owed = None

    def _reject(self, seconds: int, large: bool) -> None:
        """A small body is let go by, so that the connection goes on; a large one is left unread, or a flood of them
        would take the time of the photos that were accepted."""
        last = large or (self._service is not None and self._service.draining)
        self.transport.write(rejection(seconds, "close" if last else "keep-alive"))
        self.on_response_complete()
        if last:
            self.transport.pause_reading()
            self.loop.call_later(LINGER_SECONDS, self.transport.abort)  # at once, the answer could get lost
        else:
            self._set_alarm()  # for the rest of its body

    def shutdown(self) -> None:
        self._settle()
        super().shutdown()

    def on_message_complete(self) -> None:
        self._stop_alarm()
        self._end_upload()
        if self._service and not self.cycle.response_complete:
            self._service.admitted += 1
            self.scope["state"]["admitted"] = True  # the gate counts it out again
        super().on_message_complete()

    def _set_alarm(self) -> None:
        self._stop_alarm()
        self._alarm = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _stop_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None


def _announced(headers: Iterable[tuple[bytes, bytes]]) -> float:
    """Bytes of the body; without end where it comes in chunks."""
    known = dict(headers)
    length = known.get(b"content-length", b"")
    return int(length) if length.isdigit() else math.inf if b"transfer-encoding" in known else 0


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

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn forgets connections that the system has taken and nobody has looked at, and closes those that have
        said nothing yet. Here they are taken, and get a moment for it."""
        until = asyncio.get_running_loop().time() + LAST_WORD_SECONDS
        for listener in sockets or ():
            let_nobody_in(listener)
        await self._hear_all(until)
        last = [connection for listener in sockets or () for connection in waiting(listener)]
        for server in self.servers:
            server.close()
        for connection in last:
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection)
        await self._hear_all(max(until, asyncio.get_running_loop().time() + AT_LEAST_SECONDS * bool(last)))
        await super().shutdown(sockets)

    async def _hear_all(self, until: float) -> None:
        """Waits until each connection has had a request, but no longer."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(LOOK_SECONDS)
        while loop.time() < until and any(one.cycle is None for one in self.server_state.connections):  # type: ignore[union-attr]
            await asyncio.sleep(LOOK_SECONDS)

    def _protocol(self) -> ImpatientProtocol:
        return ImpatientProtocol(self.config, self.server_state, self.lifespan.state)


def serve(app: Any, host: str, port: int, seconds: float) -> None:
    """Until a signal. `app.state.drain` and `app.state.reload` are what the app does on SIGTERM and SIGHUP."""
    config = uvicorn.Config(
        app, host=host, port=port, http=ImpatientProtocol, access_log=False, timeout_graceful_shutdown=GRACE_SECONDS,
        backlog=MOST_CONNECTIONS,
    )  # fmt: skip
    server = DrainingServer(config, app.state.drain, seconds)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, lambda *_: app.state.reload())
    server.run([listen(config)])


SO_ATTACH_FILTER = 26
"""asm-generic/socket.h; Python does not name it."""
LOAD_BYTE, JUMP_IF_SET, RETURN = 0x30, 0x45, 0x06
"""Of linux/bpf_common.h: BPF_LD | BPF_B | BPF_ABS, BPF_JMP | BPF_JSET | BPF_K, BPF_RET | BPF_K."""
FLAGS, SYN = 13, 0x02
"""Where in a TCP header the flags stand (RFC 9293), and the one of a packet that asks for a connection."""
NO_NEWCOMERS = ((LOAD_BYTE, 0, 0, FLAGS), (JUMP_IF_SET, 0, 1, SYN), (RETURN, 0, 0, 0), (RETURN, 0, 0, 0xFFFFFFFF))


def listen(config: uvicorn.Config) -> socket.socket:
    """Says the address, and from then on clients wait while the app starts; uvicorn would have them rejected."""
    listener = config.bind_socket()
    listener.listen(config.backlog)
    return listener


def let_nobody_in(listener: socket.socket) -> None:
    """From now on the system drops whoever asks for a connection. Who got one stays: closing the listener instead would
    cut off those that nobody has looked at yet. A no-op on other systems than Linux."""
    if sys.platform != "linux":
        return
    program = b"".join(struct.pack("HBBI", *step) for step in NO_NEWCOMERS)
    kept = ctypes.create_string_buffer(program, len(program))  # until the system has copied it
    with suppress(OSError):  # a kernel that was built without it
        listener.setsockopt(
            socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", len(NO_NEWCOMERS), ctypes.addressof(kept))
        )


def waiting(listener: socket.socket) -> Iterator[socket.socket]:
    """Connections that the system has taken and nobody has looked at. `listener` does not block."""
    with suppress(BlockingIOError):
        while True:
            yield listener.accept()[0]
