"""An object store or a file server on loopback, and what a command needs to know to reach it."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tracking_servers import answers, free_port, until

FTP = """
import sys
from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import FTPHandler
from pyftpdlib.servers import ThreadedFTPServer
users = DummyAuthorizer()
users.add_user("anonymous", "", sys.argv[2], perm="elradfmw")
FTPHandler.authorizer = users
ThreadedFTPServer(("127.0.0.1", int(sys.argv[1])), FTPHandler).serve_forever()
"""


@dataclass(frozen=True)
class Store:
    address: str
    environment: dict[str, str] = field(default_factory=dict)
    options: dict[str, object] = field(default_factory=dict)
    """The same for fsspec in the test's own process."""


@contextmanager
def ftp(folder: Path) -> Iterator[Store]:
    port = free_port()
    with _running([sys.executable, "-c", FTP, str(port), str(folder)], folder.with_suffix(".log")):
        from fsspec.implementations.ftp import FTPFileSystem

        def listens() -> bool:
            try:
                FTPFileSystem("127.0.0.1", port=port, skip_instance_cache=True).ls("/")
            except OSError:
                return False
            return True

        until(listens, "the FTP server answers")
        yield Store(f"ftp://127.0.0.1:{port}")


@contextmanager
def s3(folder: Path) -> Iterator[Store]:
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    pytest.importorskip("moto.server", reason="moto is not installed")
    port = free_port()
    url, key = f"http://127.0.0.1:{port}", {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any"}
    with _running([sys.executable, "-m", "moto.server", "-p", str(port)], folder.with_suffix(".log")):
        until(lambda: answers(f"{url}/moto-api/"), "the S3 server answers")
        import s3fs

        options = {"key": "any", "secret": "any", "endpoint_url": url}
        s3fs.S3FileSystem(**options).mkdir("bucket")
        yield Store("s3://bucket", {"AWS_ENDPOINT_URL": url, "AWS_DEFAULT_REGION": "us-east-1", **key}, options)


@contextmanager
def _running(command: list[str], log: Path) -> Iterator[None]:
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            yield
        finally:
            process.kill()
