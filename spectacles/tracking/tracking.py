"""What a run reports to MLflow: written to the run folder's event log here, delivered by another process (`delivery`).

    python -m spectacles.tracking sync --output_dir outputs

delivers what an unreachable MLflow server has not received; so does the next command that works in the folder.
"""

import argparse
import atexit
import getpass
import hashlib
import json
import logging
import math
import os
import re
import shlex
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectacles.core.environment import git_commit
from spectacles.core.results import Report
from spectacles.core.run_dir import RunDir
from spectacles.tracking import delivery, event_log
from spectacles.tracking.event_log import Event

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("spectacles")

MAX_PARAM = 500
DELIVERY_TIMEOUT = 10.0
"""Seconds without progress after which the end of a command stops waiting for the delivery."""
LOCAL_UI = "http://127.0.0.1:5000"
"""Where `mlflow ui` listens unless it is given another port."""
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class _Session:
    """An open parent run: what writes its events, the store they are for, and the open runs, the innermost last."""

    write: Callable[[Event], None]
    to: str
    runs: list[str] = field(default_factory=list)


_active: ContextVar[_Session | None] = ContextVar("tracking_session", default=None)


def uri(output_dir: Path) -> str:
    return event_log.address(event_log.destination(), output_dir)


@contextmanager
def parent_run(run_dir: RunDir, before: RunDir | None = None) -> Iterator["subprocess.Popen[bytes] | None"]:
    """The run of the whole folder: begun once, reopened by every later stage. Inside another parent: does nothing.
    Yields the process that delivers what is tracked.

    `before`: the run that this one is made from again. Where that is tracked in the same store, this one is shown below
    it; elsewhere a tag names it.
    """
    if _active.get() is not None:
        yield None
        return
    with _open_session(run_dir) as session:
        key = event_log.folder_run(run_dir.path) or uuid.uuid4().hex
        tags = {"git_commit": git_commit(), "run_folder": str(run_dir.path)}
        facts = {} if before is None else {"before": str(before.path)}
        with _run(key, run_dir.name, tags | ({} if before is None else {"run_before": before.name}), **facts):
            sender = None if session is None else _start_sender(run_dir)
            try:
                yield sender
            finally:
                if sender is not None:
                    delivery.set_group_niceness(sender.pid, 0)
    if sender is not None:
        _await_delivery(run_dir, sender)


@contextmanager
def _open_session(run_dir: RunDir) -> Iterator[_Session | None]:
    """None, after a warning, where the run folder's event log cannot be written."""
    with ExitStack() as stack:
        session = None
        try:
            session = _Session(stack.enter_context(event_log.writing(run_dir.path)), event_log.destination())
        except OSError as error:
            log.warning("warning: this run is not tracked: %s", error)
        token = _active.set(session)
        try:
            yield session
        finally:
            _active.reset(token)


@contextmanager
def _run(key: str, name: str, tags: dict[str, str], **facts: str) -> Iterator[None]:
    """A run below the innermost open one; nothing where no parent run is open."""
    session = _active.get()
    if session is None:
        yield
        return
    runs = session.runs
    parent = runs[-1] if runs else None
    runs.append(key)
    _note("start", name=name, parent=parent, tags=tags, origin=_origin(), **facts)
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        _note("end", status=status)
        runs.pop()


def _note(do: str, **facts: Any) -> None:
    """An event of the innermost open run, in the event log."""
    session = _active.get()
    if session is None or not session.runs:
        return
    try:
        session.write({"do": do, "run": session.runs[-1], "to": session.to, "ts": event_log.now()} | facts)
    except OSError as error:
        log.warning("warning: not tracked (%s): %s", do, error)


def _origin() -> dict[str, str]:
    """MLflow's own tags, by which its pages say who made a run, and with what."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        user = "unknown"
    return {"mlflow.user": user, "mlflow.source.name": sys.argv[0], "mlflow.source.type": "LOCAL"}


@contextmanager
def stage_run(run_dir: RunDir, stage: str, params: dict[str, Any]) -> Iterator[None]:
    """A child run with the stage's parameters; FAILED when the stage raises, KILLED on Ctrl-C."""
    with _run(uuid.uuid4().hex, stage, {"stage": stage, "git_commit": git_commit()}):
        log_params(params)
        yield


@contextmanager
def child_run(name: str) -> Iterator[None]:
    """A run below the active one (training's phases); does nothing where nothing is tracked."""
    with _run(uuid.uuid4().hex, name, {"stage": name}):
        yield


def log_params(params: dict[str, Any]) -> None:
    """MLflow never changes a parameter: in a run that is continued the first value stays, and a tag has the new one."""
    _note("params", values={key: str(value)[:MAX_PARAM] for key, value in params.items()})


def log_metrics(metrics: Mapping[str, float | None], step: int | None = None) -> None:
    """Undefined metrics (None) are left out."""
    numbers = {key: float(value) for key, value in metrics.items() if value is not None}
    values = {key: value if math.isfinite(value) else str(value) for key, value in numbers.items()}
    _note("metrics", values=values, step=step or 0)


def log_artifact(path: Path, folder: str | None = None) -> None:
    """A file, or all files of a folder, as they are when they are delivered."""
    _note("artifact", path=str(path.absolute()), folder=folder)


def log_dataset(frame: "pd.DataFrame", source: str, name: str, context: str) -> None:
    """Registers a split as an MLflow data set input of the active run."""
    if _active.get() is not None:
        digest = hashlib.sha256(frame.to_csv(index=False).encode("utf-8", "surrogateescape")).hexdigest()[:8]
        columns = {str(column): str(kind) for column, kind in frame.dtypes.items()}
        _note("dataset", name=name, source=source, context=context, digest=digest, columns=columns, rows=len(frame))


def log_report(report: Report, run_dir: RunDir) -> None:
    log_metrics(report.metrics)
    for relative in report.artifacts:
        path = run_dir.path / relative
        log_artifact(path, path.name if path.is_dir() else None)


def _start_sender(run_dir: RunDir) -> "subprocess.Popen[bytes] | None":
    """The process that delivers the event log, in a process group of its own: Ctrl-C does not reach it."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "spectacles.tracking", "send", str(run_dir.path), "--parent", str(os.getpid())]
    try:
        with (run_dir.path / event_log.LOG).open("ab") as output:
            stdin = subprocess.DEVNULL if delivery.ADOPTED_BY_ANOTHER else subprocess.PIPE
            sender = subprocess.Popen(command, stdin=stdin, stdout=output, stderr=output,
                                      env=os.environ | {"PYTHONPATH": path}, start_new_session=True)  # fmt: skip
    except OSError as error:
        log.warning("warning: nothing is delivered to MLflow yet: %s", error)
        return None
    delivery.set_group_niceness(sender.pid, 15)
    atexit.register(sender.poll)  # Python warns of a running process that nothing refers to any more
    return sender


def _await_delivery(run_dir: RunDir, sender: "subprocess.Popen[bytes]") -> None:
    """Waits until everything has arrived, or for DELIVERY_TIMEOUT without progress; then logs what is left."""
    to = event_log.destination()
    seen, deadline = -1, 0.0
    while left := event_log.waiting(run_dir.path)[to]:
        progress = event_log.progress(run_dir.path)
        if progress != seen:
            seen, deadline = progress, time.monotonic() + DELIVERY_TIMEOUT
        if time.monotonic() > deadline or sender.poll() is not None:
            log.info("MLflow at %s has not received %d of this run's entries yet: they are kept in %s, and the next "
                     "command delivers them", uri(run_dir.output_dir), left, run_dir.path / event_log.EVENTS,
                     )  # fmt: skip
            return
        time.sleep(0.05)


def run_address(run_dir: RunDir) -> str | None:
    """Of the run's page in MLflow, on its side for model training; None until the run has arrived in the store."""
    known = json.loads(run_dir.tracking.read_text(encoding="utf-8")) if run_dir.tracking.is_file() else {}
    store = uri(run_dir.output_dir)
    if known.get("uri") != store:
        return None
    server = re.sub(r"//[^/@]*@", "//", store).rstrip("/") if store.startswith("http") else LOCAL_UI
    page = f"#/experiments/{known['experiment_id']}/runs/{known['run_id']}"
    return f"{server}/{page}?workflowType=machine_learning"


def where_to_look(run_dir: RunDir) -> str:
    """The command that serves MLflow's pages, where no server does, and the address of the run."""
    store, address = uri(run_dir.output_dir), run_address(run_dir)
    python = shlex.quote(sys.executable)
    if address is None:
        output_dir = shlex.quote(str(run_dir.output_dir))
        return f"not in MLflow yet: deliver with {python} -m spectacles.tracking sync --output_dir {output_dir}"
    if store.startswith("http"):
        return address
    switch = "" if os.name == "nt" else "MLFLOW_DISABLE_TELEMETRY=true "
    return f"{switch}{python} -m mlflow ui --backend-store-uri {shlex.quote(store)}   then {address}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m spectacles.tracking", description=(__doc__ or "").split(":")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    sync = commands.add_parser("sync", help="deliver what has not arrived, of all runs of an output folder")
    sync.add_argument("--output_dir", type=Path, default=Path("outputs"))
    send = commands.add_parser("send", help="deliver while a command runs; started by it")
    send.add_argument("run_dir", type=Path)
    send.add_argument("--parent", type=int, required=True, help="process id of the command")
    args = parser.parse_args(arguments)
    if args.command == "send":
        delivery.send(RunDir(args.run_dir), args.parent)
    elif not delivery.sync(args.output_dir):
        sys.exit(1)
