"""The end of a listener: accepted connections are kept, new ones are dropped."""

import socket
import sys

import pytest

from spectacles.server import sockets


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as opened:
        opened.setblocking(False)
        yield opened


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
