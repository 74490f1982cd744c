"""Who may ask the server, by which name, and how often."""

import hashlib
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spectacles.core.errors import UserError
from spectacles.server import auth, settings
from spectacles.server.auth import RateLimit, Rejected

KEYS = {auth.digest("secret"): "alice", auth.digest("other"): "bob"}


def scope(server: str = "127.0.0.1", client: str = "10.0.0.7", **headers: str) -> dict[str, object]:
    encoded = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "server": (server, 8000), "client": (client, 5), "headers": encoded}


def rejection(call: object, *arguments: object) -> Rejected:
    with pytest.raises(Rejected) as caught:
        call(*arguments)  # type: ignore[operator]
    return caught.value


def test_a_key_is_random_and_known_by_its_hash() -> None:
    key, digest = auth.make_key()
    assert digest == hashlib.sha256(key.encode()).hexdigest()
    assert len(key) >= 40 and auth.make_key()[0] != key


@pytest.mark.parametrize("headers", [{"authorization": "Bearer secret"}, {"authorization": "bearer  secret"},
                                     {"x_api_key": "secret"}])  # fmt: skip
def test_a_key_opens_the_door_from_anywhere(headers: Mapping[str, str]) -> None:
    assert auth.identify(scope("192.0.2.1", **headers), KEYS) == "key:alice"


@pytest.mark.parametrize(
    "headers", [{}, {"authorization": "Bearer wrong"}, {"authorization": "Basic secret"},
                {"authorization": f"Bearer {auth.digest('secret')}"}, {"x_api_key": ""}],
)  # fmt: skip
def test_without_the_right_key_it_stays_shut(headers: Mapping[str, str]) -> None:
    rejected = rejection(auth.identify, scope(**headers), KEYS)
    assert rejected.status_code == 401 and rejected.headers == {"WWW-Authenticate": "Bearer"}


@pytest.mark.parametrize("here", ["127.0.0.1", "127.8.9.1", "::1"])
def test_without_keys_this_machine_is_answered(here: str) -> None:
    assert auth.identify(scope(here) | {"client": (here, 5)}, {}) == here


@pytest.mark.parametrize("other", ["192.168.0.5", "0.0.0.0", "2001:db8::1", "example.org"])
def test_without_keys_no_other_address_is_answered(other: str) -> None:
    assert rejection(auth.identify, scope(other) | {"client": ("127.0.0.1", 5)}, {}).status_code == 403
    behind_a_proxy = scope("127.0.0.1") | {"client": (other, 0)}
    assert rejection(auth.identify, behind_a_proxy, {}).status_code == 403


@pytest.mark.parametrize(
    ("host", "allowed"),
    [("localhost", True), ("LOCALHOST:8000", True), ("127.0.0.1:8000", True), ("[::1]:8000", True), ("[::1]", True),
     ("evil.example", False), ("localhost.evil.example:80", False), ("127.0.0.1.evil.example", False), ("", False)],
)  # fmt: skip
def test_only_its_own_names_are_answered(host: str, allowed: bool) -> None:
    if allowed:
        auth.check_host(scope(host=host), settings.LOOPBACK)
    else:
        assert rejection(auth.check_host, scope(host=host), settings.LOOPBACK).status_code == 400
    auth.check_host(scope(host=host), ("*",))


def test_a_rate_is_kept_and_the_burst_too() -> None:
    limit = RateLimit(10)
    for _ in range(20):
        limit.take("a", now=0.0)
    rejected = rejection(limit.take, "a", 1, 0.0)
    assert rejected.status_code == 429 and rejected.headers == {"Retry-After": "1"}
    limit.take("b", now=0.0)
    limit.take("a", now=0.1)
    rejection(limit.take, "a", 1, 0.1)


@given(st.lists(st.tuples(st.floats(0, 2), st.integers(1, 16)), max_size=60), st.floats(0.5, 50))
def test_over_time_nobody_gets_more_than_the_rate(steps: list[tuple[float, int]], rate: float) -> None:
    limit, now, taken = RateLimit(rate), 0.0, 0
    for pause, images in steps:
        now += pause
        try:
            limit.take("a", images, now)
        except Rejected:
            continue
        taken += images
    assert taken <= max(1.0, rate * auth.BURST_SECONDS) + rate * now + 16


def test_clients_are_forgotten_before_they_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "MAX_CLIENTS", 3)
    limit = RateLimit(1)
    for client in "abcdef":
        limit.take(client, now=0.0)
    assert list(limit._buckets) == ["d", "e", "f"]


def test_no_rate_limits_nothing() -> None:
    limit = RateLimit(0)
    for _ in range(1000):
        limit.take("a", 16, 0.0)


def test_settings_come_from_the_environment() -> None:
    digest = auth.digest("secret")
    given = settings.read({
        "SPECTACLES_QUEUE": "7", "SPECTACLES_DEADLINE": "2.5", "SPECTACLES_API_KEYS": f"alice:{digest}",
        "SPECTACLES_ALLOWED_HOSTS": "a.example, b.example", "SPECTACLES_ALLOW_URLS": "1", "SPECTACLES_DRAIN": "0",
        "SPECTACLES_CORS_ORIGINS": "https://app.example", "SPECTACLES_RATE": "", "HOME": "/",
    })  # fmt: skip
    assert (given.queue, given.deadline, given.drain, given.rate) == (7, 2.5, 0.0, 0.0)
    assert given.api_keys == {digest: "alice"} and given.allow_urls
    assert given.allowed_hosts == ("a.example", "b.example") and given.cors_origins == ("https://app.example",)
    assert settings.read({}) == settings.Settings()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("QUEUE", "0", "whole number of at least 1"), ("QUEUE", "many", "whole number"),
     ("DEADLINE", "1e3", "use a number"), ("DEADLINE", "0", "at least 0.1"), ("ENGINE", "tensorrt", "use auto, torch"),
     ("ALLOW_URLS", "yes", "1 for on"),
     ("API_KEYS", "alice:secret", "name:sha256"), ("API_KEYS", "secret", "--make_key"), ("API_KEYS", ",", "no key"),
     ("CORS_ORIGINS", "*", "not an origin"), ("CORS_ORIGINS", "https://a.example/path", "not an origin")],
)  # fmt: skip
def test_a_mistake_in_the_environment_is_named(name: str, value: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        settings.read({f"SPECTACLES_{name}": value})
    assert f"SPECTACLES_{name}=" in str(caught.value) and said in str(caught.value)
