"""The serving image is built, started as its user and asked. For `make image`: needs buildah, root and a base image."""

import json
import os
import shutil
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from command_line import ROOT
from exported_bundles import exported
from pictures import encoded, noise
from tracking_servers import answers, free_port, until

from benchmarks import http_client
from spectacles.server import auth

pytestmark = pytest.mark.image

MOST_MEGABYTES = 700
IMAGE = "localhost/spectacles-serve-test"
CHROOT = ("--isolation", "chroot")
"""Runs where there is no container daemon; limits and a read-only root are not to be had so."""
KEY, DIGEST = auth.make_key()


def buildah(*words: object) -> str:
    done = subprocess.run(["buildah", *map(str, words)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout.strip()


@pytest.fixture(scope="module")
def container() -> Iterator[str]:
    """Made from the image. BUILD_FLAGS: flags of `buildah build` that a machine needs, such as --volume for the
    certificates of its package index."""
    if shutil.which("buildah") is None:
        pytest.skip("buildah is not installed: the image is not built here")
    if os.geteuid():
        pytest.skip("buildah is used as root only: the image is not built here")
    flags = os.environ.get("BUILD_FLAGS", "").split()
    buildah("build", *CHROOT, *flags, "--file", "deploy/Dockerfile", "--tag", IMAGE, ".")
    name = buildah("from", IMAGE)
    yield name
    buildah("rm", name)


def test_it_is_small_and_holds_no_torch(container: str) -> None:
    root = Path(buildah("mount", container))
    size = int(subprocess.check_output(["du", "-sm", root], text=True).split()[0])
    packages = {path.name for path in root.glob("opt/venv/lib/python3*/site-packages/*")}
    print(f"image: {size} MB")
    assert "onnxruntime" in packages and not {"torch", "timm", "mlflow", "pandas", "sklearn", "pip"} & packages
    assert size < MOST_MEGABYTES


@contextmanager
def serving(container: str, bundle: Path, log: Path) -> Iterator[tuple[str, int]]:
    """(address, process id) of the server as the image's user starts it."""
    port = free_port()
    buildah("config", "--env", f"SPECTACLES_API_KEYS=me:{DIGEST}", container)
    command = ["buildah", "run", *CHROOT, "--volume", f"{bundle}:/bundle:ro", container, "--"]
    command += ["serve-spectacles", "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        address = f"http://127.0.0.1:{port}"
        until(lambda: process.poll() is not None or "ready" in log.read_text(encoding="utf-8"), "it has started")
        assert answers(f"{address}/health/ready"), log.read_text(encoding="utf-8")
        yield address, process.pid
    finally:
        with suppress(ProcessLookupError):  # it has ended by itself
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()


@pytest.fixture
def bundle(make_bundle: Callable[..., Path], tmp_path: Path) -> Path:
    """That of the variable BUNDLE, or one of a tiny net; readable for a stranger, as the container's user is."""
    if given := os.environ.get("BUNDLE"):
        made = Path(given)
    else:
        made = make_bundle("cat", "dog", exported=exported(make_bundle("cat", "dog")))
    folder = shutil.copytree(made, tmp_path / "bundle")
    for path in (tmp_path, folder, *folder.iterdir()):
        path.chmod(path.stat().st_mode | 0o555)
    return folder


def test_it_answers_as_another_user_than_root(container: str, bundle: Path, tmp_path: Path) -> None:
    with serving(container, bundle, tmp_path / "log") as (address, session):
        body = http_client.form(encoded(noise(1), "JPEG"))
        headers = {"Content-Type": http_client.FORM, "Authorization": f"Bearer {KEY}"}
        with urllib.request.urlopen(urllib.request.Request(f"{address}/predict", body, headers), timeout=60) as reply:
            answer = json.load(reply)
        assert answer["label"] in answer["probabilities"]
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{address}/model", timeout=60)
        started = [path for path in Path("/proc").glob("[0-9]*") if belongs(path, session)]
        servers = [path for path in started if b"buildah" not in (path / "cmdline").read_bytes()]
        assert len(servers) > 2 and all(path.stat().st_uid == 10001 for path in servers)
        print(f"memory: {sum(map(proportional, servers)) / 1024:.0f} MB")


def belongs(process: Path, session: int) -> bool:
    try:
        return os.getsid(int(process.name)) == session
    except ProcessLookupError:
        return False


def proportional(process: Path) -> int:
    """kB of memory, what is shared counted in part."""
    lines = (process / "smaps_rollup").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("Pss:")).split()[1])
