"""The event log of a run folder: what is to be tracked, and how far it has been delivered. Imports no MLflow.

It holds one event per line: {"do": "start", "params", "metrics", "dataset", "artifact" or "end",
"run": our key of the run, "to": the store it is meant for, "ts": ms, ...}. A line without a newline is not an event.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from spectacles.core.fileio import atomic_write

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

EVENTS, SENT, LOG = "tracking.jsonl", "tracking-sent.json", "tracking.log"

Event = dict[str, Any]


def destination() -> str:
    """Where events are meant to go now: an MLflow address, or '' for the database of the run's own output folder."""
    given = os.environ.get("MLFLOW_TRACKING_URI", "")
    scheme, separator, path = given.partition(":///")
    if scheme == "sqlite" and separator and not path.startswith("/"):
        return f"sqlite:///{_in_url(Path().absolute())}/{path}"  # the next command may stand in another folder
    return given


def address(to: str, output_dir: Path) -> str:
    path = (output_dir / "mlflow.db").absolute()
    # With the driver named, MLflow does not make a second folder, called as the URL is written.
    driver = "" if _in_url(path) == path.as_posix() else "+pysqlite"
    return to or f"sqlite{driver}:///{_in_url(path)}"


def _in_url(path: Path) -> str:
    """SQLAlchemy takes what follows a question mark as options, and decodes percent signs."""
    return path.as_posix().replace("%", "%25").replace("?", "%3F").replace("#", "%23")


def now() -> int:
    return int(time.time() * 1000)


@contextmanager
def writing(folder: Path) -> Iterator[Callable[[Event], None]]:
    """Yields what appends an event. Runs that a dead process left open are closed first. Raises OSError."""
    descriptor = _open(folder)
    try:
        close_dead(folder)
        _lock(descriptor, exclusive=False)  # the kernel lets go of it however this process ends
        yield partial(_append, descriptor)
    finally:
        os.close(descriptor)


def close_dead(folder: Path) -> None:
    """Ends as KILLED every run that is open although no process writes any more; a torn last line gets its end."""
    descriptor = _open(folder)
    try:
        if not _lock(descriptor, exclusive=True):
            return
        if _torn(folder / EVENTS):
            os.write(descriptor, b"\n")
        for (run, to), last in reversed(open_runs(folder).items()):  # the innermost first
            _append(descriptor, {"do": "end", "run": run, "to": to, "ts": last, "status": "KILLED"})
    finally:
        os.close(descriptor)


def open_runs(folder: Path) -> dict[tuple[str, str], int]:
    """(run, to) of every run without an end, in the order of their start, with the time of the log's last event."""
    begun: dict[tuple[str, str], int] = {}
    last = 0
    for event, _ in read(folder):
        last = max(last, event["ts"])
        if event["do"] == "start":
            begun[event["run"], event["to"]] = 0
        elif event["do"] == "end":
            begun.pop((event["run"], event["to"]), None)
    return dict.fromkeys(begun, last)


def folder_run(folder: Path) -> str | None:
    """The key of the run of the whole folder, where it has been begun."""
    starts = (event for event, _ in read(folder) if event["do"] == "start" and event["parent"] is None)
    first = next(starts, None)
    return None if first is None else str(first["run"])


def read(folder: Path, offset: int = 0) -> Iterator[tuple[Event, int]]:
    """Events from a byte offset on, each with the offset behind it; torn lines are passed over."""
    if not (folder / EVENTS).is_file():
        return
    with (folder / EVENTS).open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            try:
                event = json.loads(line)
            except ValueError:
                continue
            yield event, offset


def size(folder: Path) -> int:
    """Bytes; -1 where there is no event log (any more)."""
    try:
        return (folder / EVENTS).stat().st_size
    except OSError:
        return -1


def sent(folder: Path) -> dict[str, int]:
    """Store -> the offset up to which its events have arrived; 0 where that is not known: all may be sent again."""
    try:
        return dict(json.loads((folder / SENT).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def progress(folder: Path) -> int:
    """Changes whenever the delivering process makes progress, even if that is only reaching the store."""
    path = folder / SENT
    return path.stat().st_mtime_ns if path.is_file() else 0


def mark_sent(folder: Path, to: str, offset: int) -> None:
    """The event log is synced first: after a power cut it must not be shorter than what is recorded as sent."""
    with (folder / EVENTS).open("rb") as file:
        os.fsync(file.fileno())
    atomic_write(folder / SENT, json.dumps(sent(folder) | {to: offset}, indent=2) + "\n")


def waiting(folder: Path) -> Counter[str]:
    """Store -> the number of events that have not arrived there."""
    arrived = sent(folder)
    return Counter(event["to"] for event, offset in read(folder) if offset > arrived.get(event["to"], 0))


@contextmanager
def delivering(folder: Path) -> Iterator[bool]:
    """Yields whether this process may deliver the event log: one at a time."""
    with (folder / LOG).open("ab") as file:
        yield _lock(file.fileno(), exclusive=True)


def _torn(path: Path) -> bool:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        return file.read(1) not in (b"", b"\n")


def _open(folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    return os.open(folder / EVENTS, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)


def _append(descriptor: int, event: Event) -> None:
    """One write, so that lines of two processes do not mix. Raises OSError where the disk is full."""
    line = json.dumps(event).encode() + b"\n"
    if os.write(descriptor, line) < len(line):
        os.write(descriptor, b"\n")
        raise OSError("the disk is full")


def _lock(descriptor: int, exclusive: bool) -> bool:
    """Exclusive: at once or not at all. Shared: waits for the one who closes dead runs, which takes milliseconds."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB if exclusive else fcntl.LOCK_SH)
    except BlockingIOError:
        return False
    return True
