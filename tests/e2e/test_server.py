"""A real server process on loopback, spoken to with curl."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 60

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
            status, refusal = curl("-F", f"file=@{large}", "-H", header, f"{address}/predict")
            assert (status, "32 MiB" in refusal["detail"]) == (413, True)
        assert curl(f"{address}/health/live") == (200, {"status": "live"})
    events = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert [event["event"] for event in events] == ["ready", "inference", "inference", "inference"]
    assert events[1]["request_id"] == "e2e-1"


def test_the_script_starts_a_server_too(bundle_dir: Path, tmp_path: Path) -> None:
    with running(["api.py", "--bundle", str(bundle_dir)], tmp_path / "log") as address:
        status, card = curl(f"{address}/model")
    assert (status, card["classes"]) == (200, ["no", "yes"])
