"""Limits of request bodies: bytes, seconds to arrive, and memory of all bodies together."""

from __future__ import annotations

import asyncio
import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from spectacles.server.auth import Rejected

MAX_BODY_BYTES = 32 * 1024 * 1024
MAX_BODIES_BYTES = 8 * MAX_BODY_BYTES
"""All requests that are being received or answered."""
BODY_SECONDS = 30.0
"""For a whole body: 32 MiB at 9 Mbit/s."""
MAX_FILES = 16
MAX_PIXELS = 25_000_000
"""Per image: enough for a phone's photo, and about 100 MB of memory for each one that is being decoded."""


class BodyLimit:
    """ASGI middleware. Rejects a body before anything parses it: unread where its announced length is too large, and a
    chunked one as soon as it has become too large."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = _announced(scope)
        self._check(announced, announced)
        received = held = 0
        ends = time.monotonic() + BODY_SECONDS
        finished = False

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
            detail = "Too many large requests at once: retry in a second."
            raise Rejected(503, "memory", detail, {"Retry-After": "1", "Connection": "close"})


def _announced(scope: Scope) -> int:
    length = Headers(scope=scope).get("content-length", "")
    return int(length) if length.isdecimal() and len(length) < 19 else 0
