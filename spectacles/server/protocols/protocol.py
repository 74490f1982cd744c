"""What every protocol is made of."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from spectacles.server import handlers, limits
from spectacles.server.auth import Rejected
from spectacles.server.handlers import Answered

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class Protocol:
    """Routes besides the server's own; they win where a path is the same."""

    photos: Mapping[str, Handler]
    """Path -> what answers a POST with photos."""
    health: Mapping[str, Handler] = field(default_factory=dict)
    """Path -> what answers a GET, without a key."""
    facts: Mapping[str, Handler] = field(default_factory=dict)
    """Path -> what answers a GET, with a key."""
    port: str = ""
    """Where the platform says on which port it will ask; '': it does not."""
    error: str = "detail"
    """The field of a problem's text."""


async def body(request: Request) -> bytes:
    """Raises Rejected."""
    try:
        return await request.body()
    except ClientDisconnect:
        raise Rejected(499, "disconnected", "The client disconnected.") from None


def read_json(content: bytes, usage: str) -> dict[str, Any]:
    """Raises Rejected, with the advice `usage`, for what is not a JSON object."""
    try:
        found = from_json(content)
    except ValueError as error:
        raise bad_request(f"The request is not JSON ({error}). {usage}") from None
    if not isinstance(found, dict):
        raise bad_request(usage)
    return found


def photo(text: object, usage: str) -> bytes:
    """From base64, also with the line breaks of MIME or in the alphabet of addresses. Raises Rejected."""
    if not isinstance(text, str):
        raise bad_request(usage)
    try:
        plain = "".join(text.split()).translate(str.maketrans("-_", "+/"))
        return base64.b64decode(plain, validate=True)
    except (binascii.Error, ValueError) as error:
        raise bad_request(f"A photo is not base64 ({error}). {usage}") from None


def bad_request(detail: str) -> Rejected:
    return Rejected(400, "bad_request", detail)


async def predict(request: Request, contents: list[bytes], usage: str) -> Answered:
    """Raises Rejected for no photo, or for too many."""
    if not contents:
        raise bad_request(usage)
    if len(contents) > limits.MAX_FILES:
        detail = f"{len(contents)} photos are too many: send at most {limits.MAX_FILES} a request."
        raise Rejected(413, "bad_request", detail)
    handlers.admit(request, len(contents))
    return await handlers.answer(request, contents)


async def ready(request: Request) -> Response:
    """200 once the model is loaded and until the server is about to end, else 503."""
    if reason := request.state.service.not_ready():
        raise Rejected(503, "not_ready", reason, {"Retry-After": "1"})
    return JSONResponse({"status": "ready"})
