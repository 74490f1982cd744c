"""A real MLflow server on SQLite or PostgreSQL that can be killed, and a TCP proxy that delays or drops its answers."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

PATIENCE = 600


def until(true: Callable[[], object], what: str) -> None:
    """Polls until `true` holds. Fails after PATIENCE seconds."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, f"not within {PATIENCE} s: {what}"
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except (OSError, urllib.error.URLError):
        return False


class Server:
    """`mlflow server` on a free port; it can be killed and restarted, its data stay in the database."""

    def __init__(self, database: str, folder: Path) -> None:
        self.port, self.folder, self.process = free_port(), folder, None
        self.url = f"http://127.0.0.1:{self.port}"
        self.command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", database, "--workers", "1",
                        "--artifacts-destination", str(folder / "artifacts"), "--host", "127.0.0.1",
                        "--port", str(self.port)]  # fmt: skip

    def start(self) -> None:
        environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "server.log").open("ab") as output:
            self.process = subprocess.Popen(
                self.command, stdout=output, stderr=output, env=environment, cwd=self.folder, start_new_session=True
            )
        until(lambda: answers(self.url + "/health"), f"a server: see {self.folder}/server.log")

    def kill(self) -> None:
        """With its workers, as a power cut would."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@contextmanager
def postgres() -> Iterator[str]:
    """A database server of its own and its address; skips the test where there is none."""
    pytest.importorskip("psycopg2", reason="psycopg2 is not installed")
    found = {name: shutil.which(name) for name in ("initdb", "postgres")}
    if None in found.values():
        pytest.skip("there is no PostgreSQL on this machine")
    folder, port = Path(tempfile.mkdtemp(prefix="postgres-", dir="/tmp")), free_port()
    if os.geteuid() == 0:  # it rejects root
        shutil.chown(folder, "postgres", "postgres")
        as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    else:
        as_user = []
    data = str(folder / "data")
    subprocess.run([*as_user, found["initdb"], "-D", data, "-U", "spectacles", "--auth=trust", "--no-sync"],
                   check=True, capture_output=True, cwd=folder)  # fmt: skip
    settings = ["-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={folder}", "-c", "fsync=off"]
    with (folder.parent / f"{folder.name}.log").open("wb") as output:
        process = subprocess.Popen([*as_user, found["postgres"], "-D", data, "-p", str(port), *settings],
                                   stdout=output, stderr=output, cwd=folder)  # fmt: skip
    try:
        until(lambda: _accepts(port), "PostgreSQL takes connections")
        yield f"postgresql+psycopg2://spectacles@127.0.0.1:{port}/postgres"
    finally:
        process.send_signal(signal.SIGINT)  # its fast shutdown
        process.wait()
        shutil.rmtree(folder)
        Path(output.name).unlink()


def _accepts(port: int) -> bool:
    import psycopg2

    try:
        psycopg2.connect(host="127.0.0.1", port=port, user="spectacles", dbname="postgres").close()
    except psycopg2.OperationalError:
        return False
    return True


class Proxy:
    """In front of a server: answers wait while `held` is cleared; the next `lost` ones never arrive."""

    def __init__(self, port: int) -> None:
        self.target, self.held, self.lost = port, threading.Event(), 0
        self.requests = 0
        self.held.set()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._exchange, args=(client,), daemon=True).start()

    def _exchange(self, client: socket.socket) -> None:
        with suppress(OSError), client, socket.create_connection(("127.0.0.1", self.target)) as server:
            threading.Thread(target=self._forward, args=(client, server), daemon=True).start()
            while answer := server.recv(65536):
                self.held.wait()
                if self.lost > 0:
                    self.lost -= 1
                    client.shutdown(socket.SHUT_RDWR)
                    return
                client.sendall(answer)

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while request := client.recv(65536):
                self.requests += 1
                server.sendall(request)
            server.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.held.set()
        self.listener.close()
