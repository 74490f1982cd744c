"""uvicorn's HTTP protocol with load shedding: slow connections are closed, and photos that there is no room for are
rejected before their body is read."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from types import SimpleNamespace

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from spectacles.server import middleware
from spectacles.server.service import TOO_BUSY, Service

LARGE = 1 << 18
"""Bytes of a body beyond which it is left unread when it is rejected."""
LINGER_SECONDS = 1.0
"""How long a connection is kept after such a rejection, for the response to arrive."""
PREDICTION_PATHS = tuple(path.encode() for path in middleware.PREDICTION_PATHS)
SEND_AT_ONCE = 0.002
"""Delays in seconds below this are not worth a timer."""
HEADER_SECONDS = 10.0
"""From the first byte of a request, or from connecting, to the end of its headers."""
UPLOAD_SECONDS = 1.0
"""A large body has room reserved for so long: otherwise clients that send a byte now and then could take all of it."""
MAX_CONNECTIONS = 4096
"""New ones beyond are closed: each may hold a file descriptor and a little memory."""

REJECTED = SimpleNamespace(response_complete=True)
"""Takes the place of a request that has its response: uvicorn then discards what is left of its body."""
BUSY = """HTTP/1.1 503 Service Unavailable\r
Content-Type: application/json\r
Retry-After: {seconds}\r
Connection: {connection}\r
Content-Length: {length}\r
\r
{body}"""


@lru_cache
def busy_response(seconds: int, connection: str) -> bytes:
    body = json.dumps({"detail": TOO_BUSY})
    return BUSY.format(seconds=seconds, connection=connection, length=len(body), body=body).encode()


class LoadSheddingProtocol(HttpToolsProtocol):
    """Protects the time of the photos that were accepted.

    A connection whose request makes no progress is closed: otherwise a client that sends a byte a minute holds it for
    ever at no cost. Photos that there is no room for are rejected as soon as the headers are read: through all layers
    of the app a rejection takes far longer, and many of them would take the time that accepted photos need.
    """

    _timer: asyncio.TimerHandle | None = None
    _pending_rejection: Callable[[], None] | None = None
    _service: Service | None = None
    """Set while the request is one for photos."""
    _uploading = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._end_upload()
        self._pending_rejection = None
        if self.cycle is REJECTED:  # type: ignore[comparison-overlap]
            self.cycle = None  # type: ignore[assignment]
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        self._start_timer()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._stop_timer()
        self._send_pending_rejection()
        for_photos = self.parser.get_method() == b"POST" and self.url.partition(b"?")[0] in PREDICTION_PATHS
        service = self._service = self.app_state.get("service") if for_photos else None
        if not service:
            super().on_headers_complete()
            return
        large = content_length(self.headers) > LARGE
        idle = self.cycle is None or self.cycle.response_complete
        retry_after = service.busy_for(large) if idle else 0
        if retry_after:
            self._schedule_rejection(retry_after, large, service.reject_after())
            return
        if large:
            self._uploading = True
            service.uploading += 1
            self._timer = self.loop.call_later(UPLOAD_SECONDS, self._end_upload)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._stop_timer()
        self._end_upload()
        if self._service and not self.cycle.response_complete:
            self._service.admitted += 1
            self.scope["state"]["admitted"] = True  # AuthMiddleware subtracts it again
        super().on_message_complete()

    def shutdown(self) -> None:
        self._send_pending_rejection()
        super().shutdown()

    def _end_upload(self) -> None:
        if self._service and self._uploading:
            self._uploading = False
            self._service.uploading -= 1

    def _schedule_rejection(self, retry_after: int, large: bool, delay: float) -> None:
        self.cycle = REJECTED  # type: ignore[assignment]
        self._pending_rejection = partial(self._reject, retry_after, large)
        if delay < SEND_AT_ONCE:
            self._send_pending_rejection()
        else:
            self.flow.pause_reading()
            self.loop.call_later(delay, self._send_pending_rejection)

    def _send_pending_rejection(self) -> None:
        if self._pending_rejection:
            self._pending_rejection()
            self._pending_rejection = None

    def _reject(self, retry_after: int, large: bool) -> None:
        """A small body is discarded, so that the connection can be used again; a large one is left unread, or a flood
        of them would take the time of the photos that were accepted."""
        close = large or (self._service is not None and self._service.draining)
        self.transport.write(busy_response(retry_after, "close" if close else "keep-alive"))
        self.on_response_complete()
        if close:
            self.transport.pause_reading()
            self.loop.call_later(LINGER_SECONDS, self.transport.abort)  # closed at once, the response could get lost
        else:
            self._start_timer()  # for the rest of its body

    def _start_timer(self) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def content_length(headers: Iterable[tuple[bytes, bytes]]) -> float:
    """Bytes of the body; infinite where it comes in chunks."""
    known = dict(headers)
    length = known.get(b"content-length", b"")
    return int(length) if length.isdigit() else math.inf if b"transfer-encoding" in known else 0
