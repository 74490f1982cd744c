"""The socket that the server listens on: open before the app is ready, and closed without losing who stands in line."""

from __future__ import annotations

import ctypes
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress

import uvicorn

SO_ATTACH_FILTER = 26
"""asm-generic/socket.h; Python does not name it."""
LOAD_BYTE, JUMP_IF_SET, RETURN = 0x30, 0x45, 0x06
"""Of linux/bpf_common.h: BPF_LD | BPF_B | BPF_ABS, BPF_JMP | BPF_JSET | BPF_K, BPF_RET | BPF_K."""
FLAGS, SYN = 13, 0x02
"""Where in a TCP header the flags stand (RFC 9293), and the one of a packet that asks for a connection."""
NO_NEWCOMERS = ((LOAD_BYTE, 0, 0, FLAGS), (JUMP_IF_SET, 0, 1, SYN), (RETURN, 0, 0, 0), (RETURN, 0, 0, 0xFFFFFFFF))


def listen(config: uvicorn.Config) -> socket.socket:
    """Says the address, and from then on clients wait while the app starts; uvicorn would have them refused."""
    listener = config.bind_socket()
    listener.listen(config.backlog)
    return listener


def let_nobody_in(listener: socket.socket) -> None:
    """From now on the system drops whoever asks for a connection. Who got one stays: closing the listener instead would
    cut off those that nobody has looked at yet. A no-op on other systems than Linux."""
    if sys.platform != "linux":
        return
    program = b"".join(struct.pack("HBBI", *step) for step in NO_NEWCOMERS)
    kept = ctypes.create_string_buffer(program, len(program))  # until the system has copied it
    with suppress(OSError):  # a kernel that was built without it
        listener.setsockopt(
            socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", len(NO_NEWCOMERS), ctypes.addressof(kept))
        )


def waiting(listener: socket.socket) -> Iterator[socket.socket]:
    """Connections that the system has taken and nobody has looked at. `listener` does not block."""
    with suppress(BlockingIOError):
        while True:
            yield listener.accept()[0]
