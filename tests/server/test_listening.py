"""The end of a listener: whoever got a connection keeps it, nobody else gets one."""

import socket
import sys

import pytest

from spectacles.server import serve


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as opened:
        opened.setblocking(False)
        yield opened


@pytest.mark.skipif(sys.platform != "linux", reason="a filter of Linux")
def test_who_is_in_the_queue_stays_and_nobody_comes_after(listener):
    early = [socket.create_connection(listener.getsockname()) for _ in range(3)]
    early[0].sendall(b"before")
    serve.let_nobody_in(listener)
    early[1].sendall(b"after")
    with pytest.raises(TimeoutError):
        socket.create_connection(listener.getsockname(), timeout=0.2)
    taken = list(serve.waiting(listener))
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


def test_nobody_waits_where_nobody_came(listener):
    assert list(serve.waiting(listener)) == []
