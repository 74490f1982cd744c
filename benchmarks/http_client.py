"""A minimal HTTP client for well-behaved and hostile requests: it sends bytes and reads a status."""

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any

BOUNDARY = "ae1f7c0b"
FORM = f"multipart/form-data; boundary={BOUNDARY}"


@dataclass(frozen=True)
class Reply:
    status: int
    """0: the connection was closed without an answer; -1: there was no connection."""
    body: bytes
    seconds: float

    def json(self) -> Any:
        return json.loads(self.body)


def form(*contents: bytes) -> bytes:
    """Files as the body of a form."""
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{number}.jpg"\r\n\r\n'.encode()
        + content
        + b"\r\n"
        for number, content in enumerate(contents)
    ]
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def photo_request(*contents: bytes, path: str = "/predict") -> bytes:
    """One whole request: POST of files as a form."""
    body = form(*contents)
    return head(path, f"Content-Length: {len(body)}") + body


def head(path: str, *headers: str, method: str = "POST") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1",
             f"Content-Type: {FORM}", *headers]  # fmt: skip
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


class Client:
    """One connection after the other, kept open as long as the server does."""

    def __init__(self, port: int, seconds: float = 60.0) -> None:
        self.port, self.seconds = port, seconds
        self.writer: asyncio.StreamWriter | None = None

    async def ask(self, request: bytes) -> Reply:
        started = time.monotonic()
        if self.writer is None:
            try:
                self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError:
                return Reply(-1, b"", time.monotonic() - started)
        try:
            status, body = await asyncio.wait_for(self._exchange(request), self.seconds)
        except (OSError, asyncio.IncompleteReadError, TimeoutError, ValueError):
            status, body = 0, b""
        if status == 0:
            self.close()
        return Reply(status, body, time.monotonic() - started)

    async def _exchange(self, request: bytes) -> tuple[int, bytes]:
        assert self.writer is not None
        sending = asyncio.create_task(self._send(request))  # an answer may come before all is sent
        try:
            headers = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        length = headers.partition("content-length:")[2].split("\r\n")[0].strip()
        body = await self.reader.readexactly(int(length or 0))
        if "connection: close" in headers or not sending.done() or sending.cancelled():
            self.close()
        return int(headers.split()[1]), body

    async def _send(self, request: bytes) -> None:
        assert self.writer is not None
        self.writer.write(request)
        await self.writer.drain()

    def close(self) -> None:
        if self.writer is not None:
            self.writer.transport.abort()
            self.writer = None
