"""The listening socket: open before its address is known."""

import socket

import pytest
import uvicorn

from spectacles.core.errors import UserError
from spectacles.server import serve, sockets


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as opened:
        opened.setblocking(False)
        yield opened


def test_clients_can_connect_when_the_address_is_logged(monkeypatch):
    monkeypatch.setattr(uvicorn.Server, "run", lambda *_: None)

    def connect(message: str, address: str) -> None:
        port = int(address.rpartition(":")[2])
        socket.create_connection(("127.0.0.1", port), timeout=20).close()
        connected.append(port)

    connected: list[int] = []
    monkeypatch.setattr(serve.log, "info", connect)
    with sockets.listen("127.0.0.1", 0, 5) as opened:
        serve.serve(None, opened)
        assert connected == [opened.getsockname()[1]]


def test_a_port_that_is_taken_is_named(listener):
    port = listener.getsockname()[1]
    with pytest.raises(UserError, match=f"cannot listen on http://127.0.0.1:{port} .* choose another --host or --port"):
        sockets.listen("127.0.0.1", port, 5)


def test_addresses_of_ipv6_stand_in_brackets():
    assert sockets.url("::1", 80) == "http://[::1]:80"
