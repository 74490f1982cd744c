"""uvicorn for `python api.py`, by its documented options."""

from __future__ import annotations

import logging
import socket
from typing import Any

import uvicorn

from spectacles.server.sockets import url

log = logging.getLogger("uvicorn.error")
"""Where uvicorn itself says what the server does, on stderr."""

BACKLOG = 4096
"""Connections that the system has accepted and the server has not."""
MAX_CONNECTIONS = 4096
"""Requests on further ones get uvicorn's 503: each may hold a file descriptor and a little memory."""
KEEP_ALIVE_SECONDS = 30
"""Longer than deploy/nginx.conf keeps a connection to the server, so that it never sends on one that is closing."""
GRACE_SECONDS = 11
"""For accepted requests when the server ends; with the second before it, under 15 s."""


def serve(app: Any, listener: socket.socket, root_path: str = "") -> None:
    """Runs until a signal."""
    config = uvicorn.Config(
        app,
        http="httptools",
        access_log=False,
        root_path=root_path,
        backlog=BACKLOG,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    log.info("Uvicorn running on %s (Press CTRL+C to quit)", url(*listener.getsockname()[:2]))
    uvicorn.Server(config).run([listener])
