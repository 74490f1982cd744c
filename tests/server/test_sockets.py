"""The listening socket: open before its address is known; in the end accepted connections are kept, others dropped."""

import socket
import sys
from types import SimpleNamespace

import pytest

from spectacles.core.errors import UserError
from spectacles.server import serve, sockets


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as opened:
        opened.setblocking(False)
        yield opened


def test_clients_can_connect_when_the_address_is_logged(monkeypatch):
    monkeypatch.setattr(serve.DrainingServer, "run", lambda *_: None)
    app = SimpleNamespace(state=SimpleNamespace(drain=lambda: None, reload=lambda: None))

    def connect(message: str, address: str) -> None:
        port = int(address.rpartition(":")[2])
        socket.create_connection(("127.0.0.1", port), timeout=20).close()
        connected.append(port)

    connected: list[int] = []
    monkeypatch.setattr(serve.log, "info", connect)
    with sockets.listen("127.0.0.1", 0, 5) as opened:
        serve.serve(app, opened, 0)
        assert connected == [opened.getsockname()[1]]


def test_a_port_that_is_taken_is_named(listener):
    port = listener.getsockname()[1]
    with pytest.raises(UserError, match=f"cannot listen on http://127.0.0.1:{port} .* choose another --host or --port"):
        sockets.listen("127.0.0.1", port, 5)


def test_addresses_of_ipv6_stand_in_brackets():
    assert sockets.url("::1", 80) == "http://[::1]:80"


@pytest.mark.skipif(sys.platform != "linux", reason="needs a socket filter of Linux")
def test_accepted_connections_are_kept_and_new_ones_dropped(listener):
    early = [socket.create_connection(listener.getsockname()) for _ in range(3)]
    early[0].sendall(b"before")
    sockets.drop_new_connections(listener)
    early[1].sendall(b"after")
    with pytest.raises(TimeoutError):
        socket.create_connection(listener.getsockname(), timeout=0.2)
    taken = list(sockets.pending_connections(listener))
    listener.close()
    early[2].sendall(b"at last")
    for connection in taken:
        connection.setblocking(True)
        connection.settimeout(20)
    assert [connection.recv(20) for connection in taken] == [b"before", b"after", b"at last"]
    for connection, client in zip(taken, early, strict=True):
        connection.sendall(b"answer")
        assert client.recv(20) == b"answer"
        connection.close()
        client.close()


def test_without_clients_no_connection_is_pending(listener):
    assert list(sockets.pending_connections(listener)) == []
