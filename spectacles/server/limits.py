"""What a request's body may cost: bytes, counted while they arrive, seconds, and memory of all bodies together."""

from __future__ import annotations

import asyncio
import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from spectacles.server.auth import Rejected

MAX_BODY_BYTES = 32 * 1024 * 1024
MAX_BODIES_BYTES = 8 * MAX_BODY_BYTES
"""Of all requests that are being received or answered."""
BODY_SECONDS = 30.0
"""For a whole body: 32 MiB at 9 Mbit/s."""
MAX_FILES = 16


class BodyLimit:
    """ASGI middleware. What it rejects it rejects before anything parses it: a body that is announced as too large
    unread, a chunked one as soon as it is."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = _announced(scope)
        self._check(announced, announced)
        received, held, ends, finished = 0, 0, time.monotonic() + BODY_SECONDS, False

        async def counted() -> Message:
            nonlocal received, held, finished
            if finished:
                return await receive()  # a disconnect, whenever that comes
            try:
                async with asyncio.timeout(max(0.0, ends - time.monotonic())):
                    message = await receive()
            except TimeoutError:
                detail = f"The request did not arrive within {BODY_SECONDS:.0f} s."
                raise Rejected(408, "slow_client", detail, {"Connection": "close"}) from None
            size = len(message.get("body", b""))
            received += size
            self._check(received, size)
            self.held += size
            held += size
            finished = message["type"] != "http.request" or not message.get("more_body", False)
            return message

        try:
            await self.app(scope, counted, send)
        finally:
            self.held -= held

    def _check(self, own: int, more: int) -> None:
        if own > MAX_BODY_BYTES:
            detail = f"The request is larger than {MAX_BODY_BYTES >> 20} MiB: send fewer or smaller images."
            raise Rejected(413, "body_too_large", detail, {"Connection": "close"})
        if self.held + more > MAX_BODIES_BYTES:
            detail = "Too many large requests at once: come back in a second."
            raise Rejected(503, "memory", detail, {"Retry-After": "1", "Connection": "close"})


def _announced(scope: Scope) -> int:
    length = Headers(scope=scope).get("content-length", "")
    return int(length) if length.isdecimal() and len(length) < 19 else 0
