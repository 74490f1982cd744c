"""The protocols that the settings ask for, and the middleware that hands them their requests."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from spectacles.core.errors import UserError
from spectacles.server.protocols import azureml, open_inference, sagemaker, vertex
from spectacles.server.protocols.protocol import Handler, Protocol

PROTOCOLS: dict[str, Callable[[Mapping[str, str]], Protocol]] = {
    "sagemaker": sagemaker.protocol,
    "vertex": vertex.protocol,
    "azureml": azureml.protocol,
    "open_inference": open_inference.protocol,
}
"""Name in SPECTACLES_PROTOCOLS -> the protocol, which may depend on the platform's own variables."""


class Protocols:
    """Routes of the protocols with these names."""

    def __init__(self, names: Sequence[str] = (), environment: Mapping[str, str] = os.environ) -> None:
        """`environment`: the platform's variables. Raises UserError for a name that is not one of PROTOCOLS."""
        if unknown := [name for name in names if name not in PROTOCOLS]:
            raise UserError(f"SPECTACLES_PROTOCOLS={unknown[0][:40]} cannot be used: use {', '.join(PROTOCOLS)}.")
        self.chosen = [PROTOCOLS[name](environment) for name in names]
        self._routes: list[tuple[Route, Protocol]] = []
        self._photos: list[Route] = []
        self._open: set[str] = set()
        for each in self.chosen:
            self._photos += self._add(each, each.photos, "POST")
            self._open |= {route.path for route in self._add(each, each.health, "GET")}
            self._add(each, each.facts, "GET")

    def _add(self, protocol: Protocol, handlers: Mapping[str, Handler], method: str) -> list[Route]:
        routes = [Route(path, handler, methods=[method]) for path, handler in handlers.items()]
        self._routes += [(route, protocol) for route in routes]
        return routes

    def port(self) -> int | None:
        """On which the platform will ask, where it says so. Raises UserError."""
        for text in (each.port for each in self.chosen if each.port):
            if not text.isdecimal() or int(text) > 65535:
                raise UserError(f"the platform's port {text[:40]!r} cannot be used: it has to be a number up to 65535.")
            return int(text)
        return None

    def is_open(self, path: str) -> bool:
        return path in self._open

    def takes_photos(self, path: str) -> bool:
        return any(route.path_regex.match(path) for route in self._photos)

    def find(self, scope: Scope) -> tuple[Route, Protocol] | None:
        """The route of a request, which then knows its path's parameters; None where it is not theirs."""
        for route, protocol in self._routes:
            match, child = route.matches(scope)
            if match is Match.FULL:
                scope.update(child)
                return route, protocol
        return None


class Dispatch:
    """ASGI middleware, the innermost. Hands on what is no protocol's."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = scope["state"]["protocols"].find(scope) if scope["type"] == "http" else None
        if found is None:
            await self.app(scope, receive, send)
            return
        route, protocol = found
        scope["state"] |= {"route": route.path, "error": protocol.error}
        await route.handle(scope, receive, send)
