"""Delivers the event logs of run folders to MLflow: while a command runs, or what earlier commands left."""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from spectacles.core.run_dir import RunDir
from spectacles.tracking import event_log, mlflow_store
from spectacles.tracking.event_log import Event

log = logging.getLogger("spectacles.tracking.delivery")

GIVE_UP_AFTER = 30.0
"""Seconds without success, once the command has ended."""
MAX_PAUSE = 10.0
ADOPTED_BY_ANOTHER = os.name != "nt"
"""When its parent ends, a process gets another one; on Windows it still names the old one."""


class Command:
    """The process `parent` that runs a command and has started this one."""

    def __init__(self, parent: int, watch_stdin: bool = not ADOPTED_BY_ANOTHER) -> None:
        self.parent, self.closed = parent, threading.Event()
        self.watch_stdin = watch_stdin
        if watch_stdin:
            threading.Thread(target=self._wait_for_end, name="command", daemon=True).start()

    def _wait_for_end(self) -> None:
        """Whatever is at the other end of the pipe holds it open while it lives."""
        sys.stdin.buffer.read()
        self.closed.set()

    def has_ended(self) -> bool:
        return self.closed.is_set() if self.watch_stdin else os.getppid() != self.parent


def send(run_dir: RunDir, parent: int) -> None:
    """Delivers the folder's event log while the process `parent` runs a command on it, and for a while after."""
    command = Command(parent)
    _lower_priority()
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO, stream=sys.stdout)
    folder, to = run_dir.path, event_log.destination()
    while event_log.size(folder) >= 0:
        with event_log.delivering(folder) as mine:
            if mine:
                _catch_up(run_dir, only=to)  # first: this run may be shown below one of them
                _follow(run_dir, to, command)
                for other in set(event_log.waiting(folder)) - {to}:
                    _try(run_dir, other)
                _catch_up(run_dir)
                return
        if command.has_ended() and not event_log.waiting(folder)[to]:
            return
        time.sleep(0.25)


def _lower_priority() -> None:
    """Leaves the processor to the command, and ignores the signals that end it: the sender exits when its work is done.

    At a niceness of 19 it would not run for minutes beside three busy processes.
    """
    for number in {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}:
        signal.signal(number, signal.SIG_IGN)
    with suppress(OSError, AttributeError):  # Windows has no niceness
        os.nice(15)


def set_group_niceness(sender: int, niceness: int) -> None:
    """Where Linux shares the processor by session (autogroup): the sender has a session of its own. The command raises
    its share in the end; a process cannot lower its own niceness again."""
    with suppress(OSError):
        Path(f"/proc/{sender}/autogroup").write_text(str(niceness), encoding="ascii")


def _follow(run_dir: RunDir, to: str, command: Command) -> None:
    """Delivers until the command is over and all has arrived, or nothing arrives for GIVE_UP_AFTER any more."""
    folder, failures, success = run_dir.path, 0, time.monotonic()
    while (size := event_log.size(folder)) >= 0:
        if command.has_ended():
            event_log.close_dead(folder)
        over = command.has_ended() or not event_log.open_runs(folder)
        if over:
            set_group_niceness(os.getpid(), 0)
        before = event_log.sent(folder)
        arrived = _try(run_dir, to)
        if arrived or event_log.sent(folder) != before:
            failures, success = 0, time.monotonic()
        if over and (not event_log.waiting(folder)[to] or time.monotonic() > success + GIVE_UP_AFTER):
            return
        failures += not arrived
        pause = None if arrived else min(2.0**failures, 2 if over else MAX_PAUSE)
        # After a failure, new events are no reason to try again: they come every few milliseconds.
        _wait(partial(_more_to_do, folder, size if arrived else None, command), pause)


def _more_to_do(folder: Path, seen: int | None, command: Command) -> bool:
    """Whether the command is over, or its event log is longer than `seen` bytes; None: its size does not matter."""
    return command.has_ended() or (seen is not None and event_log.size(folder) != seen)


def _wait(news: Callable[[], bool], pause: float | None) -> None:
    """Until there is news, at least half a second, so that events are delivered in batches; for `pause` at most."""
    started = time.monotonic()
    time.sleep(0.5)
    while not news() and (pause is None or time.monotonic() < started + pause):
        time.sleep(0.1)


def sync(output_dir: Path) -> bool:
    """Delivers what has not arrived, of all runs below `output_dir`, and prints it. Returns whether all arrived."""
    complete = True
    for folder in _event_logs(output_dir):
        if _settled(folder):
            continue
        before = event_log.waiting(folder).total()
        _deliver_all(RunDir(folder.absolute()), timeout=60)
        left = event_log.waiting(folder).total()
        print(f"{folder}: {before - left} entries delivered" + (f", {left} are left" if left else ""))
        complete = complete and not left
    return complete


def _settled(folder: Path) -> bool:
    return not event_log.waiting(folder) and not event_log.open_runs(folder)


def _deliver_all(run_dir: RunDir, timeout: float) -> None:
    """To every store; where another process delivers, that is waited for."""
    deadline = time.monotonic() + timeout
    while not _settled(run_dir.path):
        with event_log.delivering(run_dir.path) as mine:
            if mine:
                event_log.close_dead(run_dir.path)
                for to in event_log.waiting(run_dir.path):
                    _try(run_dir, to)
                return
        if not event_log.waiting(run_dir.path) or time.monotonic() > deadline:
            return
        time.sleep(0.25)


def _catch_up(run_dir: RunDir, only: str | None = None) -> None:
    """What other commands left in this output folder, for every store or one; a store that fails is not asked again."""
    failed: set[str] = set()
    for folder in _event_logs(run_dir.output_dir):
        if folder == run_dir.path or _settled(folder):
            continue
        with suppress(OSError), event_log.delivering(folder) as mine:  # it may be deleted meanwhile
            if mine:
                event_log.close_dead(folder)
                wanted = [to for to in event_log.waiting(folder) if to not in failed and only in (None, to)]
                failed |= {to for to in wanted if not _try(RunDir(folder), to)}


def _event_logs(output_dir: Path) -> list[Path]:
    """Run folders, the oldest event log first: a run may be shown below an earlier one."""
    found = sorted(output_dir.glob(f"*/{event_log.EVENTS}"), key=lambda path: path.stat().st_mtime)
    return [path.parent for path in found]


def _try(run_dir: RunDir, to: str) -> bool:
    """Delivers what waits for this store; an error is logged and stops nothing else."""
    try:
        deliver(run_dir, to)
    except Exception as error:  # noqa: BLE001 - MLflow raises its own, SQLAlchemy's, requests' and OS errors
        mlflow_store.forget()
        log.warning("%s: not delivered, will be tried again: %s", event_log.address(to, run_dir.output_dir), error)
        return False
    return True


def deliver(run_dir: RunDir, to: str) -> None:
    """Everything that waits for this store, in order; raises what the store raises when it cannot be reached."""
    folder = run_dir.path
    if not event_log.waiting(folder)[to]:
        return
    reached = event_log.sent(folder).get(to, 0)
    store = mlflow_store.connect(to, run_dir.output_dir)
    event_log.mark_sent(folder, to, reached)  # progress, for the command that waits
    for events, offset in _batches(folder, reached, to):
        _record(store, events, run_dir)
        event_log.mark_sent(folder, to, offset)


def _record(store: mlflow_store.Store, events: list[Event], run_dir: RunDir) -> None:
    """What the store rejects is tried in parts, and the part that it does not take is left out."""
    try:
        mlflow_store.record(store, events, run_dir)
    except mlflow_store.Rejected as error:
        values = events[0].get("values", {})
        if len(events) > 1:
            parts = events
        elif len(values) > 1:
            parts = [events[0] | {"values": {name: value}} for name, value in values.items()]
        else:
            parts = []
            log.warning("left out, %s: %s", events[0], error)
        for part in parts:
            _record(store, [part], run_dir)


def _batches(folder: Path, offset: int, to: str) -> Iterator[tuple[list[Event], int]]:
    """Events one by one, metrics of a run many at a time; with the offset behind the last."""
    batch: list[Event] = []
    for event, behind in event_log.read(folder, offset):
        if event["to"] != to:
            continue
        if batch and not (
            _kind(event) == _kind(batch[0]) and event["do"] == "metrics" and len(batch) < mlflow_store.BATCH
        ):
            yield batch, offset
            batch = []
        batch.append(event)
        offset = behind
    if batch:
        yield batch, offset


def _kind(event: Event) -> tuple[str, str]:
    return event["do"], event["run"]
