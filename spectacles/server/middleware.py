"""The outermost layers of the server: request ids, authorization, rejections, CORS."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from spectacles.server import auth, telemetry
from spectacles.server.admission import respond
from spectacles.server.auth import Rejected
from spectacles.server.protocols.dispatch import Protocols
from spectacles.server.service import Service

OPEN_PATHS = ("/health/live", "/health/ready")
"""For monitoring, which may come from another machine and without a key."""
PAGE = "/"
"""Needs no key either: it asks the person for one."""
PREDICTION_PATHS = ("/predict", "/explain")
NOSNIFF = (b"x-content-type-options", b"nosniff")
EXPOSED_HEADERS = ("X-Request-ID", "X-Model-ID", "X-Explanation-Method", "X-Explained-Label", "Retry-After")
"""Response headers that pages of other sites may read."""
FAILED = "The server failed on this request: its log has the details under the request's id."


class AuthMiddleware:
    """Rejects, before the body is read, requests that are not allowed."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        service: Service = scope["state"]["service"]
        request_id = choose_request_id(Headers(scope=scope).get("x-request-id", ""))
        scope["state"]["request_id"] = request_id
        started = time.monotonic()
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode()), NOSNIFF]
                if service.draining:
                    MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        try:
            self._authorize(scope, service)
            await self.app(scope, receive, send_with_headers)
        except Rejected as rejected:
            response = reject(service, request_id, rejected, scope["state"].get("error", "detail"))
            if not status:
                unread = response.headers.get("connection") == "close"
                await respond(
                    send_with_headers, response.status_code, response.raw_headers, bytes(response.body), unread
                )
        except Exception as error:
            telemetry.write("failed", request_id=request_id, error=type(error).__name__)
            if not status:
                await JSONResponse({"detail": FAILED}, 500)(scope, receive, send_with_headers)
            raise  # for the traceback in the server's log
        finally:
            if status:
                route = scope["state"].get("route") or telemetry.route(route_path(scope))
                service.metrics.finish(route, status, time.monotonic() - started)

    def _authorize(self, scope: Scope, service: Service) -> None:
        """Raises Rejected."""
        path = route_path(scope)
        settings = service.settings
        protocols: Protocols = scope["state"]["protocols"]
        if path in OPEN_PATHS or protocols.is_open(path):
            return
        auth.check_host(scope, settings.allowed_hosts)
        if path == PAGE and settings.api_keys:
            return
        client = auth.identify(scope, settings.api_keys, settings.trust_network)
        if (path in PREDICTION_PATHS or protocols.takes_photos(path)) and scope["method"] == "POST":
            scope["state"]["client"] = client
            scope["state"]["for_photos"] = True


class LateCorsMiddleware:
    """starlette's, set up at the first request: the settings are known only when the server has started. Outside
    AuthMiddleware, as preflights carry no key."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._configured: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            self._configured = None
            await self.app(scope, receive, send)
            return
        if self._configured is None:
            self._configured = self._configure(scope["state"]["service"].settings.cors_origins)
        await self._configured(scope, receive, send)

    def _configure(self, origins: Sequence[str]) -> ASGIApp:
        if not origins:
            return self.app
        return CORSMiddleware(
            self.app,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "X-API-Key", "X-Request-ID"],
            expose_headers=EXPOSED_HEADERS,
        )


def route_path(scope: Scope) -> str:
    """The path without the prefix under which a proxy serves the app (`--root-path`)."""
    path, prefix = scope["path"], scope.get("root_path", "").rstrip("/")
    return path[len(prefix) :] if prefix and path.startswith(prefix + "/") else str(path)


def reject(service: Service, request_id: str, rejected: Rejected, field: str = "detail") -> JSONResponse:
    """Counts and logs it; its response, with the text in this field."""
    service.metrics.reject(rejected.reason)
    telemetry.write("rejected", request_id=request_id, status=rejected.status_code, reason=rejected.reason)
    return JSONResponse({field: rejected.detail}, rejected.status_code, rejected.headers)


def choose_request_id(given: str) -> str:
    """The caller's, if it is safe in a log and in a header."""
    return given if re.fullmatch(r"[A-Za-z0-9._-]{1,64}", given) else str(uuid4())
