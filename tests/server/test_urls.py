"""A photo by its URL: public addresses only, in every notation, after every redirect, whatever a resolver answers."""

import asyncio
import ipaddress
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spectacles.server import limits, urls
from spectacles.server.auth import Rejected

LATER = time.monotonic() + 3600
PRIVATE = ["127.0.0.1", "127.255.0.9", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
           "0.0.0.0", "255.255.255.255", "224.0.0.1", "198.18.0.1", "192.0.2.4", "240.0.0.1", "::", "::1", "fe80::1",
           "fe80::1%eth0", "fc00::1", "fd12::9", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::",
           "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2001:db8::1"]  # fmt: skip
PUBLIC = ["93.184.216.34", "8.8.8.8", "2606:2800:220:1:248:1893:25c8:1946", "::ffff:8.8.8.8", "64:ff9b::808:808"]


def test_only_public_addresses_are_public() -> None:
    assert [address for address in (*PRIVATE, *PUBLIC) if urls.is_public(address)] == PUBLIC


@given(st.ip_addresses(v=4, network="127.0.0.0/8") | st.ip_addresses(v=4, network="10.0.0.0/8"))
def test_private_addresses_stay_private_inside_others(address: ipaddress.IPv4Address) -> None:
    assert not urls.is_public(f"::ffff:{address}")
    assert not urls.is_public(str(ipaddress.IPv6Address(int(ipaddress.IPv6Address("64:ff9b::")) | int(address))))


HERE = ["http://127.0.0.1/a.jpg", "http://localhost/a.jpg", "http://2130706433/", "http://0x7f000001/",
        "http://0177.0.0.1/", "http://127.1/", "http://[::1]/", "http://[::ffff:127.0.0.1]/",
        "http://169.254.169.254/latest/meta-data/"]  # fmt: skip


def test_this_machine_and_its_network_are_rejected_in_any_notation() -> None:
    rejections = {url: rejection(url) for url in HERE}
    assert {rejected.status_code for rejected in rejections.values()} == {422}
    assert {rejected.detail for rejected in rejections.values()} <= {
        "The address is rejected: it is not on the public network.", "The address is rejected: its name is unknown."
    }  # fmt: skip


@pytest.mark.parametrize(
    ("url", "said"),
    [("ftp://example.org/a.jpg", "not an http or https"), ("file:///etc/passwd", "not an http or https"),
     ("a.jpg", "not an http"), ("http://", "not an http"),
     ("http://user:word@example.org/", "a user name or a password"), ("//example.org", "not an http"),
     ("http://example.org:22/", "only ports"), ("http://example.org:99999/", "cannot be read"),
     ("http://[::1/", "cannot be read"), ("gopher://example.org", "not an http")],
)  # fmt: skip
def test_other_addresses_are_rejected(url: str, said: str) -> None:
    assert said in rejection(url, resolver=lambda host, port: ["93.184.216.34"]).detail


def rejection(url: str, seconds: float = 20.0, **options: object) -> Rejected:
    with pytest.raises(Rejected) as caught:
        urls.fetch(url, time.monotonic() + seconds, **options)  # type: ignore[arg-type]
    return caught.value


@pytest.mark.parametrize("addresses", [[], ["10.0.0.1"], ["93.184.216.34", "127.0.0.1"]])
def test_one_private_address_is_enough_to_reject(addresses: list[str]) -> None:
    assert "not on the public network" in rejection("http://a.example/", resolver=lambda host, port: addresses).detail


@contextmanager
def serving(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], dict[str, object]]:
    """Options of `fetch` under which a port of this machine stands for port 80 of a public one."""

    def allow(port: int) -> dict[str, object]:
        monkeypatch.setitem(urls.PORTS, "http", port)
        return {"resolver": lambda host, _: ["127.0.0.1"], "public": lambda address: address == "127.0.0.1"}

    return allow


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes = b"", **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


def test_a_public_photo_is_fetched_under_its_own_name(here: Callable[[int], dict[str, object]]) -> None:
    asked = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        asked.append((handler.headers["Host"].split(":")[0], handler.path))
        send(handler, 200, b"photo")

    with serving(answer) as port:
        assert urls.fetch("http://photos.example/a.jpg?size=1", LATER, **here(port)) == b"photo"
    assert asked == [("photos.example", "/a.jpg?size=1")]


def test_a_resolver_that_changes_its_mind_is_asked_once(here: Callable[[int], dict[str, object]]) -> None:
    answers = iter([["127.0.0.1"], ["10.9.9.9"]])
    with serving(lambda handler: send(handler, 200, b"photo")) as port:
        options = here(port) | {"resolver": lambda host, _: next(answers)}
        assert urls.fetch("http://rebind.example/", LATER, **options) == b"photo"
    assert next(answers) == ["10.9.9.9"]


def test_every_redirect_is_checked(here: Callable[[int], dict[str, object]]) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        send(handler, 302, Location="http://inside.example/secret")

    with serving(answer) as port:
        options = here(port) | {"resolver": lambda host, _: ["10.0.0.1" if host == "inside.example" else "127.0.0.1"]}
        assert "not on the public network" in rejection("http://photos.example/", **options).detail


def test_redirects_end(here: Callable[[int], dict[str, object]]) -> None:
    with serving(lambda handler: send(handler, 302, Location="/again")) as port:
        assert "more than 3 redirects" in rejection("http://photos.example/", **here(port)).detail


def test_an_http_error_gives_the_reason(here: Callable[[int], dict[str, object]]) -> None:
    with serving(lambda handler: send(handler, 404)) as port:
        assert "answers 404" in rejection("http://photos.example/", **here(port)).detail


def test_size_is_capped_while_it_arrives(
    here: Callable[[int], dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(urls, "MAX_BODY_BYTES", 1 << 18)

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(bytes(1 << 16))
        except OSError:
            pass

    assert limits.MAX_BODY_BYTES > 1 << 18
    with serving(endless) as port:
        assert "larger than" in rejection("http://photos.example/", **here(port)).detail


def drip(part: bytes) -> Callable[[BaseHTTPRequestHandler], None]:
    """A server that sends a little again and again."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.0 200 OK\r\n")
        with suppress(OSError):
            while not ended.wait(0.02):
                handler.wfile.write(part)

    ended = threading.Event()
    return answer


@pytest.mark.parametrize("part", [b"", b"X", b"X: y\r\n", b"\r\nphoto", b"\r\n"])
def test_one_deadline_is_over_headers_and_body(here: Callable[[int], dict[str, object]], part: bytes) -> None:
    with serving(drip(part)) as port:
        assert "takes longer than 10 s" in rejection("http://photos.example/", 0.2, **here(port)).detail


def test_one_deadline_is_over_all_redirects(here: Callable[[int], dict[str, object]]) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        threading.Event().wait(0.15)
        send(handler, 302, Location="/again")

    with serving(answer) as port:
        assert "takes longer than 10 s" in rejection("http://photos.example/", 0.25, **here(port)).detail


def test_a_resolver_that_does_not_answer_keeps_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()
    monkeypatch.setattr(urls, "SECONDS", 0.1)
    monkeypatch.setattr(urls, "fetch", lambda url, ends: answered.wait(20))
    with ThreadPoolExecutor(1) as pool:
        for _waiting in ("in the thread", "for the thread"):
            with pytest.raises(Rejected, match="takes longer"):
                asyncio.run(urls.fetch_within(pool, "http://photos.example/"))
        answered.set()
