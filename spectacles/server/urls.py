"""Fetches photos by URL for untrusted clients: from public addresses only, dialling the address that was checked."""

from __future__ import annotations

import asyncio
import http.client
import io
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

from spectacles.server.auth import Rejected
from spectacles.server.limits import MAX_BODY_BYTES

REDIRECTS = 3
SECONDS = 10.0
"""In total: name, connection, headers, body and redirects."""
CHUNK = 1 << 16
PORTS = {"http": 80, "https": 443}
Resolve = Callable[[str, int], Iterable[str]]
"""(host, port) -> addresses."""


def resolve(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


async def fetch_within(pool: Executor, url: str) -> bytes:
    """`fetch` in a thread of the pool. The time counts from now, and also while it waits for a thread or for a
    resolver, which nothing can interrupt. Raises Rejected."""
    ends = time.monotonic() + SECONDS
    try:
        async with asyncio.timeout(SECONDS):
            return await asyncio.get_running_loop().run_in_executor(pool, fetch, url, ends)
    except TimeoutError:
        raise _too_slow() from None


def fetch(url: str, ends: float, resolver: Resolve = resolve, public: Callable[[str], bool] | None = None) -> bytes:
    """The content at `url`, at most MAX_BODY_BYTES, before the time `ends`. Raises Rejected.

    A name is resolved once, and the address that was checked is the one connected to, so that a resolver cannot change
    its answer (DNS rebinding); TLS still checks the name. Each redirect is treated like the first URL.
    """
    for _ in range(REDIRECTS + 1):
        parts = _check(url)
        port = parts.port or PORTS[parts.scheme]
        address = _public_address(str(parts.hostname), port, resolver, public or is_public)
        status, location, content = _get(parts, address, port, ends)
        if status in (301, 302, 303, 307, 308) and location:
            url = urljoin(url, location)
        elif status == 200:
            return content
        else:
            raise _rejected(f"the server there answers {status}")
    raise _rejected(f"there are more than {REDIRECTS} redirects")


def is_public(address: str) -> bool:
    """False for this machine and its network, in any notation; IPv4 embedded in IPv6 is judged as IPv4."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None) or _nat64(ip)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def _nat64(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """RFC 6052."""
    inside = ip in ipaddress.ip_network("64:ff9b::/96")
    return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if inside else None


def _check(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _rejected("it cannot be read") from None
    if parts.scheme not in PORTS or not parts.hostname:
        raise _rejected("it is not an http or https address")
    if parts.username is not None or parts.password is not None:
        raise _rejected("it holds a user name or a password")
    if port is not None and port not in PORTS.values():
        raise _rejected("only ports 80 and 443 are allowed")
    return parts


def _public_address(host: str, port: int, resolver: Resolve, public: Callable[[str], bool]) -> str:
    try:
        addresses = list(resolver(host, port))
    except (OSError, UnicodeError):
        raise _rejected("its name is unknown") from None
    # One private address among public ones is an attack or a mistake; neither is worth a try.
    if not addresses or not all(public(address) for address in addresses):
        raise _rejected("it is not on the public network")
    return addresses[0]


def _get(parts: SplitResult, address: str, port: int, ends: float) -> tuple[int, str, bytes]:
    """(status, location, content of a 200)."""
    connection = _PinnedConnection(str(parts.hostname), address, port, parts.scheme == "https", ends)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        connection.request("GET", target, headers={"Accept": "image/*", "User-Agent": "spectacles"})
        with connection.getresponse() as response:
            content = _read(response) if response.status == 200 else b""
            return response.status, response.headers.get("location", ""), content
    except TimeoutError:
        raise _too_slow() from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _rejected(f"it cannot be fetched ({type(error).__name__})") from None
    finally:
        connection.close()


class _PinnedConnection(http.client.HTTPConnection):
    """A connection to an address that sends, and checks the certificate of, the host's name."""

    def __init__(self, host: str, address: str, port: int, secure: bool, ends: float) -> None:
        super().__init__(host, port)
        self.address = address
        self.secure = secure
        self.ends = ends
        self.default_port = PORTS["https" if secure else "http"]

    def connect(self) -> None:
        opened = socket.create_connection((self.address, self.port), _left(self.ends))
        if self.secure:
            opened.settimeout(_left(self.ends))
            opened = ssl.create_default_context().wrap_socket(opened, server_hostname=self.host)
        self.sock: Any = _TimedSocket(opened, self.ends)


class _TimedSocket:
    """What http.client needs of a socket. All waits end at one time: a socket's own timeout starts anew with every byte
    that it receives."""

    def __init__(self, opened: socket.socket, ends: float) -> None:
        self.opened, self.ends = opened, ends
        self.close = opened.close

    def sendall(self, data: bytes) -> None:
        self.opened.settimeout(_left(self.ends))
        self.opened.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_TimedReader(self.opened, self.ends))


class _TimedReader(io.RawIOBase):
    def __init__(self, opened: socket.socket, ends: float) -> None:
        self.opened, self.ends = opened, ends
        self.raw = opened.makefile("rb", buffering=0)  # keeps the socket open when the connection has closed it

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self.opened.settimeout(_left(self.ends))
        return self.raw.readinto(buffer)

    def close(self) -> None:
        self.raw.close()
        super().close()


def _read(response: http.client.HTTPResponse) -> bytes:
    content = b""
    while True:
        chunk = response.read1(CHUNK)
        if not chunk:
            return content
        content += chunk
        if len(content) > MAX_BODY_BYTES:
            raise _rejected(f"it is larger than {MAX_BODY_BYTES >> 20} MiB")


def _left(ends: float) -> float:
    left = ends - time.monotonic()
    if left <= 0:
        raise _too_slow()
    return left


def _too_slow() -> Rejected:
    return _rejected(f"it takes longer than {SECONDS:.0f} s")


def _rejected(reason: str) -> Rejected:
    """The detail holds nothing that the client could not know: the server must not become a probe of its network."""
    return Rejected(422, "url", f"The address is rejected: {reason}.")
