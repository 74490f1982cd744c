"""Commands finish normally whether the tracking server is dead, dies, is slow or locked; everything arrives once."""

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from command_line import PATIENCE, ROOT, clean_environment
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from tracking_servers import Proxy, Server, postgres, until

from spectacles.core.run_dir import RunDir
from spectacles.tracking import event_log, tracking

Start = Callable[..., "Command"]


class Command:
    """tracked_command.py, step by step."""

    def __init__(self, output_dir: Path, name: str, to: str | None) -> None:
        self.run_dir = RunDir(output_dir / name)
        clean = clean_environment()
        environment = clean | {"PYTHONPATH": os.pathsep.join([str(ROOT), clean.get("PYTHONPATH", "")])}
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "helpers" / "tracked_command.py"), str(output_dir), name], text=True,
            env=environment | ({} if to is None else {"MLFLOW_TRACKING_URI": to}),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def step(self, number: int) -> None:
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()
        while not (line := self.process.stdout.readline()).startswith("step"):
            assert line, "the command has died"

    def finish(self) -> str:
        output, _ = self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode == 0, output
        assert "not imported" in output
        return output

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def arrived(self, to: str = "") -> bool:
        return not event_log.waiting(self.run_dir.path)[to]


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def start(name: str = "run", to: str | None = None) -> Command:
            made = Command(tmp_path / "outputs", name, to)
            stack.callback(made.kill)
            return made

        yield start


@pytest.fixture
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Our side does not see the server's database, so each test uses a different one."""
    folder = tmp_path_factory.mktemp("server")
    with ExitStack() as stack:
        database = f"sqlite:///{folder}/server.db" if request.param == "sqlite" else stack.enter_context(postgres())
        made = Server(database, folder)
        stack.callback(made.kill)
        yield made


def sync(output_dir: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "spectacles.tracking", "sync", "--output_dir", str(output_dir)],
        cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip


def runs_of(address: str, run_dir: RunDir) -> dict[str, list[Run]]:
    """Name -> the runs of that name in and below the folder's run."""
    client = MlflowClient(address)
    experiment = client.get_experiment_by_name("spectacles").experiment_id
    found = client.search_runs([experiment], order_by=["attributes.start_time ASC"])
    wanted = {run.info.run_id for run in found if run.data.tags.get("run_folder") == str(run_dir.path)}
    for _ in range(2):  # stages, phases
        wanted |= {run.info.run_id for run in found if run.data.tags.get("mlflow.parentRunId") in wanted}
    names: dict[str, list[Run]] = {}
    for run in found:
        if run.info.run_id in wanted:
            names.setdefault(run.info.run_name, []).append(run)
    return names


def assert_complete(address: str, run_dir: RunDir, *steps: list[int]) -> None:
    """One run of the folder, and for each finished command one of each stage, with every step once."""
    runs, client = runs_of(address, run_dir), MlflowClient(address)
    assert {name: len(found) for name, found in runs.items()} == {run_dir.name: 1, "train": len(steps),
                                                                  "fine_tune": len(steps)}  # fmt: skip
    for stage, phase, expected in zip(runs["train"], runs["fine_tune"], steps, strict=True):
        assert phase.data.tags["mlflow.parentRunId"] == stage.info.run_id
        assert stage.data.tags["mlflow.parentRunId"] == runs[run_dir.name][0].info.run_id
        for metric in ("loss", "constant"):
            history = client.get_metric_history(phase.info.run_id, metric)
            assert [point.step for point in history] == expected
        assert stage.data.params == {"epochs": "3"}
        assert [file.path for file in client.list_artifacts(stage.info.run_id)] == ["history.csv"]
    assert {run.info.status for found in runs.values() for run in found} == {"FINISHED"}
    assert {run.data.tags["status"] for found in runs.values() for run in found} == {"FINISHED"}


@pytest.mark.parametrize("server", ["sqlite"], indirect=True)
def test_a_dead_or_dying_server_only_delays_delivery(server: Server, command: Start) -> None:
    first = command(to=server.url)
    first.step(1)
    told = first.finish()
    assert told.count(str(first.run_dir.path / event_log.EVENTS)) == 1 and "Traceback" not in told
    server.start()
    second = command(to=server.url)
    second.step(1)
    until(lambda: second.run_dir.tracking.is_file(), "the second command's sender has reached the server")
    server.kill()
    second.step(2)
    second.finish()
    assert not second.arrived(server.url)
    server.start()
    done = sync(second.run_dir.output_dir)
    assert done.returncode == 0, done.stdout + done.stderr
    assert second.arrived(server.url)
    assert_complete(server.url, second.run_dir, [1], [1, 2])


@pytest.mark.parametrize("server", ["postgresql"], indirect=True)
def test_a_slow_server_that_loses_answers_gets_everything_once(server: Server, command: Start) -> None:
    server.start()
    proxy = Proxy(server.port)
    slow = command(to=proxy.url)
    try:
        proxy.held.clear()
        slow.step(1)
        until(lambda: proxy.requests, "the first request")
        slow.step(2)
        assert str(slow.run_dir.path / event_log.EVENTS) in slow.finish()
        proxy.held.set()  # nobody syncs: the sender is still there
        until(lambda: slow.arrived(proxy.url), "the sender delivers the rest")
        proxy.lost = 3
        again = command(to=proxy.url)
        again.step(1)
        until(lambda: proxy.lost == 0, "lost answers")
        again.finish()
        until(lambda: again.arrived(proxy.url), "the rest arrives")
    finally:
        proxy.close()
    assert_complete(server.url, slow.run_dir, [1, 2], [1])


def test_a_locked_database_gets_everything_later(command: Start) -> None:
    first = command()
    first.step(1)
    first.finish()
    until(first.arrived, "a busy machine may need longer than the command waits")
    lock = sqlite3.connect(first.run_dir.output_dir / "mlflow.db")
    lock.execute("BEGIN EXCLUSIVE")
    second = command()
    second.step(1)
    second.step(2)
    assert str(second.run_dir.path / event_log.EVENTS) in second.finish()
    lock.rollback()
    lock.close()
    assert sync(second.run_dir.output_dir).returncode == 0
    assert_complete(tracking.uri(second.run_dir.output_dir), second.run_dir, [1], [1, 2])


def test_runs_of_a_killed_command_are_closed_and_the_next_command_continues(command: Start) -> None:
    first = command()
    first.step(1)
    first.kill()  # its sender notices
    until(lambda: not event_log.open_runs(first.run_dir.path) and first.arrived(), "the runs are closed")
    address = tracking.uri(first.run_dir.output_dir)
    runs = runs_of(address, first.run_dir)
    assert {name: [run.info.status for run in found] for name, found in runs.items()} == {
        "run": ["KILLED"], "train": ["KILLED"], "fine_tune": ["KILLED"],
    }  # fmt: skip
    second = command()
    second.step(2)
    second.finish()
    until(second.arrived, "a busy machine may need longer than the command waits")
    runs = runs_of(address, first.run_dir)
    assert {name: [run.info.status for run in found] for name, found in runs.items()} == {
        "run": ["FINISHED"], "train": ["KILLED", "FINISHED"], "fine_tune": ["KILLED", "FINISHED"],
    }  # fmt: skip


def test_another_command_closes_and_delivers_for_a_killed_sender(command: Start) -> None:
    first = command("first")
    first.step(1)
    for process in senders(first.run_dir):
        os.kill(process, signal.SIGKILL)
    first.kill()
    assert event_log.open_runs(first.run_dir.path) and not first.arrived()
    second = command("second")
    second.finish()
    until(
        lambda: not event_log.open_runs(first.run_dir.path) and first.arrived(),
        "another command delivers for the same output folder",
    )
    runs = runs_of(tracking.uri(first.run_dir.output_dir), first.run_dir)
    assert {name: [run.info.status for run in found] for name, found in runs.items()} == {
        "first": ["KILLED"], "train": ["KILLED"], "fine_tune": ["KILLED"],
    }  # fmt: skip


def senders(run_dir: RunDir) -> list[int]:
    """Process ids of those that deliver this folder's journal."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"send" in arguments and str(run_dir.path).encode() in arguments:
            found.append(int(entry.name))
    return found
