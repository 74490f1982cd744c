"""The outermost ring of the server: names each request, lets in who may ask, and tells every rejection apart."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from spectacles.server import auth, telemetry
from spectacles.server.auth import Rejected
from spectacles.server.service import Service

OPEN = ("/health/live", "/health/ready")
"""For whoever watches over the server, which may be another machine without a key."""
PAGE = "/"
"""Needs no key either: it asks for one."""
COSTLY = ("/predict", "/explain")
NO_SNIFFING = (b"x-content-type-options", b"nosniff")
TOLD = ("X-Request-ID", "X-Model-ID", "X-Explanation-Method", "X-Explained-Label", "Retry-After")
"""Headers of answers that pages of other sites may read; browsers keep others from them."""
FAILED = "The server failed on this request: its log says more under the request's id."


class Gate:
    """ASGI middleware. Rejects before the body is read: who may not ask, and what there is no room for."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        service: Service = scope["state"]["service"]
        request_id = choose_request_id(Headers(scope=scope).get("x-request-id", ""))
        scope["state"]["request_id"] = request_id
        started, status, told = time.monotonic(), 0, False

        async def send_named(message: Message) -> None:
            nonlocal status, told
            if message["type"] == "http.response.start":
                status, told = message["status"], True
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode()), NO_SNIFFING]
                if service.draining:
                    MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        try:
            self._let_in(scope, service)
            await self.app(scope, receive, send_named)
        except Rejected as rejected:
            response = reject(service, request_id, rejected)
            if not told:
                await response(scope, receive, send_named)
        except Exception as error:
            telemetry.write("failed", request_id=request_id, error=type(error).__name__)
            if not told:
                await JSONResponse({"detail": FAILED}, 500)(scope, receive, send_named)
            raise  # for the traceback in the server's log
        finally:
            service.admitted -= scope["state"].get("admitted", False)
            if status:
                service.metrics.finish(scope["path"], status, time.monotonic() - started)

    def _let_in(self, scope: Scope, service: Service) -> None:
        """Raises Rejected."""
        path, settings = scope["path"], service.settings
        if path in OPEN:
            return
        auth.check_host(scope, settings.allowed_hosts)
        if path == PAGE and settings.api_keys:
            return
        client = auth.identify(scope, settings.api_keys)
        if path in COSTLY and scope["method"] == "POST":
            scope["state"]["client"] = client
            service.check_room()


class Shortcut:
    """ASGI middleware: one POST route without the layers of the router, which take as long as all of its own work."""

    def __init__(self, app: ASGIApp, path: str, endpoint: Callable[[Request], Awaitable[Response]]) -> None:
        self.app, self.path, self.endpoint = app, path, endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == self.path and scope["method"] == "POST":
            response = await self.endpoint(Request(scope, receive))
            await response(scope, receive, send)
        else:
            await self.app(scope, receive, send)


class Cors:
    """ASGI middleware: pages of the sites that the settings name may ask; outside the gate, as preflights carry no key.
    The settings are known only when the server has started."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._ready: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            self._ready = None
            await self.app(scope, receive, send)
            return
        if self._ready is None:
            origins = scope["state"]["service"].settings.cors_origins
            headers = ["Authorization", "X-API-Key", "X-Request-ID"]
            self._ready = (
                self.app
                if not origins
                else CORSMiddleware(
                    self.app,
                    allow_origins=origins,
                    allow_methods=["GET", "POST"],
                    allow_headers=headers,
                    expose_headers=TOLD,
                )
            )
        await self._ready(scope, receive, send)


def reject(service: Service, request_id: str, rejected: Rejected) -> JSONResponse:
    """Counts it, logs it, and says it."""
    service.metrics.reject(rejected.reason)
    telemetry.write("rejected", request_id=request_id, status=rejected.status_code, reason=rejected.reason)
    return JSONResponse({"detail": rejected.detail}, rejected.status_code, rejected.headers)


def choose_request_id(given: str) -> str:
    """The caller's own, where it is one that can stand in a log and a header."""
    return given if re.fullmatch(r"[A-Za-z0-9._-]{1,64}", given) else str(uuid4())
