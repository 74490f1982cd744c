"""Load shedding: photos that there is no room for are rejected before their body is read."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterable
from functools import lru_cache

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from spectacles.server.service import TOO_BUSY, Service

LARGE = 1 << 18
"""Bytes of a body beyond which it is left unread when it is rejected."""
LINGER_SECONDS = 1.0
"""How long a connection is kept after such a rejection, for the response to arrive."""
UPLOAD_SECONDS = 1.0
"""A large body has room reserved for so long: otherwise clients that send a byte now and then could take all of it."""


class Admission:
    """ASGI middleware for requests with photos; inside AuthMiddleware, so that strangers take no room.

    A request takes room from its arrival in the queue to its response; a large one already while its body arrives. A
    rejection is cheap for the client and not for the server, so they are limited in number by holding each back a
    little, at most a second.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["state"].get("for_photos"):
            await self.app(scope, receive, send)
            return
        service: Service = scope["state"]["service"]
        large = content_length(scope["headers"]) > LARGE
        if retry_after := service.busy_for(large):
            await asyncio.sleep(service.reject_after())
            await respond(send, *busy_response(retry_after, large), unread=large)
        elif large:
            await self._upload(service, scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _upload(self, service: Service, scope: Scope, receive: Receive, send: Send) -> None:
        """Reserves room until the body has arrived."""
        reserved = True
        service.uploading += 1

        def release() -> None:
            nonlocal reserved
            service.uploading -= reserved
            reserved = False

        async def watched() -> Message:
            message = await receive()
            if not message.get("more_body"):
                release()
            return message

        timer = service.loop.call_later(UPLOAD_SECONDS, release)
        try:
            await self.app(scope, watched, send)
        finally:
            timer.cancel()
            release()


Headers = list[tuple[bytes, bytes]]


async def respond(send: Send, status: int, headers: Headers, body: bytes, unread: bool) -> None:
    """`unread`: a body still arrives that nobody will read. Closed at once, the connection would be reset and the
    response might get lost; read to its end, a flood of such bodies would take the time of others' photos."""
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": unread})
    if unread:
        await asyncio.sleep(LINGER_SECONDS)
        await send({"type": "http.response.body", "body": b""})


@lru_cache
def busy_response(seconds: int, close: bool) -> tuple[int, Headers, bytes]:
    body = json.dumps({"detail": TOO_BUSY}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"retry-after", str(seconds).encode()),
    ]
    return 503, headers + [(b"connection", b"close")] * close, body


def content_length(headers: Iterable[tuple[bytes, bytes]]) -> float:
    """Bytes of the body; infinite where it comes in chunks."""
    known = dict(headers)
    length = known.get(b"content-length", b"")
    return int(length) if length.isdigit() else math.inf if b"transfer-encoding" in known else 0
