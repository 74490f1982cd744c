"""The listening socket: open before the app has started, and closed without losing a connection."""

from __future__ import annotations

import ctypes
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress

from spectacles.core.errors import UserError

SO_ATTACH_FILTER = 26
"""asm-generic/socket.h; Python does not name it."""
LOAD_BYTE, JUMP_IF_SET, RETURN = 0x30, 0x45, 0x06
"""linux/bpf_common.h: BPF_LD | BPF_B | BPF_ABS, BPF_JMP | BPF_JSET | BPF_K, BPF_RET | BPF_K."""
FLAGS, SYN = 13, 0x02
"""Offset of the flags in a TCP header (RFC 9293), and the flag of a packet that asks for a connection."""
DROP_SYN = ((LOAD_BYTE, 0, 0, FLAGS), (JUMP_IF_SET, 0, 1, SYN), (RETURN, 0, 0, 0), (RETURN, 0, 0, 0xFFFFFFFF))


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


def drop_new_connections(listener: socket.socket) -> None:
    """From now on the system drops requests for new connections and keeps those that it has accepted: closing the
    listener instead would cut off the ones that nobody has taken yet. Does nothing on other systems than Linux."""
    if sys.platform != "linux":
        return
    program = b"".join(struct.pack("HBBI", *step) for step in DROP_SYN)
    buffer = ctypes.create_string_buffer(program, len(program))  # alive until the system has copied it
    with suppress(OSError):  # a kernel built without it
        listener.setsockopt(
            socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", len(DROP_SYN), ctypes.addressof(buffer))
        )


def pending_connections(listener: socket.socket) -> Iterator[socket.socket]:
    """Takes the connections that the system has accepted and nobody has taken. `listener` must be non-blocking."""
    with suppress(BlockingIOError):
        while True:
            yield listener.accept()[0]
