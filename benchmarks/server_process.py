"""A server as a process on the loopback interface, for `benchmarks.serving` and `benchmarks.attack`."""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks import common
from spectacles.core.errors import UserError

START_SECONDS = 120


class Server:
    """Started by `running`; its log is a file."""

    def __init__(self, command: Sequence[str], log: Path, port: int, ready: str, environment: dict[str, str]) -> None:
        self.command, self.log, self.port, self.ready = command, log, port, ready
        self.entrance = port
        """Where clients connect: its own port, or that of a proxy in front of it."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("SPECTACLES_")}
        self.environment = clean | environment

    def start(self) -> None:
        with self.log.open("ab") as file:
            self.process = subprocess.Popen(
                self.command, cwd=common.ROOT, stdout=file, stderr=file, env=self.environment, start_new_session=True
            )
        ends = time.monotonic() + START_SECONDS
        while not self.is_ready():
            if self.process.poll() is not None or time.monotonic() > ends:
                self.stop()  # or it would keep the port
                raise UserError(f"{' '.join(self.command)} did not start: {self.log} says why.")
            time.sleep(0.1)

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{self.ready}", timeout=5) as answer:  # nosec B310 # http
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def stop(self) -> float:
        """SIGTERM; seconds until it is gone."""
        started, family = time.monotonic(), _family(self.process.pid)
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        seconds = time.monotonic() - started
        for process in family:  # some servers leave workers behind, which keep the port
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        return seconds

    def memory(self) -> float:
        """MB resident, of the process and all that it started; shared pages count once (PSS)."""
        total = 0
        for process in _family(self.process.pid):
            try:
                text = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii")
            except OSError:
                continue
            total += sum(int(kilobytes) for kilobytes in re.findall(r"^Pss:\s+(\d+)", text, re.MULTILINE))
        return total / 1024

    def cpu_seconds(self) -> float:
        """User and system time so far, of the process, all that it started, and those of them that have ended."""
        ticks = 0
        for process in _family(self.process.pid):
            with suppress(OSError):
                ticks += sum(map(int, _stat(process)[11:15]))
        return ticks / os.sysconf("SC_CLK_TCK")


def _stat(process: int | str) -> list[str]:
    """The fields of /proc/PID/stat from the third on, which is the state. Raises OSError."""
    text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    return text.rpartition(")")[2].split()


def _family(root: int) -> list[int]:
    """A process and its descendants."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                parents[int(entry.name)] = int(_stat(entry.name)[1])
    found = [root]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found


@contextmanager
def running(
    command: Sequence[str], log: Path, port: int, ready: str = "/health/ready", **environment: str
) -> Iterator[Server]:
    server = Server(command, log, port, ready, environment)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def ours(bundle: Path, port: int) -> list[str]:
    return [sys.executable, "api.py", "--bundle", str(bundle), "--port", str(port)]
