"""The listening socket, open before the app has started."""

import socket

from spectacles.core.errors import UserError


def listen(host: str, port: int, backlog: int) -> socket.socket:
    """Clients may connect from now on, and wait while the app starts; uvicorn would let them be refused. Port 0 takes a
    free one. Raises UserError where nothing can listen."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=backlog)
    except OSError as error:
        raise UserError(
            f"The server cannot listen on {url(host, port)} ({error}): choose another --host or --port."
        ) from None


def url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
