"""Authorization: API keys (without any, only this machine), host names and rate limits."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import time
from collections import OrderedDict
from collections.abc import Mapping
from functools import lru_cache

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import Scope

MAX_CLIENTS = 10_000
"""Whose rates are tracked; the one inactive for longest is dropped first."""
BURST_SECONDS = 2.0
"""A client may use its rate over so many seconds at once."""


class Rejected(HTTPException):
    """`reason` is one of `telemetry.REASONS`, for metrics; `detail` is for a person."""

    def __init__(self, status: int, reason: str, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, detail, headers)
        self.reason = reason


def make_key() -> tuple[str, str]:
    """(a new key, its sha256 in hex, which is all that the server knows of it)."""
    key = secrets.token_urlsafe(32)
    return key, digest(key)


def digest(key: str) -> str:
    """Keys are long and random, so one round of a fast hash is enough."""
    return hashlib.sha256(key.encode()).hexdigest()


@lru_cache
def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def identify(scope: Scope, keys: Mapping[str, str], trust_network: bool = False) -> str:
    """The client: the name of its key's holder, else its address. Raises Rejected."""
    address = (scope.get("client") or ("", 0))[0]
    if not keys:
        server = (scope.get("server") or ("", 0))[0]
        # Behind a proxy on this machine, the server is on loopback and the client, by X-Forwarded-For, is not.
        if not trust_network and not all(is_loopback(end) for end in (server, address) if end):
            detail = "This server has no keys, so it answers its own machine only: set SPECTACLES_API_KEYS."
            raise Rejected(403, "no_keys", detail)
        return address
    given = digest(_given_key(Headers(scope=scope)))
    # Every key is compared, so that the time it takes reveals nothing.
    names = [name for known, name in keys.items() if hmac.compare_digest(known, given)]
    if not names:
        detail = "Send a key of this server as the header 'Authorization: Bearer KEY'."
        raise Rejected(401, "no_key", detail, {"WWW-Authenticate": "Bearer"})
    return f"key:{names[0]}"


def _given_key(headers: Headers) -> str:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")


def check_host(scope: Scope, allowed: tuple[str, ...]) -> None:
    """Another site's page can make its own name point to this machine (DNS rebinding); it cannot choose the Host.
    Raises Rejected."""
    if "*" in allowed:
        return
    host = Headers(scope=scope).get("host", "")
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    if name.lower() not in allowed:
        raise Rejected(400, "host", f"{name[:60]!r} is not a name of this server: SPECTACLES_ALLOWED_HOSTS lists them.")


class RateLimit:
    """One token bucket per client, one token per image, filled at `rate` per second; 0 for no limit."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.burst = max(1.0, rate * BURST_SECONDS)
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str, images: int = 1, now: float | None = None) -> None:
        """Raises Rejected (429) where the bucket is empty; a request of many images may leave it in debt."""
        if not self.rate:
            return
        now = time.monotonic() if now is None else now
        tokens, since = self._buckets.pop(client, (self.burst, now))
        tokens = min(self.burst, tokens + (now - since) * self.rate)
        allowed = tokens >= 1
        self._buckets[client] = (tokens - images if allowed else tokens, now)
        if len(self._buckets) > MAX_CLIENTS:
            self._buckets.popitem(last=False)
        if not allowed:
            wait = (1 - tokens) / self.rate
            detail = f"More than {self.rate:g} images per second: retry in {wait:.1f} s."
            raise Rejected(429, "rate", detail, {"Retry-After": str(max(1, int(wait + 0.999)))})
