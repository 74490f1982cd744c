"""An object store or a web server on loopback that holds photos, and the settings to reach it."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tracking_servers import answers, free_port, until


@dataclass(frozen=True)
class Store:
    photos: str
    """Where photos are read from."""
    out: str
    """Where predictions are written to."""
    environment: dict[str, str] = field(default_factory=dict)
    options: dict[str, object] = field(default_factory=dict)
    """The same for fsspec in the test's own process."""


@contextmanager
def web(folder: Path, photos: Path) -> Iterator[Store]:
    """A read-only web server."""
    port = free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(photos)]
    with _running(command, folder.with_suffix(".log")):
        until(lambda: answers(f"http://127.0.0.1:{port}/"), "the web server answers")
        yield Store(f"http://127.0.0.1:{port}", f"file://{folder}")


@contextmanager
def s3(folder: Path, photos: Path) -> Iterator[Store]:
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    pytest.importorskip("moto.server", reason="moto is not installed")
    port = free_port()
    url, key = f"http://127.0.0.1:{port}", {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any"}
    with _running([sys.executable, "-m", "moto.server", "-p", str(port)], folder.with_suffix(".log")):
        until(lambda: answers(f"{url}/moto-api/"), "the S3 server answers")
        import s3fs

        options = {"key": "any", "secret": "any", "endpoint_url": url}
        system = s3fs.S3FileSystem(**options)
        system.mkdir("bucket")
        for path in photos.iterdir():
            system.pipe_file(f"bucket/photos/{path.name}", path.read_bytes())
        yield Store(
            "s3://bucket/photos",
            "s3://bucket",
            {"AWS_ENDPOINT_URL": url, "AWS_DEFAULT_REGION": "us-east-1", **key},
            options,
        )


@contextmanager
def _running(command: list[str], log: Path) -> Iterator[None]:
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            yield
        finally:
            process.kill()
