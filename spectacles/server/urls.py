"""Fetches photos by URL for untrusted clients: from public addresses only, dialling the address that was checked."""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Iterable
from urllib.parse import SplitResult, urljoin, urlsplit

from spectacles.server.auth import Rejected
from spectacles.server.limits import MAX_BODY_BYTES

REDIRECTS = 3
SECONDS = 10.0
"""In total, redirects included."""
CHUNK = 1 << 16
PORTS = {"http": 80, "https": 443}
Resolve = Callable[[str, int], Iterable[str]]
"""(host, port) -> addresses."""


def resolve(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def fetch(url: str, resolver: Resolve = resolve, public: Callable[[str], bool] | None = None) -> bytes:
    """The content at `url`, at most MAX_BODY_BYTES. Raises Rejected.

    A name is resolved once, and the address that was checked is the one connected to, so that a resolver cannot change
    its answer (DNS rebinding); TLS still checks the name. Each redirect is treated like the first URL.
    """
    ends = time.monotonic() + SECONDS
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
    connection = _PinnedConnection(str(parts.hostname), address, port, parts.scheme == "https", _left(ends))
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        connection.request("GET", target, headers={"Accept": "image/*", "User-Agent": "spectacles"})
        with connection.getresponse() as response:
            content = _read(response, connection.opened, ends) if response.status == 200 else b""
            return response.status, response.headers.get("location", ""), content
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _rejected(f"it cannot be fetched ({type(error).__name__})") from None
    finally:
        connection.close()


class _PinnedConnection(http.client.HTTPConnection):
    """A connection to an address that sends, and checks the certificate of, the host's name."""

    def __init__(self, host: str, address: str, port: int, secure: bool, seconds: float) -> None:
        super().__init__(host, port, timeout=seconds)
        self.address = address
        self.secure = secure
        self.default_port = PORTS["https" if secure else "http"]

    def connect(self) -> None:
        self.sock = socket.create_connection((self.address, self.port), self.timeout)
        if self.secure:
            self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self.host)
        self.opened = self.sock  # the response reads from it after the connection has dropped it


def _read(response: http.client.HTTPResponse, opened: socket.socket, ends: float) -> bytes:
    content = b""
    while True:
        opened.settimeout(_left(ends))
        chunk = response.read1(CHUNK)
        if not chunk:
            return content
        content += chunk
        if len(content) > MAX_BODY_BYTES:
            raise _rejected(f"it is larger than {MAX_BODY_BYTES >> 20} MiB")


def _left(ends: float) -> float:
    left = ends - time.monotonic()
    if left <= 0:
        raise _rejected(f"it takes longer than {SECONDS:.0f} s")
    return left


def _rejected(reason: str) -> Rejected:
    """The detail holds nothing that the client could not know: the server must not become a probe of its network."""
    return Rejected(422, "url", f"The address is rejected: {reason}.")
