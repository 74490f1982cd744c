"""A real server process on loopback, queried with curl."""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from time import sleep
from types import SimpleNamespace
from typing import Any

import pytest
from command_line import ROOT, run_script
from PIL import Image

from benchmarks import proxy
from benchmarks.attacks import ATTACKS
from benchmarks.proxy import free_port
from spectacles.models.bundle import load_bundle, save_bundle
from spectacles.server import auth
from spectacles.server.service import LOADING

START_SECONDS = 600

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


@pytest.fixture(scope="module")
def bundle_dir(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle("no", "yes", threshold=0.5)


@dataclass(frozen=True)
class Started:
    process: "subprocess.Popen[str]"
    address: str
    log: Path

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def events(self) -> list[str]:
        return [json.loads(line)["event"] for line in self.log.read_text(encoding="utf-8").splitlines()]


@contextmanager
def running(command: list[str], log: Path, **environment: str) -> Iterator[Started]:
    """A server on a free port, once it has loaded its model or says why it cannot."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SPECTACLES_")}
    port = free_port()
    with log.open("wb") as stdout, subprocess.Popen(
        [sys.executable, *command, "--port", str(port)], cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE, text=True,
        env={**clean, "SPECTACLES_DEVICE": "cpu", "SPECTACLES_DRAIN": "0.2", **environment},
    ) as process:  # fmt: skip
        deadline = Timer(START_SECONDS, process.kill)  # ends the loops when the server hangs
        deadline.start()
        try:
            address = f"http://127.0.0.1:{port}"
            while not listens(port) or curl(f"{address}/health/ready")[1].get("detail") == LOADING:
                assert process.poll() is None, process.communicate()[1]
                sleep(0.05)
            yield Started(process, address, log)
        finally:
            process.terminate()
            process.communicate()
            deadline.cancel()


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def misuse(port: int, key: str = "") -> None:
    """What one client can do without a key: 300 requests at once whose answers it does not wait for, and 200 that it
    leaves half-way or as soon as they are sent."""
    empty = f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n{key}\r\n".encode()
    photo = f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 90000\r\n{key}\r\n".encode()
    for request in (empty * 300, *[photo, photo + bytes(90000)] * 100):
        with socket.create_connection(("127.0.0.1", port)) as client, suppress(ConnectionError):
            client.sendall(request)


def curl(*args: str) -> tuple[int, Any]:
    """(status, JSON answer)."""
    command = ["curl", "--silent", "--show-error", "--max-time", "60", "--write-out", "\n%{http_code}", *args]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    body, _, status = result.stdout.rpartition("\n")
    return int(status), json.loads(body)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.jpg"
    Image.radial_gradient("L").convert("RGB").save(path)
    return path


def test_uvicorn_serves_reloads_and_ends(bundle_dir: Path, photo: Path, tmp_path: Path) -> None:
    own, large = tmp_path / "bundle", tmp_path / "large.jpg"
    shutil.copytree(bundle_dir, own)
    large.write_bytes(photo.read_bytes() + bytes(33 * 2**20))
    command = ["-m", "uvicorn", "api:app", "--no-access-log"]
    with running(command, tmp_path / "log", SPECTACLES_BUNDLE=str(own)) as server:
        address = server.address
        assert curl(f"{address}/health/ready") == (200, {"status": "ready"})
        status, answer = curl("-F", f"file=@{photo}", "-H", "X-Request-ID: e2e-1", f"{address}/predict")
        assert (status, answer["request_id"]) == (200, "e2e-1")
        assert sum(answer["probabilities"].values()) == pytest.approx(1)
        status, several = curl("-F", f"file=@{photo}", "-F", f"file=@{__file__}", f"{address}/predict")
        assert status == 200
        assert several["predictions"][0]["label"] == answer["label"]
        assert several["predictions"][1]["status"] == 415
        for header in ("Expect: 100-continue", "Expect:", "Transfer-Encoding: chunked"):
            status, rejection = curl("-F", f"file=@{large}", "-H", header, f"{address}/predict")
            assert (status, "32 MiB" in rejection["detail"]) == (413, True)
        assert curl(f"{address}/health/live") == (200, {"status": "live"})
        assert server.events() == ["ready", *["inference"] * 3, *["rejected"] * 3]
        target, size = (
            SimpleNamespace(entrance=server.port, memory=lambda: 0.0),
            Namespace(pipelined=2, abandoned=500, slow=20),
        )
        for name, good in {"pipelined": 2, "abandoned": 1, "slow": 20}.items():
            row = asyncio.run(ATTACKS[name](target, photo.read_bytes(), size)).as_dict()  # type: ignore[arg-type]
            assert (row["answered"], row["rejected"], row["failed"], row["lost"]) == (good, 0, 0, 0), row

        bundle = load_bundle(bundle_dir)
        after = save_bundle(own, bundle.info, {name: value * 0.5 for name, value in bundle.tensors().items()})
        server.process.send_signal(signal.SIGHUP)
        while curl(f"{address}/model")[1]["model_id"] != after:
            assert server.process.poll() is None
        server.process.send_signal(signal.SIGTERM)
        while curl(f"{address}/health/ready")[0] != 503:
            assert server.process.poll() is None
        assert curl("-F", f"file=@{photo}", f"{address}/predict")[0] == 200
        assert server.process.wait(START_SECONDS) == -signal.SIGTERM, "uvicorn ends as the signal asks"
    assert [event for event in server.events() if event in ("swapped", "draining")] == ["swapped", "draining"]


def test_granian_serves_predictions(bundle_dir: Path, photo: Path, tmp_path: Path) -> None:
    pytest.importorskip("granian")
    command = ["-m", "granian", "--interface", "asgi", "--no-ws", "api:app"]
    with running(command, tmp_path / "log", SPECTACLES_BUNDLE=str(bundle_dir)) as server:
        assert curl(f"{server.address}/health/ready") == (200, {"status": "ready"})
        misuse(server.port)
        status, answer = curl("-F", f"file=@{photo}", f"{server.address}/predict")
        assert status == 200 and sum(answer["probabilities"].values()) == pytest.approx(1)
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(START_SECONDS)
    assert "draining" in server.log.read_text(encoding="utf-8")


PREFIXED = {"location / {\n            proxy_pass http://spectacles;":
            "location /photos/ {\n            proxy_pass http://spectacles/;"}  # fmt: skip


@pytest.mark.skipif(not proxy.installed(), reason="nginx is not installed")
def test_behind_nginx_with_a_prefix(bundle_dir: Path, photo: Path, tmp_path: Path) -> None:
    certificate, large = tmp_path / "certificate.pem", tmp_path / "large.jpg"
    large.write_bytes(bytes(33 * 2**20))
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj",
            "/CN=localhost", "-keyout", str(certificate), "-out", str(tmp_path / "public.pem")]  # fmt: skip
    subprocess.run(make, check=True, capture_output=True)
    certificate.write_text(certificate.read_text() + (tmp_path / "public.pem").read_text())
    environment = {"SPECTACLES_BUNDLE": str(bundle_dir), "SPECTACLES_RATE": "0.01"}
    command = ["-m", "uvicorn", "api:app", "--root-path", "/photos"]
    with (
        running(command, tmp_path / "log", **environment) as server,
        proxy.running(server.port, tmp_path / "nginx", certificate, PREFIXED) as port,
    ):
        address = f"https://127.0.0.1:{port}/photos"
        assert curl("-k", f"{address}/health/ready") == (200, {"status": "ready"})
        send = ("-k", f"{address}/predict", "-F")
        assert curl(*send, f"file=@{photo}")[0] == 200
        assert curl(*send, f"file=@{photo}", "-H", "X-Forwarded-For: 9.9.9.9")[0] == 429, "the same client"
        assert curl(*send, f"file=@{large}")[0] == 413
        server.process.terminate()
        server.process.wait()
        status, answer = curl("-k", f"{address}/health/ready")
        assert status == 503 and "does not answer now" in answer["detail"]


SLOW_APP = """
import sys, time
from pathlib import Path
from spectacles.server.serve import serve
from spectacles.server.sockets import listen

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        while not Path(sys.argv[1]).exists():
            time.sleep(0.01)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})

serve(app, listen("127.0.0.1", 0, 10))
"""


def test_the_printed_address_takes_connections_while_the_app_starts(tmp_path: Path) -> None:
    go = tmp_path / "go"
    command = [sys.executable, "-c", SLOW_APP, str(go)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            port = next(int(said[1]) for line in process.stderr if (said := re.search(r"127\.0\.0\.1:(\d+)", line)))
            with socket.create_connection(("127.0.0.1", port), timeout=START_SECONDS) as client:
                client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                go.touch()
                assert client.recv(100).startswith(b"HTTP/1.1 204")
        finally:
            process.kill()


def test_other_machines_need_keys(bundle_dir: Path) -> None:
    done = run_script("api.py", "--bundle", bundle_dir, "--host", "0.0.0.0", "--port", "0")
    assert done.returncode == 2
    assert "--host 0.0.0.0 lets other machines in" in done.stderr and "Traceback" not in done.stderr


def test_the_script_makes_a_key_and_starts_a_server_that_accepts_it(
    bundle_dir: Path, photo: Path, tmp_path: Path
) -> None:
    made = run_script("api.py", "--make_key", "alice")
    key, entry = (line.split()[-1] for line in made.stdout.splitlines())
    assert entry == f"alice:{auth.digest(key)}"
    with running(["api.py", "--bundle", str(bundle_dir)], tmp_path / "log", SPECTACLES_API_KEYS=entry) as server:
        assert curl(f"{server.address}/model")[0] == 401
        with_key = ("-H", f"Authorization: Bearer {key}")
        status, card = curl(*with_key, f"{server.address}/model")
        for header in ("", f"Authorization: Bearer {key}\r\n"):
            misuse(server.port, header)
            assert curl(*with_key, "-F", f"file=@{photo}", f"{server.address}/predict")[0] == 200
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(START_SECONDS)
    assert (status, card["classes"]) == (200, ["no", "yes"])
    assert server.events()[-1] == "draining"
    assert key not in server.log.read_text(encoding="utf-8")
