"""A real server process on loopback, queried with curl."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
from command_line import ROOT, run_script
from PIL import Image

from spectacles.models.bundle import load_bundle, save_bundle
from spectacles.server import auth
from spectacles.server.service import LOADING

START_SECONDS = 600

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


@pytest.fixture(scope="module")
def bundle_dir(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle("no", "yes", threshold=0.5)


@contextmanager
def running(command: list[str], log: Path, **environment: str) -> Iterator[str]:
    """The server's address, read from its own log once it listens. Port 0 lets the system pick a free one."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SPECTACLES_")}
    with log.open("wb") as stdout, subprocess.Popen(
        [sys.executable, *command, "--port", "0"], cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE, text=True,
        env={**clean, "SPECTACLES_DEVICE": "cpu", **environment},
    ) as process:  # fmt: skip
        deadline = Timer(START_SECONDS, process.kill)  # ends the loop below when the server hangs
        deadline.start()
        try:
            assert process.stderr is not None
            lines = []
            for line in process.stderr:
                lines.append(line)
                if found := re.search(r"running on (http://127\.0\.0\.1:\d+)", line):
                    break
            else:
                pytest.fail("the server did not start:\n" + "".join(lines))
            while curl(f"{found[1]}/health/ready")[1].get("detail") == LOADING:
                assert process.poll() is None
            deadline.cancel()
            yield found[1]
        finally:
            deadline.cancel()
            process.terminate()
            process.communicate(timeout=START_SECONDS)


def curl(*args: str) -> tuple[int, Any]:
    """(status, JSON answer)."""
    command = ["curl", "--silent", "--show-error", "--max-time", "60", "--write-out", "\n%{http_code}", *args]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    body, _, status = result.stdout.rpartition("\n")
    return int(status), json.loads(body)


def test_uvicorn_serves_predictions(bundle_dir: Path, tmp_path: Path) -> None:
    photo, log, large = tmp_path / "photo.jpg", tmp_path / "log", tmp_path / "large.jpg"
    Image.radial_gradient("L").convert("RGB").save(photo)
    large.write_bytes(photo.read_bytes() + bytes(33 * 2**20))
    command = ["-m", "uvicorn", "api:app", "--no-access-log"]
    with running(command, log, SPECTACLES_BUNDLE=str(bundle_dir)) as address:
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
    events = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert [event["event"] for event in events] == ["ready", *["inference"] * 3, *["rejected"] * 3]
    assert events[1]["request_id"] == "e2e-1"


SLOW_APP = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
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

app.state = SimpleNamespace(drain=lambda: None, reload=lambda: None)
serve(app, listen("127.0.0.1", 0, 10), 0)
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


def test_the_script_makes_a_key_and_starts_a_server_that_accepts_it(bundle_dir: Path, tmp_path: Path) -> None:
    made = run_script("api.py", "--make_key", "alice")
    key, entry = (line.split()[-1] for line in made.stdout.splitlines())
    assert entry == f"alice:{auth.digest(key)}"
    with running(["api.py", "--bundle", str(bundle_dir)], tmp_path / "log", SPECTACLES_API_KEYS=entry) as address:
        assert curl(f"{address}/model")[0] == 401
        with_key = ("-H", f"Authorization: Bearer {key}")
        while curl(*with_key, f"{address}/health/ready")[0] != 200:
            pass
        status, card = curl(*with_key, f"{address}/model")
    assert (status, card["classes"]) == (200, ["no", "yes"])
    assert key not in (tmp_path / "log").read_text(encoding="utf-8")


def test_sighup_loads_another_model_and_sigterm_ends_the_server(bundle_dir: Path, tmp_path: Path) -> None:
    own, log = tmp_path / "bundle", tmp_path / "log"
    shutil.copytree(bundle_dir, own)
    command = [sys.executable, "api.py", "--bundle", str(own), "--port", "0"]
    environment = {**os.environ, "SPECTACLES_DEVICE": "cpu", "SPECTACLES_DRAIN": "0.2"}
    with log.open("wb") as stdout, subprocess.Popen(
        command, cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:  # fmt: skip
        deadline = Timer(START_SECONDS, process.kill)
        deadline.start()
        assert process.stderr is not None
        address = next(found[1] for line in process.stderr if (found := re.search(r"running on (http://\S+)", line)))
        while curl(f"{address}/health/ready")[0] != 200:
            assert process.poll() is None
        before = curl(f"{address}/model")[1]["model_id"]
        info, state, _ = load_bundle(bundle_dir)
        after = save_bundle(own, info, {name: value * 0.5 for name, value in state.items()})
        process.send_signal(signal.SIGHUP)
        while (now := curl(f"{address}/model")[1]["model_id"]) == before:
            assert process.poll() is None
        assert now == after
        process.send_signal(signal.SIGTERM)
        process.wait(START_SECONDS)
        deadline.cancel()
        process.stderr.read()
    events = [json.loads(line)["event"] for line in log.read_text(encoding="utf-8").splitlines()]
    assert events == ["ready", "swapped", "draining"]
