"""deploy/nginx.conf in front of a server, on other ports of this machine."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from benchmarks import common
from spectacles.core.errors import UserError

NONE: Mapping[str, str] = {}
CONFIG = common.ROOT / "deploy" / "nginx.conf"
START_SECONDS = 20


def installed() -> bool:
    return shutil.which("nginx") is not None


@contextmanager
def running(
    server_port: int, folder: Path, certificate: Path | None = None, changes: Mapping[str, str] = NONE
) -> Iterator[int]:
    """The port of an nginx in front of `server_port`; with TLS where there is a certificate (PEM, with its key).
    `changes` are texts of the configuration and what replaces them."""
    folder.mkdir(parents=True, exist_ok=True)
    port, log, tls = free_port(), folder / "nginx.log", "ssl " if certificate else ""
    values = {
        "listen 80": f"listen 127.0.0.1:{free_port()}",
        "listen 443 ssl ": f"listen 127.0.0.1:{port} {tls}",
        "server 127.0.0.1:8000": f"server 127.0.0.1:{server_port}",
        "/run/spectacles-nginx.pid": str(folder / "pid"),
        "/var/log/nginx/spectacles.log": str(log),
        "/dev/shm/spectacles-nginx": str(folder / "bodies"),  # noqa: S108 # nosec B108 # what is replaced
        "ssl_certificate /etc/ssl/photos.example.org.pem;": f"ssl_certificate {certificate};" if tls else "",
        "ssl_certificate_key /etc/ssl/photos.example.org.key;": f"ssl_certificate_key {certificate};" if tls else "",
    }
    text = CONFIG.read_text(encoding="utf-8")
    for old, new in (values | dict(changes)).items():
        assert old in text, f"{CONFIG} has no {old!r}"
        text = text.replace(old, new)
    config = folder / "nginx.conf"
    config.write_text(text, encoding="utf-8")
    process = subprocess.Popen(["nginx", "-c", str(config), "-e", str(log), "-g", "daemon off;"])
    try:
        _wait(process, port)
        yield port
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _wait(process: "subprocess.Popen[bytes]", port: int) -> None:
    ends = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > ends:
                raise UserError("nginx did not start: it says above why.") from None
            time.sleep(0.05)
